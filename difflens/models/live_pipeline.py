"""A user's own pipeline, edited for the length of a `with` block, whatever it is called with there."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn

from difflens.models.base import Edit
from difflens.models.blocks import find_module
from difflens.models.edits import change_by
from difflens.models.guidance import BATCHED, UNGUIDED, Guidance
from difflens.models.hooks import SiteHooks
from difflens.models.schedulers import AsymmetricScheduler, scheduler_of
from difflens.vocabulary import PerImage

Assign = Callable[[int], Tensor]
"""Target classes of so many images."""


class EditedDenoiser(nn.Module):
    """Stands in for a pipeline's U-Net: the same but for the edit at its site; see `edited_pipeline`."""

    def __init__(
        self,
        pipeline: DiffusionPipeline,
        edit: Edit,
        *,
        timesteps: Sequence[float],
        assign: Assign,
        scheduler: AsymmetricScheduler | None,
    ) -> None:
        super().__init__()
        # Past nn.Module, whose own attributes these are not: everything else is the U-Net's.
        own = {"_unet": pipeline.unet, "_pipeline": pipeline, "_edit": edit, "_timesteps": tuple(timesteps)}
        own |= {"_assign": assign, "_scheduler": scheduler, "_targets": None}
        self.__dict__.update(own)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_unet"], name)

    def forward(self, sample: Tensor, timestep: Any, *args: Any, **kwargs: Any) -> Any:
        """One call of the U-Net, with the edit at the rows of the site's branch."""
        guidance = guidance_of(self._pipeline)
        images = len(sample) // guidance.batch(1)
        first = float(self._pipeline.scheduler.timesteps[0])
        if self._targets is None or float(torch.as_tensor(timestep).flatten()[0]) == first:
            self._check_grid()
            self.__dict__["_targets"] = self._assign(images)
        known = PerImage(self._targets.to(sample.device))
        change = change_by(self._edit, known, steps=len(self._timesteps))
        scheduler = self._scheduler
        if scheduler is not None:
            scheduler.guidance = guidance
        branch = "cond" if self._edit.site.branch == "none" else self._edit.site.branch
        hooks = SiteHooks(
            self._unet,
            self._edit.site,
            timesteps=self._timesteps,
            change=change,
            fork=scheduler is not None,
            rows=guidance.rows(branch, images),
            aside=None if scheduler is None else scheduler.keep,
        )
        with hooks:
            return self._unet(sample, timestep, *args, **kwargs)

    def _check_grid(self) -> None:
        """Check that the pipeline samples on the steps that the features belong to.

        Raises:
            ValueError: it does not.
        """
        grid = [float(t) for t in self._pipeline.scheduler.timesteps]
        if grid != [float(t) for t in self._timesteps]:
            raise ValueError(
                f"the features were found on {len(self._timesteps)} steps ({self._timesteps[0]:g} … "
                f"{self._timesteps[-1]:g}), the pipeline makes {len(grid)} ({grid[0]:g} … {grid[-1]:g}); call it with "
                f"num_inference_steps={len(self._timesteps)} and the run's scheduler."
            )


def guidance_of(pipeline: DiffusionPipeline) -> Guidance:
    """How a pipeline guides in the call that it is in the middle of."""
    if not getattr(pipeline, "do_classifier_free_guidance", False):
        return Guidance(1.0, 0.0, UNGUIDED)
    return Guidance(float(pipeline.guidance_scale), float(getattr(pipeline, "guidance_rescale", 0.0)), BATCHED)


@contextmanager
def edited_pipeline(
    pipeline: DiffusionPipeline, edit: Edit, *, timesteps: Sequence[float], assign: Assign
) -> Iterator[None]:
    """Inside the block every call of the pipeline is edited; after it the pipeline is as it was.

    Args:
        pipeline: with a U-Net that it calls once per step, both branches of guidance in one batch; DDIM for an
            asymmetric edit.
        edit: what is done at which site.
        timesteps: the grid that the edit belongs to.
        assign: gives the target classes of the images of each call.

    Raises:
        ValueError: the U-Net has no such site; and, when the pipeline is called, it samples on another grid.
    """
    find_module(pipeline.unet, edit.site)
    branch = "cond" if edit.site.branch == "none" else edit.site.branch
    scheduler = None
    if edit.update == "asymmetric":
        scheduler = AsymmetricScheduler(pipeline.scheduler, Guidance(1.0, 0.0, UNGUIDED), branch=branch)
    unet = pipeline.unet
    stand_in = EditedDenoiser(pipeline, edit, timesteps=timesteps, assign=assign, scheduler=scheduler)
    # Past the pipeline's own setter, which would write the stand-in's class into its configuration.
    object.__setattr__(pipeline, "unet", stand_in)
    try:
        with scheduler_of(pipeline, scheduler or pipeline.scheduler):
            yield
    finally:
        object.__setattr__(pipeline, "unet", unet)
