"""A judge that was never trained on labels: CLIP compares each face with descriptions of the classes."""

from collections.abc import Mapping, Sequence
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from difflens.judges.clip import OpenClipModel
from difflens.judges.faces import FaceCropper, WholeImage, read_faces
from difflens.store.fingerprints import fingerprint


class ZeroShotJudge:
    """CLIP with an ensemble of prompts per class (Radford et al., 2021, section 3.1.4) as a `Judge`.

    A class is the mean of the unit-norm embeddings of its phrases in all templates; its logit is CLIP's scale times the
    cosine of a face with that mean. An image without a face has rows of NaN.

    Args:
        clip: the embeddings.
        prompts: attribute → class → phrases, such as `a woman`.
        templates: sentences with one `{}` for the phrase.
        faces: what of an image CLIP sees.

    Raises:
        ValueError: a class has no phrase, an attribute fewer than two classes, or a template no `{}`.
    """

    def __init__(
        self,
        clip: OpenClipModel,
        *,
        prompts: Mapping[str, Mapping[str, Sequence[str]]],
        templates: Sequence[str],
        faces: FaceCropper | None = None,
    ) -> None:
        self.clip, self.faces, self.name = clip, faces or WholeImage(), f"zero-shot {clip.name}"
        phrases = {a: {c: list(words) for c, words in classes.items()} for a, classes in prompts.items()}
        empty = [a for a, classes in phrases.items() if len(classes) < 2 or not all(classes.values())]
        unfilled = [template for template in templates if template.count("{}") != 1]
        if empty or unfilled or not templates:
            raise ValueError(
                f"a zero-shot judge needs two classes with phrases per attribute (not so: {empty}) and templates with "
                f"one {{}} each (not so: {unfilled}; {len(templates)} in all)."
            )
        self.classes: Mapping[str, tuple[str, ...]] = {a: tuple(classes) for a, classes in phrases.items()}
        self._phrases, self._templates = phrases, list(templates)
        described = {"clip": clip.fingerprint, "prompts": phrases, "templates": self._templates}
        self.fingerprint = fingerprint({**described, "faces": self.faces.name})

    @torch.inference_mode()
    def __call__(self, images: Float[Tensor, "images channels height width"]) -> dict[str, Tensor]:
        """See `Judge`."""
        # Before the images: CLIP holds one tower at a time, and that of the texts is needed only once.
        texts, scale = self._described
        width = next(iter(texts.values())).shape[1]
        embeddings = read_faces(images, self.faces, self.clip.embed_photographs, width=width, batch=self.clip.batch)
        return {a: scale * embeddings @ each.to(embeddings).mT for a, each in texts.items()}

    def free(self) -> None:
        """Give CLIP's memory back; the classes' embeddings are kept."""
        self.clip.free()

    @cached_property
    def _described(self) -> tuple[dict[str, Tensor], float]:
        """The classes' embeddings [C, embed] of each attribute, for which CLIP reads texts once, and CLIP's scale."""
        texts = {
            a: torch.stack([self._ensemble(words) for words in classes.values()])
            for a, classes in self._phrases.items()
        }
        return texts, self.clip.scale

    def _ensemble(self, words: Sequence[str]) -> Tensor:
        texts = [template.format(word) for word in words for template in self._templates]
        # A mean of unit vectors is shorter than 1, and the shorter the more they differ: without a new
        # length, classes of varied phrases would get smaller logits.
        mean = self.clip.embed_texts(texts).mean(0)
        return mean / mean.norm()
