"""The Python interface: a run's SAE and features, on any supported diffusers pipeline, and FD of tensors."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from diffusers import DiffusionPipeline
from jaxtyping import Float, Num
from safetensors.torch import load_file
from torch import Tensor

from difflens.attribution.statistics import CodeStatistics
from difflens.data.naming import Naming, read_naming
from difflens.methods.assignment import Quota, fewest_pushes
from difflens.methods.base import Given, LocatedFeatures, Method, Steering, Window
from difflens.metrics.fairness import FairnessDiscrepancy, FairnessResult
from difflens.models.steered import edited_pipeline
from difflens.probes.base import Probe, load_probe
from difflens.report.run_folder import baseline, read_run
from difflens.sae.base import SparseAutoencoder
from difflens.sae.base import load_sae as read_sae
from difflens.store.artifacts import Artifact
from difflens.store.past_run import RunArtifacts
from difflens.store.targets import saved_class
from difflens.vocabulary import Attribute, FeatureSet, Site

DECIDES_EDIT = ("fit", "strength", "calibration", "times")
"""Entries of the spec of steered images that decide the edit; the others say of which images it was."""

LEAST_PUSH = 1e-6
"""A smaller share of images pushed towards a class is rounding."""


@dataclass(frozen=True)
class Features:
    """What a run found of one attribute: the edit at the run's strengths, and the grid of steps it belongs to.

    Attributes:
        mitigation: the edit of the method that the run was made with; of difflens, its `features` are the latents per class
            and its `sae` the autoencoder.
        timesteps: the scheduler's timesteps on which features and probe were found.
        natural: share [C] of each class among the run's unedited images; None if it was not measured, or differs by prompt.
        naming: the words by which prompts name a class.
    """

    mitigation: Steering
    timesteps: tuple[float, ...]
    natural: Tensor | None = None
    naming: Naming = field(default_factory=Naming)

    @property
    def attribute(self) -> Attribute:
        """The bias that the features carry."""
        return self.mitigation.attribute


def load_sae(run: str | Path) -> SparseAutoencoder:
    """The sparse autoencoder of a run; it takes raw activations of the run's site.

    Raises:
        ValueError: the folder is no run, or the run trained or used none.
    """
    artifacts = RunArtifacts(run, "sae")
    return read_sae(artifacts.read("sae", artifacts.of("sae")[-1]).folder / "autoencoder")


def load_features(run: str | Path) -> Features:
    """What a run fitted of one attribute, as the edit it made of it; without what it held the other attributes by.

    Raises:
        ValueError: the folder is no run, it steered nothing or with several strengths, or its strengths belong to prompts.
    """
    chain = RunArtifacts(run, "steered")
    steered = _steered(chain)
    fitted = chain.read("fit", steered.spec["fit"])
    attribute = Attribute(fitted.spec["attribute"]["name"], tuple(fitted.spec["attribute"]["classes"]))
    # Not those of the images: task=transfer makes some on other grids than the fit's.
    timesteps = tuple(fitted.spec["model"]["timesteps"])
    given = Given(
        attribute,
        # The fit's own: a method that learns from the model itself needs no activations that could tell.
        Site(**fitted.spec["site"]),
        len(timesteps),
        probe=_probe(chain, fitted.spec["probe"]),
        located=_located(chain, fitted.spec, attribute),
    )
    edit = build_method(fitted.spec["method"]).edit(given, load_file(fitted.folder / "fit.safetensors"))
    strength = _strength(chain, steered.spec, attribute)
    # Multiples are of the distance from neutral, which is 1 for an edit that scales and 0 for others.
    if "times" in steered.spec:
        strength = edit.neutral + steered.spec["times"] * (strength - edit.neutral)
    return Features(edit.with_strength(strength), timesteps, _natural(chain.run, attribute), _naming(chain.run))


def build_method(described: Mapping[str, Any]) -> Method:
    """The method that a fit was made by, of its class and settings.

    Raises:
        ValueError: its class is no method of a package that is let in.
    """
    # A run's folder may come from anybody; nothing is imported but from packages that are let in.
    kind: type[Method] = saved_class(str(described["class"]), Method)  # type: ignore[type-abstract]
    settings = {key: _setting(value) for key, value in described["settings"].items() if key != "_target_"}
    return kind(**settings)


def _setting(value: Any) -> Any:
    """A setting as the constructor takes it; windows are the only objects among them."""
    if isinstance(value, Mapping) and str(value.get("_target_")) == f"{Window.__module__}.{Window.__qualname__}":
        return Window(value["start"], value["stop"])
    return value


def _probe(chain: RunArtifacts, fingerprint: str | None) -> Probe | None:
    return None if fingerprint is None else load_probe(chain.read("probe", fingerprint).folder)[0]


def _located(chain: RunArtifacts, spec: Mapping[str, Any], attribute: Attribute) -> LocatedFeatures | None:
    """What the attribution stage found, where the method asked for it."""
    if spec["statistics"] is None:
        return None
    statistics = chain.read("statistics", spec["statistics"])
    sae = chain.read("sae", chain.read("attribution", statistics.spec["attribution"]).spec["sae"])
    features = FeatureSet(attribute, {name: tuple(group) for name, group in spec["latents"].items()})
    usual = CodeStatistics(**load_file(statistics.folder / "statistics.safetensors"))
    return LocatedFeatures(read_sae(sae.folder / "autoencoder"), features, usual)


def _natural(run: Path, attribute: Attribute) -> Tensor | None:
    """The classes' shares among the unedited images of a run, as its metrics.json has them."""
    row = baseline(read_run(run).metrics) or {}
    shares = [(row.get("shares") or {}).get(name, {}).get("share") for name in attribute.classes]
    # Shares of several prompts together would hold for none of them.
    return None if row.get("prompts") or None in shares else torch.tensor(shares, dtype=torch.float64)


