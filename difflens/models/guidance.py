"""Classifier-free guidance: which rows of which denoiser call hold which branch, and how the branches are combined."""

import inspect
from dataclasses import dataclass

import torch
from diffusers import DiffusionPipeline
from torch import Tensor

BATCHED = ("both",)
UNGUIDED = ("cond",)
KNOWN_CALLS = (BATCHED, UNGUIDED, ("uncond", "cond"), ("cond", "uncond"))
BRANCHES = ("cond", "uncond", "both")


@dataclass(frozen=True)
class Guidance:
    """How a pipeline guides (Ho & Salimans 2022): uncond + scale · (cond − uncond).

    Args:
        scale: guidance scale.
        rescale: share of the rescaling of Lin et al. (2024, section 3.4).
        calls: the branch each denoiser call of one step holds, in order: `(both,)` for one batch [uncond; cond],
            `(cond,)` without guidance, `(uncond, cond)` or `(cond, uncond)` for a call each.

    Raises:
        ValueError: other calls than these.
    """

    scale: float
    rescale: float
    calls: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.calls not in KNOWN_CALLS:
            known = "; ".join(",".join(calls) for calls in KNOWN_CALLS)
            raise ValueError(f"model.calls must be one of {known}, got {','.join(map(str, self.calls))!r}.")

    def check_branch(self, branch: str) -> None:
        """Check that the pipeline computes a branch, whole, in one denoiser call; else ValueError."""
        if branch not in BRANCHES:
            raise ValueError(f"site.branch of a text-to-image model must be cond, uncond or both, got {branch!r}.")
        if branch != "cond" and self.calls == UNGUIDED:
            raise ValueError(
                f"with guidance {self.scale:g} only the branch cond is computed, got site.branch={branch}."
            )
        if branch == "both" and self.calls != BATCHED:
            raise ValueError("this pipeline calls its denoiser once per branch: site.branch must be cond or uncond.")

    def rows(self, branch: str, images: int) -> tuple[slice | None, ...]:
        """Rows that hold a branch in each denoiser call of a step; None where a call holds none."""
        self.check_branch(branch)
        if self.calls == BATCHED:
            return ({"uncond": slice(0, images), "cond": slice(images, 2 * images), "both": slice(None)}[branch],)
        return tuple(slice(None) if call == branch else None for call in self.calls)

    def batch(self, images: int) -> int:
        """Rows of every denoiser call for `images` images."""
        return 2 * images if self.calls == BATCHED else images

    def combine(self, outputs: dict[str, Tensor]) -> Tensor:
        """The guided estimate from the branches' denoiser outputs, computed as the pipelines do."""
        cond = outputs["cond"]
        if self.calls == UNGUIDED:
            return cond
        guided = outputs["uncond"] + self.scale * (cond - outputs["uncond"])
        if self.rescale <= 0:
            return guided
        # In the pipelines' own order of operations, so that `check_combination` meets rounding alone.
        spread, wanted = (rows.std(dim=(1, 2, 3), keepdim=True) for rows in (guided, cond))
        return self.rescale * (guided * (wanted / spread)) + (1 - self.rescale) * guided


def split_branches(branch: str, rows: Tensor) -> dict[str, Tensor]:
    """The rows of one denoiser call or one fork by branch; `both` holds uncond above cond."""
    if branch != "both":
        return {branch: rows}
    uncond, cond = rows.chunk(2)
    return {"uncond": uncond, "cond": cond}


def stack_branches(rows: Tensor) -> Tensor:
    """Maps [2n, D, H, W] of the batch [uncond; cond] as one map per image, uncond above cond: [n, D, 2H, W]."""
    return torch.cat(rows.chunk(2), dim=2)


def unstack_branches(maps: Tensor) -> Tensor:
    """The inverse of `stack_branches`."""
    return torch.cat(maps.chunk(2, dim=2))


def guidance_of(pipeline: DiffusionPipeline) -> Guidance:
    """How a pipeline guides in the call that it is in the middle of.

    Raises:
        ValueError: it guides, and does not tell how, or in a way of its own.
    """
    # Without the flag, what a scale does is decided inside the call; an image scale means three branches.
    told = hasattr(pipeline, "do_classifier_free_guidance")
    if hasattr(pipeline, "image_guidance_scale") or not (
        told or "guidance_scale" not in inspect.signature(pipeline.__call__).parameters
    ):
        raise ValueError(
            f"{type(pipeline).__name__} guides in a way of its own, so that nobody knows which rows of its batch hold which "
            "branch; use a pipeline with do_classifier_free_guidance and one guidance_scale."
        )
    # By the flag, not by the scale, which guides nothing where a distilled U-Net takes it as an input.
    if not told or not pipeline.do_classifier_free_guidance:
        return Guidance(1.0, 0.0, UNGUIDED)
    return Guidance(float(pipeline.guidance_scale), float(getattr(pipeline, "guidance_rescale", 0.0)), BATCHED)
