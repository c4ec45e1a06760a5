"""`task=attribution`: score every latent for every class at every step, and select the features."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from omegaconf import DictConfig
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from difflens.attribution.select import select_features
from difflens.attribution.statistics import CodeStatistics, code_statistics
from difflens.data.activations import ActivationStore
from difflens.methods.base import Method
from difflens.methods.difflens import selected_latents
from difflens.sae.base import SparseAutoencoder
from difflens.stages import probe as probe_task
from difflens.stages import sae as sae_task
from difflens.stages.activations import open_contrast, open_store
from difflens.stages.plans import learning_labels, named_classes
from difflens.stages.tracked import track_attribution
from difflens.store.artifacts import Artifact
from difflens.store.progress import progress
from difflens.store.run import Run
from difflens.study.values import built
from difflens.study.workbench import Workbench, plain
from difflens.training.attribution_module import AttributionModule, AttributionResult, LabelledMaps
from difflens.vocabulary import Attribute, FeatureScores, FeatureSet


@dataclass(frozen=True)
class Located:
    """What the attribution stage found: the sweep's result and the features selected from it.

    `artifact` is the statistics', whose fingerprint stands for all of this.
    """

    artifact: Artifact
    result: AttributionResult
    features: FeatureSet
    statistics: CodeStatistics
    autoencoder: SparseAutoencoder


def attribution(cfg: DictConfig, run: Run) -> None:
    """Run the stage alone."""
    located = locate_features(Workbench(cfg, run))
    for name, latents in located.features.latents.items():
        run.say(f"{name}: latents {', '.join(map(str, latents))}")


def locate_features(bench: Workbench) -> Located:
    """The features of the attribute under study; other attributes are scored too if selection asks for specificity."""
    settings = bench.cfg.attribution
    artifact, result, autoencoder = sweep(bench, bench.attribute)
    track_attribution(bench, result.completeness_gap)
    # Every other attribute costs a probe and a sweep of its own, so only where selection weighs them.
    others: list[FeatureScores] = []
    if settings.specificity:
        others = [sweep(bench, other)[1].scores for other in bench.others()]
    top = settings.top if isinstance(settings.top, int) else plain(settings.top)
    rule = {"rank": settings.rank, "specificity": settings.specificity}
    # As released for Stable Diffusion, where the ranking sees the edited steps alone (METHOD section 9).
    scores = within(result.scores, bench.method) if settings.within_window else result.scores
    features = select_features(scores, top=top, others=others, **rule)
    found, statistics = usual_activity(bench, artifact, autoencoder, features)
    return Located(found, result, features, statistics, autoencoder)


def within(scores: FeatureScores, method: Method) -> FeatureScores:
    """The scores at the steps that the method edits, zero at all others.

    Raises:
        ValueError: the method has no window.
    """
    window, steps = getattr(method, "window", None), scores.scores.shape[1]
    if window is None:
        raise ValueError(
            f"attribution.within_window needs a window, and {type(method).__name__} has none; set it to false."
        )
    edited = torch.tensor([window.holds(step, steps) for step in range(steps)])
    return FeatureScores(scores.attribute, scores.scores * edited[None, :, None])


def locate_held(bench: Workbench, attribute: Attribute, *, top: int) -> Located:
    """The features that drive an attribute to be held, so many per class."""
    artifact, result, autoencoder = sweep(bench, attribute)
    features = select_features(result.scores, top=top)
    found, statistics = usual_activity(bench, artifact, autoencoder, features)
    return Located(found, result, features, statistics, autoencoder)


def usual_activity(
    bench: Workbench, attribution: Artifact, autoencoder: SparseAutoencoder, features: FeatureSet
) -> tuple[Artifact, CodeStatistics]:
    """What the selected latents do in images of each class of their attribute."""
    latents = selected_latents(features)
    everything = [bench.attribute, *bench.others()]
    # All attributes together, the one of the features first: a class mean is to hold what the class does, not what
    # it happens to share with another attribute in these images.
    studied = [features.attribute, *(other for other in everything if other != features.attribute)]
    images = bench.cfg.attribution.statistics_images
    spec = {
        "attribution": attribution.fingerprint,
        "latents": latents.tolist(),
        "attributes": [attribute.name for attribute in studied],
        "images": images,
    }

    def make(folder: Path) -> None:
        _, store = open_store(bench)
        labels = torch.stack([learning_labels(bench, store, attribute) for attribute in studied], 1)
        # The fit has an effect for every attribute, so an image counts only where all of them are known.
        rows = (labels >= 0).all(1).nonzero()[:images, 0]
        _require_every_class(labels[rows, 0], features.attribute)
        batches = _Steps(store, labels, rows.tolist())
        sizes = [len(attribute.classes) for attribute in studied]
        steps = progress(range(store.steps), "usual activity")
        parts = ((batch.maps, batch.labels, batch.step) for step in steps for batch in batches[step])
        found = code_statistics(autoencoder, latents, parts, sizes=sizes, steps=store.steps)
        save_file(found._asdict(), folder / "statistics.safetensors")

    with bench.run.stage("attribution"):
        artifact = bench.run.artifact("statistics", spec, make)
    return artifact, CodeStatistics(**load_file(artifact.folder / "statistics.safetensors"))


def sweep(bench: Workbench, attribute: Attribute) -> tuple[Artifact, AttributionResult, SparseAutoencoder]:
    """Scores of every latent for one attribute."""
    sae_artifact, autoencoder = sae_task.train(bench)
    probe_artifact, probe, _ = probe_task.fit(bench, attribute)
    _, store = open_store(bench)
    settings = bench.cfg.attribution
    spec = {
        "sae": sae_artifact.fingerprint,
        "probe": probe_artifact.fingerprint,
        "scorer": plain(settings.scorer),
        "images_per_class": settings.images_per_class,
        # A division by 1 decides nothing and stays out of the fingerprint.
        **({} if settings.temperature == 1 else {"temperature": settings.temperature}),
    }
    contrast = None
    # Prompts name classes of the attribute under study alone; all others start from zero codes.
    if settings.baseline == "contrast" and attribute == bench.attribute:
        other, contrast = open_contrast(bench)
        spec["baseline"] = other.fingerprint

    def make(folder: Path) -> None:
        labels = learning_labels(bench, store, attribute)
        # Only images whose prompts name a class have a partner in the contrast; UNNAMED drops the others.
        labels = labels if contrast is None else named_classes(bench)
        scorer = built(bench.cfg, "attribution.scorer")
        module = AttributionModule(autoencoder, probe, attribute, scorer, temperature=settings.temperature)
        # Lightning predicts in inference mode unless told otherwise, and scorers take gradients.
        trainer = bench.trainer(f"attribution of {attribute.name}", inference_mode=False)
        rows = _first_of_each(labels, settings.images_per_class)
        # An item is a whole step, so that no two ranks add to the same score.
        steps = _Steps(store, labels, rows, contrast, at_least=trainer.world_size)
        trainer.predict(module, DataLoader(steps, batch_size=None), return_predictions=False)
        # The ranks' sums are added up on each of them by now; one writes.
        if bench.run.rank:
            return
        result = module.result()
        # NaN is sorted before every number: such latents would be selected first.
        if not result.scores.scores.isfinite().all():
            raise ValueError(f"scores for {attribute.name} are not finite; look at the SAE's health (sae.training.lr).")
        # safetensors refuses views that are not contiguous.
        save_file({name: value.contiguous() for name, value in result.tensors().items()}, folder / "scores.safetensors")
        (folder / "completeness.json").write_text(json.dumps(result.completeness_gap))

    with bench.run.stage("attribution"):
        artifact = bench.run.artifact("attribution", spec, make, together=True)
    stored = load_file(artifact.folder / "scores.safetensors")
    scores = FeatureScores(attribute, stored["scores"])
    gap = json.loads((artifact.folder / "completeness.json").read_text())
    return artifact, AttributionResult(scores, stored["activation"], gap), autoencoder


class _Steps(Dataset[list[LabelledMaps]]):
    """Per step, batches (maps of the chosen images, their labels, the step), with the `contrast` maps of the same ids.

    Where there are fewer steps than `at_least`, the number of ranks, empty ones follow: Lightning wants an item for each.
    """

    def __init__(
        self,
        store: ActivationStore,
        labels: Tensor,
        rows: Sequence[int],
        contrast: ActivationStore | None = None,
        *,
        batch: int = 64,
        at_least: int = 1,
    ) -> None:
        self.store, self.labels, self.rows, self.batch = store, labels, torch.tensor(rows), batch
        self.contrast, self.count = contrast, max(store.steps, at_least)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, step: int) -> list[LabelledMaps]:
        if step >= self.store.steps:
            return []
        # One step at a time: the activations of all steps are what fills the disk, not the memory.
        maps = self.store.at_step(step)
        others = None if self.contrast is None else self.contrast.at_step(step)
        found = []
        for rows in self.rows.split(self.batch):
            start = None if others is None else others[self._partners(rows)]
            found.append(LabelledMaps(maps[rows], self.labels[rows], step, start))
        return found

    def _partners(self, rows: Tensor) -> Tensor:
        """Where the contrast holds the images of these rows, by their ids."""
        assert self.contrast is not None
        ids = self.contrast.image_ids
        # By id, not by row: the contrast lacks the images whose prompts name no class.
        order = ids.argsort()
        return order[torch.searchsorted(ids[order], self.store.image_ids[rows])]


def _require_every_class(labels: Tensor, attribute: Attribute) -> None:
    counts = torch.bincount(labels, minlength=len(attribute.classes))
    if not counts.all():
        name = attribute.classes[int(counts.argmin())]
        raise ValueError(
            f"none of the first {len(labels)} images is {name!r} ({attribute.name}); raise attribution.statistics_images "
            "or data.images."
        )


def _first_of_each(labels: Tensor, per_class: int) -> list[int]:
    """Positions of the first `per_class` images of each class."""
    rows = [(labels == index).nonzero()[:per_class, 0] for index in range(int(labels.max()) + 1)]
    return sorted(int(row) for row in torch.cat(rows))
