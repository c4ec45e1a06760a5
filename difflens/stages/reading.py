"""What the scoring judge and the extractor read off images, a bounded number of them at once."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from difflens.judges.faces import float_pieces
from difflens.judges.protocol import OTHER, FeatureExtractor, Judge, not_validated, read_classes
from difflens.judges.weights import free
from difflens.methods.assignment import Goals
from difflens.store.progress import Progressing
from difflens.vocabulary import Attribute

ANSWER = "answer."
"""Prefix of the attributes' names among a reading's tensors."""

CROSSED = ("gender", "age", "race")
"""Attributes whose product classes are measured."""


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
        recalls: attribute → class → the share of its images that the scoring judge reads as it, where that is known.
    """

    attribute: Attribute
    goals: Goals
    others: tuple[Attribute, ...]
    judge: Judge
    extractor: FeatureExtractor
    missing: str
    kid_subset: int
    subject: Attribute | None = None
    recalls: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    @property
    def studied(self) -> tuple[Attribute, ...]:
        """The attribute and all others."""
        return (self.attribute, *self.others)

    @property
    def crossed(self) -> tuple[Attribute, ...]:
        """The attributes whose product classes are measured, those under study first, without the class of all the rest."""
        parts = {part.name: part for attribute in self.studied for part in attribute.components if part.name in CROSSED}
        return tuple(Attribute(p.name, tuple(name for name in p.classes if name != OTHER)) for p in parts.values())


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
        # Numbered anew, so that images of one name have one id in both folders of a pair.
        everything = {name: values[rows] for name, values in self.tensors().items()}
        return Reading.of({**everything, "image_ids": torch.arange(len(rows))})

    def replaced(self, rows: Int[Tensor, "rows"], others: "Reading") -> "Reading":
        """The same with what was read off other images at these positions; ids stay."""
        new, ids = others.tensors(), {"image_ids": self.image_ids}
        changed = {name: values.index_copy(0, rows, new[name]) for name, values in self.tensors().items()}
        return Reading.of({**changed, **ids})

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


class Reader(NamedTuple):
    """What one network reads off images [N, 3, H, W]: tensors of N rows by name; `free` gives its memory back."""

    read: Callable[[Tensor], dict[str, Tensor]]
    free: Callable[[], None] | None


def read_images(
    pieces: Callable[[], Iterable[Float[Tensor, "_ 3 height width"]]],
    image_ids: Int[Tensor, "images"],
    study: Study,
    *,
    title: str,
) -> Reading:
    """Read images in [0, 1], which come in pieces and are never all held, in the order of their ids.

    Networks whose memory can be given back have it one after the other: the images are gone through once for each.
    """
    found: dict[str, list[Tensor]] = {}
    # `pieces` is a function, since every pass needs the images from the beginning.
    passes = _passes(study)
    with Progressing(title, len(image_ids) * len(passes)) as display:
        for readers in passes:
            for piece in pieces():
                for name, values in chain.from_iterable(reader.read(piece).items() for reader in readers):
                    # What was read waits in main memory; the device holds one piece.
                    found.setdefault(name, []).append(values.cpu())
                display.advance(len(piece))
            for reader in readers:
                if reader.free is not None:
                    reader.free()
    return Reading.of({"image_ids": image_ids, **{name: torch.cat(parts) for name, parts in found.items()}})


def read_judge(images: UInt8[Tensor, "images 3 height width"], study: Study) -> Float[Tensor, "images classes"]:
    """The judge's logits of the studied attribute alone; a row of NaN is an image without a face."""
    parts = [study.judge(piece) for piece in float_pieces(images)]
    answers = {part.name: torch.cat([each[part.name].cpu() for each in parts]) for part in study.attribute.components}
    free(study.judge)
    return read_classes(study.judge, study.attribute, answers)


def _passes(study: Study) -> list[list[Reader]]:
    """The networks that stay in memory together, then each of the others alone."""
    # The judge, and the extractor or each of its parts that has a network of its own.
    whole = {"extractor": (partial(_features, study.extractor), getattr(study.extractor, "free", None))}
    parts = getattr(study.extractor, "parts", whole).values()
    judge = Reader(partial(_answers, study.judge), getattr(study.judge, "free", None))
    readers = [judge, *(Reader(read, give_back) for read, give_back in parts)]
    staying = [reader for reader in readers if reader.free is None]
    return [*([staying] if staying else []), *([reader] for reader in readers if reader.free is not None)]


def _features(extractor: Any, images: Tensor) -> dict[str, Tensor]:
    return {"features": extractor(images), "embeddings": extractor.embed_images(images)}


def _answers(judge: Any, images: Tensor) -> dict[str, Tensor]:
    # The released FD is one of raw outputs, which cannot be told from the attributes' logits (METHOD section 9).
    official = getattr(judge, "protocol", None) == "official"
    answers = {f"{ANSWER}{name}": logits for name, logits in judge(images).items()}
    return {**answers, **({"outputs": judge.outputs(images)} if official else {})}


def protocol(study: Study) -> dict[str, Any]:
    """What decides a judge's numbers and the extractor's, for `metrics.json`."""
    faces, doubtful = getattr(study.judge, "faces", None), not_validated(study.judge, study.studied)
    return {
        "judge": study.judge.name,  # type: ignore[attr-defined]
        **({"not_validated": ", ".join(doubtful)} if doubtful else {}),
        "judge_protocol": getattr(study.judge, "protocol", None),
        "faces": getattr(faces, "name", None),
        "missing_faces": study.missing,
        "extractor": study.extractor.name,
        "resize": study.extractor.resize,
        "clip": getattr(study.extractor, "embeddings", study.extractor).name,
        "intersectional_target": _crossed_target(study),
    }


def _crossed_target(study: Study) -> str | None:
    """What the discrepancy over product classes is measured from, in words."""
    own = {part.name for part in study.attribute.components}
    asked = [attribute.name for attribute in study.crossed if attribute.name in own]
    equal = [attribute.name for attribute in study.crossed if attribute.name not in own]
    words = ((asked, "as asked for"), (equal, "in equal shares"))
    return "; ".join(f"{', '.join(names)} {how}" for names, how in words if names) or None
