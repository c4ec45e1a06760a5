"""What the scoring judge and the extractor read off images, a bounded number of them at once."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from rich.progress import Progress
from torch import Tensor

from difflens.metrics.judges import FeatureExtractor, Judge, read_classes
from difflens.metrics.official import OUTPUTS
from difflens.mitigation.goals import Goals
from difflens.types import Attribute

ANSWER = "answer."
"""Prefix of the attributes' names among a reading's tensors."""


@dataclass(frozen=True)
class Study:
    """What is measured: the attribute under study and its targets, the other attributes, and the rules.

    Attributes:
        attribute: the bias.
        goals: the target distributions.
        others: attributes that leakage is measured on.
        judge: scores the images.
        extractor: their features and embeddings.
        missing: policy for images without a face, `count` or `error`.
        kid_subset: images per random subset of KID.
        subject: what prompts are about, an attribute of which each names one class; None where that is not measured.
    """

    attribute: Attribute
    goals: Goals
    others: tuple[Attribute, ...]
    judge: Judge
    extractor: FeatureExtractor
    missing: str
    kid_subset: int
    subject: Attribute | None = None

    @property
    def studied(self) -> tuple[Attribute, ...]:
        """The attribute and all others."""
        return (self.attribute, *self.others)


@dataclass(frozen=True)
class Reading:
    """All that is kept of a set of images.

    Attributes:
        image_ids: their ids [N].
        answers: attribute → logits [N, all classes of the judge]; a row of NaN is an image without a face.
        features: of the extractor [N, dim].
        embeddings: of the extractor [N, embed].
        outputs: the judge's own outputs under `protocol: official`, else None.
    """

    image_ids: Int[Tensor, "images"]
    answers: dict[str, Tensor]
    features: Float[Tensor, "images dim"]
    embeddings: Float[Tensor, "images embed"]
    outputs: Float[Tensor, "images outputs"] | None

    def logits(self, judge: Judge, attribute: Attribute) -> Float[Tensor, "images classes"]:
        """The judge's logits of an attribute's classes, in its order."""
        return read_classes(judge, attribute, self.answers)

    def take(self, rows: Int[Tensor, "rows"]) -> "Reading":
        """The images at these positions, with ids from 0 in this order."""
        everything = {name: values[rows] for name, values in self.tensors().items()}
        return Reading.of({**everything, "image_ids": torch.arange(len(rows))})

    def tensors(self) -> dict[str, Tensor]:
        """All of it by name, to be stored."""
        named = {"image_ids": self.image_ids, "features": self.features, "embeddings": self.embeddings}
        if self.outputs is not None:
            named["outputs"] = self.outputs
        return {**named, **{f"{ANSWER}{name}": logits for name, logits in self.answers.items()}}

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> "Reading":
        """What `tensors` gave."""
        answers = {name.removeprefix(ANSWER): part for name, part in tensors.items() if name.startswith(ANSWER)}
        ids, features, embeddings = (tensors[name] for name in ("image_ids", "features", "embeddings"))
        return cls(ids, answers, features, embeddings, tensors.get("outputs"))


def read_images(
    pieces: Iterable[Float[Tensor, "_ 3 height width"]], image_ids: Int[Tensor, "images"], study: Study, *, title: str
) -> Reading:
    """Read images in [0, 1], which come in pieces and are never all held, in the order of their ids."""
    judge, extractor = study.judge, study.extractor
    official = getattr(judge, "protocol", None) == "official"
    parts: list[tuple[dict[str, Tensor], Tensor, Tensor, Tensor]] = []
    with Progress(transient=True) as progress:
        bar = progress.add_task(title, total=len(image_ids))
        for piece in pieces:
            outputs = judge.outputs(piece) if official else torch.empty(len(piece), OUTPUTS)  # type: ignore[attr-defined]
            embeddings = extractor.embed_images(piece)  # type: ignore[attr-defined]
            parts.append((judge(piece), extractor(piece), embeddings, outputs))
            progress.advance(bar, len(piece))
    answers, features, embeddings, outputs = zip(*parts, strict=True)
    joined = {name: torch.cat([answer[name] for answer in answers]) for name in answers[0]}
    return Reading(
        image_ids, joined, torch.cat(features), torch.cat(embeddings), torch.cat(outputs) if official else None
    )


def protocol(study: Study) -> dict[str, Any]:
    """What decides a judge's numbers, for `metrics.json`."""
    faces = getattr(study.judge, "faces", None)
    return {
        "judge": study.judge.name,  # type: ignore[attr-defined]
        "judge_protocol": getattr(study.judge, "protocol", None),
        "faces": getattr(faces, "name", None),
        "missing_faces": study.missing,
    }
