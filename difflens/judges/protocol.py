"""What scores the images: judges, feature extractors, and the reference statistics an extractor left behind."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int, Num
from torch import Tensor

from difflens.metrics.functional import mean_and_covariance
from difflens.vocabulary import Attribute

OTHER = "other"
"""The class of all the rest, which a judge may know beside an attribute's own classes."""


@runtime_checkable
class Judge(Protocol):
    """Reads attributes off images. A judge of one's own is a class with these four members and a YAML file that names it.

    - `name` is what tables and the report call it.
    - `fingerprint` changes whenever its answers could: a hash of the weights and of all settings. What it read is stored
      under it, so that a judge that changed under the same fingerprint would be given its old answers.
    - `classes` maps each attribute's name to its classes in the order of the logits' columns. Names are those of
      `conf/attribute` (`gender: [female, male]`); the order is its own, and a class `other` takes what fits none.
    - A call turns images [N, 3, H, W], RGB in [0, 1], of any size and never in a batch of a certain size, into attribute →
      logits [N, C]: float32, on the images' device, their softmax the probabilities. An image's row may not depend on the
      other images. A row of NaN says that there is no face; any other NaN or infinity is refused.

    If it has `free()`, that is called whenever its memory is needed for another network; it must work again afterwards.
    Networks are best built there and then: a judge is made before it is known whether it will be asked.

    If it has `not_validated`, names of attributes, then nobody has measured how often it reads those right, and every table
    with them says so.

    A classifier in an ONNX file needs no class (`OnnxJudge`, `conf/judge/network/onnx.yaml`). For any other, with a file
    `conf/judge/mine.yaml` in a folder of one's own,

        scores: {_target_: mine.Judge, threshold: 0.5}    # measures; the constructor takes what stands here
        labels: {_target_: mine.Other}                    # labels and calibrates: not the same network
        others: [gender]                                  # attributes on which leakage is measured

    and `DIFFLENS_ALLOW_TARGETS=mine difflens --config-dir=conf judge=mine`.
    """

    name: str
    fingerprint: str
    classes: Mapping[str, tuple[str, ...]]

    def __call__(self, images: Float[Tensor, "images 3 height width"]) -> dict[str, Tensor]:
        """Attribute → logits [N, C]."""
        ...


@runtime_checkable
class FeatureExtractor(Protocol):
    """Turns images [N, 3, H, W] in [0, 1] into features [N, dim]; `resize` names how it resizes them."""

    name: str
    dim: int
    resize: str

    def __call__(self, images: Float[Tensor, "images 3 height width"]) -> Float[Tensor, "images dim"]:
        """Features [N, dim]."""
        ...


@runtime_checkable
class Clip(Protocol):
    """Unit-norm embeddings of images in [0, 1] and of texts in one space."""

    def embed_images(self, images: Float[Tensor, "images 3 height width"]) -> Float[Tensor, "images embed"]:
        """Of finished images, on the CPU."""
        ...

    def embed_pixels(self, images: Float[Tensor, "images 3 height width"]) -> Float[Tensor, "images embed"]:
        """The same with gradients, where the network is."""
        ...

    def embed_texts(self, texts: list[str]) -> Float[Tensor, "texts embed"]:
        """Of texts, on the CPU."""
        ...


def select_classes(judge: Judge, attribute: Attribute) -> Int[Tensor, "classes"]:
    """The judge's column of each of the attribute's classes: `logits[:, columns]` is in the attribute's order.

    A softmax after the selection is conditional on these classes; `other_share` tells how much lies outside them.

    Raises:
        ValueError: the judge does not know the attribute or one of its classes.
    """
    if attribute.name not in judge.classes:
        raise ValueError(f"the judge does not know attribute {attribute.name!r}; it reads {list(judge.classes)}.")
    known = tuple(judge.classes[attribute.name])
    unknown = [name for name in attribute.classes if name not in known]
    if unknown:
        raise ValueError(f"the judge has no class {unknown} of {attribute.name!r}; its classes are {list(known)}.")
    # By name and never by position: the released code itself orders gender differently from file to file.
    return torch.tensor([known.index(name) for name in attribute.classes])


