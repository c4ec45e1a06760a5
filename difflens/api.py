"""The Python interface: a run's SAE and features, on any supported diffusers pipeline, and FD of tensors."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler, DiffusionPipeline
from jaxtyping import Float, Num
from safetensors.torch import load_file
from torch import Tensor

from difflens.attribution.statistics import CodeStatistics
from difflens.methods.base import Window
from difflens.methods.quota import Quota, fewest_pushes
from difflens.methods.sae_features import SaeFeatureMitigation
from difflens.metrics.fairness import FairnessDiscrepancy, FairnessResult
from difflens.models.live_pipeline import edited_pipeline
from difflens.probes.storage import load_probe
from difflens.report.run_folder import baseline, read_run
from difflens.sae.base import SparseAutoencoder
from difflens.sae.storage import load_sae as read_sae
from difflens.store.artifacts import Artifact
from difflens.store.past_run import RunArtifacts
from difflens.vocabulary import Attribute, FeatureSet, Site

DECIDES_EDIT = ("mitigation", "attribution", "latents", "strength", "calibration", "times")
"""Entries of the spec of steered images that decide the edit; the others say of which images it was."""

LEAST_PUSH = 1e-6
"""A smaller share of images pushed towards a class is rounding."""


@dataclass(frozen=True)
class Features:
    """What a run found of one attribute: the edit at the run's strengths, and the grid of steps it belongs to.

    Attributes:
        mitigation: the edit; its `features` are the latents per class, its `sae` the autoencoder.
        timesteps: the scheduler's timesteps on which features and probe were found.
        natural: share [C] of each class among the run's unedited images; None if it was not measured, or differs by prompt.
    """

    mitigation: SaeFeatureMitigation
    timesteps: tuple[float, ...]
    natural: Tensor | None = None

    @property
    def attribute(self) -> Attribute:
        """The bias that the features carry."""
        return self.mitigation.attribute


def load_sae(run: str | Path) -> SparseAutoencoder:
    """The sparse autoencoder of a run; it takes raw activations of the run's site.

    Raises:
        ValueError: the folder is no run, or the run trained or used none.
    """
    artifacts = RunArtifacts(run)
    return read_sae(artifacts.read("sae", artifacts.of("sae")[-1]).folder / "autoencoder")


def load_features(run: str | Path) -> Features:
    """The features that a run located, as the edit it made of them; without what it held the other attributes by.

    Raises:
        ValueError: the folder is no run, it steered nothing or with several strengths, or its strengths belong to prompts.
    """
    chain = RunArtifacts(run)
    steered = _steered(chain)
    statistics = chain.read("statistics", steered.spec["attribution"])
    attribution = chain.read("attribution", statistics.spec["attribution"])
    sae, probe = (chain.read(kind, attribution.spec[kind]) for kind in ("sae", "probe"))
    activations = chain.read("activations", sae.spec["activations"])
    described, settings = probe.spec["attribute"], steered.spec["mitigation"]
    attribute = Attribute(described["name"], tuple(described["classes"]))
    latents = {name: tuple(group) for name, group in steered.spec["latents"].items()}
    window, usual = settings["window"], CodeStatistics(**load_file(statistics.folder / "statistics.safetensors"))
    if settings.get("unit") == "code":
        usual = usual._replace(level=torch.ones_like(usual.level))
    mitigation = SaeFeatureMitigation(
        read_sae(sae.folder / "autoencoder"),
        FeatureSet(attribute, latents),
        usual,
        site=Site(**{key: value for key, value in activations.spec["site"].items() if key != "_target_"}),
        strength=torch.zeros(len(attribute.classes)),
        window=Window(window["start"], window["stop"]),
        gate=load_probe(probe.folder)[0] if settings["gate"] else None,
        **{key: settings[key] for key in ("mode", "places", "suppress", "update", "protocol")},
    )
    strength = _strength(chain, steered.spec, attribute)
    if "times" in steered.spec:
        strength = mitigation.neutral + steered.spec["times"] * (strength - mitigation.neutral)
    timesteps = tuple(activations.spec["model"]["timesteps"])
    return Features(mitigation.with_strength(strength), timesteps, _natural(chain.run, attribute))


def _natural(run: Path, attribute: Attribute) -> Tensor | None:
    """The classes' shares among the unedited images of a run, as its metrics.json has them."""
    row = baseline(read_run(run).metrics) or {}
    shares = [(row.get("shares") or {}).get(name, {}).get("share") for name in attribute.classes]
    return None if row.get("prompts") or None in shares else torch.tensor(shares, dtype=torch.float64)


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
        strength = torch.tensor(spec["strength"])
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
) -> Iterator[DiffusionPipeline]:
    """Inside the block every call of the pipeline pushes its images towards a target distribution of classes.

    All images of the block together get classes in exact quota, shuffled, also where each call makes few of them or one.
    Where the run knows no strength for a class that its model shows too often, because no image was ever pushed towards it
    (`mitigation.assignment=affinity`, the default), as few images are pushed towards the others as make the target expected,
    and the rest stay untouched: the shares then vary as those of a random sample do. A run with
    `mitigation.assignment=exact` has strengths for all classes. The pipeline is as it was after the block.

    Args:
        pipeline: a diffusers pipeline with a U-Net, unconditional or text-to-image, such as the one the run studied.
        features: of `load_features`.
        target: share per class; None for equal shares.
        strength: per class; None for the run's own.
        seed: shuffles who gets which class.

    Raises:
        ValueError: a class is unknown, or the target needs images of one for which there is no strength; the pipeline has
            no such site, it samples on another grid of timesteps than the features were found on, or its scheduler does not
            know the update.
    """
    mitigation, attribute = features.mitigation, features.attribute
    shares = attribute.target(target)
    if strength is not None:
        wanted = [strength.get(name, mitigation.neutral) for name in attribute.classes]
        for name in strength:
            attribute.index(name)
        mitigation = mitigation.with_strength(torch.tensor(wanted))
    if mitigation.update == "asymmetric" and not isinstance(pipeline.scheduler, DDIMScheduler):
        raise ValueError(
            f"the asymmetric update needs a DDIMScheduler, the pipeline has {type(pipeline.scheduler).__name__}; give it "
            "one, or take a run with mitigation.update=symmetric."
        )
    assign = _quota(shares, mitigation, features.natural, seed)
    with edited_pipeline(pipeline, mitigation, timesteps=features.timesteps, assign=assign):
        yield pipeline


def _quota(target: Tensor, mitigation: SaeFeatureMitigation, natural: Tensor | None, seed: int) -> Quota:
    """Every image gets a class, or, where some class has no strength, only as many as must."""
    inert = mitigation.strength == mitigation.neutral
    if not bool((inert & (target > 0)).any()):
        return Quota(target, seed=seed)
    parts = None if natural is None else fewest_pushes(target, natural)
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

    Args:
        logits: [N, C] of the judge, columns in the order of `classes`; a row of NaN is an image without a face.
        classes: their names.
        target: share per class; None for equal shares.
    """
    shares = Attribute("attribute", tuple(classes)).target(target) if isinstance(target, Mapping) else target
    shares = None if shares is None else shares.cpu()
    metric = FairnessDiscrepancy(classes, shares, missing="count")
    metric.update(logits)
    return metric.compute()