def _naming(run: Path) -> Naming:
    """The words of the run's own configuration; of one that cannot be read none."""
    try:
        text = (run / "config.yaml").read_text(encoding="utf-8", errors="replace")
        return read_naming(yaml.safe_load(text)["attribute"])
    except (OSError, yaml.YAMLError, KeyError, TypeError):
        return Naming()


def _steered(chain: RunArtifacts) -> Artifact:
    """The steered images of a run; of several sets any one, since all must be of the same edit."""
    found = [chain.read("steered", fingerprint) for fingerprint in chain.of("steered")]
    edits = {json.dumps([artifact.spec.get(key) for key in DECIDES_EDIT], sort_keys=True) for artifact in found}
    if len(edits) > 1:
        raise ValueError(
            f"the run {str(chain.run)!r} steered with {len(edits)} different strengths, as task=dose does; give a run that "
            "steered with one, such as that of `difflens task=steer`."
        )
    return found[-1]


def _strength(chain: RunArtifacts, spec: Mapping[str, Any], attribute: Attribute) -> Tensor:
    if "strength" in spec:
        strength = torch.tensor(spec["strength"], dtype=torch.float32)
    else:
        strength = load_file(chain.read("calibration", spec["calibration"]).folder / "calibration.safetensors")[
            "strength"
        ]
    if strength.shape != (len(attribute.classes),):
        raise ValueError("the run's strengths were calibrated per prompt; use a run with one strength per class.")
    return strength