def read_classes(
    judge: Judge, attribute: Attribute, answer: Mapping[str, Num[Tensor, "images _"]]
) -> Num[Tensor, "images classes"]:
    """A judge's logits [N, C] of an attribute's classes, in the attribute's order.

    Those of a product are log-probabilities, the parts taken as independent given the image.

    Raises:
        ValueError: see `select_classes`.
    """
    logits = [answer[part.name][:, select_classes(judge, part)] for part in attribute.components]
    if not attribute.parts:
        return logits[0]
    # Sums of logarithms stand for products of probabilities; the last part varies fastest, as in a product's classes.
    joint = logits[0].new_zeros(len(logits[0]), 1)
    for part in logits:
        joint = (joint[:, :, None] + part.log_softmax(-1)[:, None]).flatten(1)
    return joint


def not_validated(judge: Judge, attributes: Iterable[Attribute]) -> list[str]:
    """Of the attributes, or their parts, those whose reading by this judge nobody has validated."""
    doubtful = getattr(judge, "not_validated", ())
    return [part.name for attribute in attributes for part in attribute.components if part.name in doubtful]


def other_share(logits: Float[Tensor, "images all"], columns: Int[Tensor, "classes"]) -> float:
    """Mean probability that the judge gives to classes outside `columns`, over the images with a face."""
    # Over all classes the judge knows: after the selection nothing would lie outside any more.
    probabilities = logits[faces_found(logits)].double().softmax(-1)
    return float(1 - probabilities[:, columns].sum(-1).mean()) if logits.shape[-1] > len(columns) else 0.0


def faces_found(logits: Num[Tensor, "images classes"]) -> Bool[Tensor, "images"]:
    """Which images have a face: a row of NaN has none.

    Raises:
        ValueError: a row is NaN or infinite in part, which no judge's answer should be.
    """
    found = logits.isfinite().all(-1)
    # Taken for a missing face, the fault of a network would quietly leave the shares.
    if bool((~found & ~logits.isnan().all(-1)).any()):
        raise ValueError("a judge's logits are partly NaN or infinite; only a row of NaN means that it found no face.")
    return found


def missing_faces(found: Bool[Tensor, "images"], *, policy: str) -> int:
    """Number of images without a face.

    Raises:
        ValueError: there is one and the policy is `error`, or the policy is unknown.
    """
    if policy not in ("count", "error"):
        raise ValueError(f"the policy for missing faces is 'count' or 'error', got {policy!r}.")
    missing = int((~found).sum())
    if missing and policy == "error":
        raise ValueError(
            f"the judge found no face in {missing} of {len(found)} images; missing_faces=count goes on and reports them."
        )
    return missing


@dataclass(frozen=True, eq=False)
class ReferenceStatistics:
    """Mean and covariance of an extractor's features on n reference images.

    Args:
        mean: [dim], float64.
        covariance: unbiased [dim, dim], float64.
        n: number of reference images.
        extractor: name of the extractor.
        resize: how it resized the images.
    """

    mean: Float[Tensor, "dim"]
    covariance: Float[Tensor, "rows columns"]
    n: int
    extractor: str
    resize: str

    def __post_init__(self) -> None:
        dim = self.mean.numel()
        # float64, since the distance of two close distributions is a small difference of large traces.
        assert self.mean.dtype == self.covariance.dtype == torch.float64
        if self.mean.shape != (dim,) or self.covariance.shape != (dim, dim) or self.n < 2:
            shapes = f"mean {list(self.mean.shape)}, covariance {list(self.covariance.shape)}, n={self.n}"
            raise ValueError(f"reference statistics need mean [d], covariance [d, d] and n ≥ 2, got {shapes}.")

    @classmethod
    def from_features(
        cls, features: Num[Tensor, "images dim"], *, extractor: str, resize: str
    ) -> "ReferenceStatistics":
        """Statistics of features [n, dim], n ≥ 2."""
        mean, covariance = (moment.cpu() for moment in mean_and_covariance(features))
        return cls(mean, covariance, len(features), extractor, resize)

    @property
    def sha256(self) -> str:
        """Hash of everything these statistics hold; printed beside each distance to them."""
        # Extractor and resizing count too: either gives other statistics of the same images.
        digest = hashlib.sha256(json.dumps([self.extractor, self.resize, self.n]).encode())
        for tensor in (self.mean, self.covariance):
            digest.update(tensor.contiguous().numpy().tobytes())
        return digest.hexdigest()
