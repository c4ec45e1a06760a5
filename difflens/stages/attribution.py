"""`task=attribution`: score every latent for every class at every step, and select the features."""

import json
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
from difflens.stages.activations import collect, collect_contrast
from difflens.stages.plans import learning_labels, named_classes
from difflens.store.artifacts import Artifact
from difflens.store.progress import progress
from difflens.store.run import Run
from difflens.study.values import built, plain
from difflens.study.workbench import Workbench
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
    swept = sweep(bench, bench.attribute)
    scores = swept[1].scores
    bench.tracker.scalars({"attribution/completeness_gap": swept[1].completeness_gap})
    # Every other attribute costs a probe and a sweep of its own, so only where selection weighs them.
    others: list[FeatureScores] = []
    if settings.specificity:
        others = [sweep(bench, other)[1].scores for other in bench.others()]
    # As released for Stable Diffusion, where the ranking sees the edited steps alone (METHOD section 9).
    if settings.within_window:
        scores = within(scores, bench.method)
    rule = {"rank": settings.rank, "specificity": settings.specificity}
    return with_usual_activity(bench, *swept, select_features(scores, top=plain(settings.top), others=others, **rule))


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
    swept = sweep(bench, attribute)
    return with_usual_activity(bench, *swept, select_features(swept[1].scores, top=top))


def with_usual_activity(
    bench: Workbench, swept: Artifact, result: AttributionResult, autoencoder: SparseAutoencoder, features: FeatureSet
) -> Located:
    """What a sweep found, and what the selected latents do in images of each class of their attribute.

    Raises:
        ValueError: no image shows a class.
    """
    studied, latents = features.attribute, selected_latents(features)
    # All attributes together, the one of the features first: a class mean is to hold what the class does, not what
    # it happens to share with another attribute in these images.
    attributes = [studied, *(other for other in (bench.attribute, *bench.others()) if other != studied)]
    images = bench.cfg.attribution.statistics_images
    spec = {
        "attribution": swept.fingerprint,
        "latents": latents.tolist(),
        "attributes": [attribute.name for attribute in attributes],
        "images": images,
    }

    def make(folder: Path) -> None:
        _, store = collect(bench)
        labels = torch.stack([learning_labels(bench, store, attribute) for attribute in attributes], 1)
        # The fit has an effect for every attribute, so an image counts only where all of them are known.
        rows = (labels >= 0).all(1).nonzero()[:images, 0]
        counts = torch.bincount(labels[rows, 0], minlength=len(studied.classes))
        if not counts.all():
            raise ValueError(
                f"none of the first {len(rows)} images is {studied.classes[int(counts.argmin())]!r} ({studied.name}); "
                "raise attribution.statistics_images or data.images."
            )
        batches = _Steps(store, labels, rows)
        sizes = [len(attribute.classes) for attribute in attributes]
        steps = progress(range(store.steps), "usual activity")
        parts = ((batch.maps, batch.labels, batch.step) for step in steps for batch in batches[step])
        found = code_statistics(autoencoder, latents, parts, sizes=sizes, steps=store.steps)
        save_file(found._asdict(), folder / "statistics.safetensors")

    with bench.run.stage("attribution"):
        artifact = bench.run.artifact("statistics", spec, make)
    statistics = CodeStatistics(**load_file(artifact.folder / "statistics.safetensors"))
    return Located(artifact, result, features, statistics, autoencoder)


def sweep(bench: Workbench, attribute: Attribute) -> tuple[Artifact, AttributionResult, SparseAutoencoder]:
    """Scores of every latent for one attribute."""
    sae_artifact, autoencoder = sae_task.train(bench)
    probe_artifact, probe, _ = probe_task.fit(bench, attribute)
    _, store = collect(bench)
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
        other, contrast = collect_contrast(bench)
        spec["baseline"] = other.fingerprint

    def make(folder: Path) -> None:
        # Only images whose prompts name a class have a partner in the contrast; UNNAMED drops the others.
        labels = learning_labels(bench, store, attribute) if contrast is None else named_classes(bench)
        scorer = built(bench.cfg, "attribution.scorer")
        module = AttributionModule(autoencoder, probe, attribute, scorer, temperature=settings.temperature)
        # Lightning predicts in inference mode unless told otherwise, and scorers take gradients.
        trainer = bench.trainer(f"attribution of {attribute.name}", inference_mode=False)
        first = [(labels == index).nonzero()[: settings.images_per_class, 0] for index in range(int(labels.max()) + 1)]
        # An item is a whole step, so that no two ranks add to the same score.
        steps = _Steps(store, labels, torch.cat(first).sort().values, contrast, at_least=trainer.world_size)
        trainer.predict(module, DataLoader(steps, batch_size=None), return_predictions=False)
        # The ranks' sums are added up on each of them by now; one writes.
        if bench.run.rank:
            return
        result = module.result()
        # NaN is sorted before every number: such latents would be selected first.
        if not result.scores.scores.isfinite().all():
            raise ValueError(f"scores for {attribute.name} are not finite; look at the SAE's health (sae.training.lr).")
        # safetensors refuses views that are not contiguous.
        found = {"scores": result.scores.scores.contiguous(), "activation": result.activation.contiguous()}
        save_file(found, folder / "scores.safetensors")
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
        rows: Tensor,
        contrast: ActivationStore | None = None,
        *,
        at_least: int = 1,
    ) -> None:
        self.store, self.labels, self.rows = store, labels, rows
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
        for rows in self.rows.split(64):
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