@contextmanager
def steer(
    pipeline: DiffusionPipeline,
    features: Features,
    *,
    target: Mapping[str, float] | None = None,
    strength: Mapping[str, float] | None = None,
    seed: int = 0,
    gate: bool = True,
) -> Iterator[DiffusionPipeline]:
    """Inside the block every call of the pipeline pushes its images towards a target distribution of classes.

    All images of the block together get classes in exact quota, shuffled, also where each call makes few of them or one.
    Where the run knows no strength for a class that its model shows too often, because no image was ever pushed towards it
    (`mitigation.assignment=oracle`), as few images are pushed towards the others as make the target expected,
    and the rest stay untouched: the shares then vary as those of a random sample do. A run with
    `mitigation.assignment=exact` has strengths for all classes. The pipeline is as it was after the block.

    Images of a prompt that names a class, such as `a face of a female doctor`, are left alone, and the quota is that of
    the others. It is told by the words of the run's attribute (`synonyms` in its file); a call that is given embeddings
    instead of prompts has none to read.

    Args:
        pipeline: a diffusers pipeline with a U-Net, unconditional or text-to-image, such as the one the run studied.
        features: of `load_features`.
        target: share per class; None for equal shares.
        strength: per class; None for the run's own.
        seed: shuffles who gets which class.
        gate: False pushes the images of prompts that name a class too.

    Raises:
        ValueError: a class is unknown, or the target needs images of one for which there is no strength; the pipeline has
            no such site, it samples on another grid of timesteps than the features were found on, or its scheduler does not
            know the update.
    """
    mitigation, attribute = features.mitigation, features.attribute
    if mitigation.before_call:
        raise ValueError(
            f"{type(mitigation).__name__} changes what a pipeline is called with, so it cannot act inside a call of yours; "
            "use the features of another method."
        )
    shares = attribute.target(target)
    if strength is not None:
        # A class left out is at the neutral strength, at which an edit changes no bit.
        wanted = [strength.get(name, mitigation.neutral) for name in attribute.classes]
        for name in strength:
            # For its error, where a class is unknown.
            attribute.index(name)
        mitigation = mitigation.with_strength(torch.tensor(wanted))
    assign = _quota(shares, mitigation, features.natural, seed)
    alone = (lambda prompt: bool(features.naming.named(prompt))) if gate else (lambda _: False)
    with edited_pipeline(pipeline, mitigation, timesteps=features.timesteps, assign=assign, leaves_alone=alone):
        yield pipeline


def _quota(target: Tensor, mitigation: Steering, natural: Tensor | None, seed: int) -> Quota:
    """Every image gets a class, or, where some class has no strength, only as many as must."""
    # Images pushed at the neutral strength stay as they are, and the quota would be missed.
    inert = mitigation.strength == mitigation.neutral
    if not bool((inert & (target > 0)).any()):
        return Quota(target, seed=seed)
    parts = None if natural is None else fewest_pushes(target, natural)
    # The last part is that of the untouched images, which need no strength.
    lacking = inert & (target > 0 if parts is None else parts[:-1] > LEAST_PUSH)
    if parts is None or bool(lacking.any()):
        names = [name for name, absent in zip(mitigation.attribute.classes, lacking.tolist(), strict=True) if absent]
        raise ValueError(
            f"the run never pushed an image towards {' or '.join(names)}, so it has no strength for it; take a run with "
            "mitigation.assignment=exact, or give strength={class: number}."
        )
    return Quota(parts, seed=seed, untouched=True)


def fairness_discrepancy(
    logits: Num[Tensor, "images classes"],
    classes: Sequence[str],
    target: Mapping[str, float] | Float[Tensor, "classes"] | None = None,
) -> FairnessResult:
    """FD of a judge's logits, soft and hard, with its chance level, unbiased square, shares and their intervals.

    Columns of the logits are those of `classes`, a row of NaN is an image without a face; `target` gives a share per
    class, and equal shares if None.
    """
    shares = Attribute("attribute", tuple(classes)).target(target) if isinstance(target, Mapping) else target
    shares = None if shares is None else shares.cpu()
    # Images without a face are counted beside the shares, never dropped without a word (METHOD section 7).
    metric = FairnessDiscrepancy(classes, shares, missing="count")
    metric.update(logits)
    return metric.compute()
