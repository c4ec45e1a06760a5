"""A user's own pipeline as a model under study, for the length of a `with` block and whatever it is called with there."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import wraps
from threading import get_ident
from typing import Any

import torch
from diffusers import DDIMScheduler, DiffusionPipeline
from torch import Tensor, nn

from difflens.models.base import Attachable, Batch, Edit
from difflens.models.guidance import UNGUIDED, Guidance, guidance_of
from difflens.models.hooks import Change, find_module
from difflens.models.model import DiffusionModel
from difflens.models.sampling import AsymmetricScheduler, check_asymmetric, scheduler_of
from difflens.vocabulary import PerImage, Site

Assign = Callable[[int], Tensor]
"""Target classes of so many images."""

RESIDUALS = ("mid_block_additional_residual", "down_block_additional_residuals")
"""What ControlNets add in the middle of a U-Net, row by row, so that its batch cannot grow there."""

NO_IMAGE = "the pipeline was called for no image; give it at least one prompt."


@contextmanager
def edited_pipeline(
    pipeline: DiffusionPipeline, method: Attachable | Edit, *, timesteps: Sequence[float], assign: Assign
) -> Iterator[None]:
    """Inside the block every call of the pipeline is changed by the method; after it the pipeline is as it was.

    Args:
        pipeline: with a U-Net that it calls with both branches of guidance in one batch; DDIM for an asymmetric edit.
        method: an edit of a site, or whatever else attaches to a model. It is attached at every step: what it changes in
            `Batch` itself comes too late for a call that the user makes.
        timesteps: the grid that the method belongs to.
        assign: gives the target classes of the images of each call.

    Raises:
        ValueError: the pipeline cannot be changed so; and, when it is called, the call cannot be.
    """
    steered = SteeredPipeline(pipeline, method, timesteps=timesteps, assign=assign)
    # Past the pipeline's own setter, which would write the stand-in's class into its configuration.
    object.__setattr__(pipeline, "unet", SteeredDenoiser(steered))
    try:
        with steered.noticing_calls(), scheduler_of(pipeline, steered.stand_in or pipeline.scheduler):
            yield
    finally:
        object.__setattr__(pipeline, "unet", steered.unet)


class SteeredPipeline(DiffusionModel):
    """A pipeline as its user configured it; see `edited_pipeline`."""

    _steps_attached = 1

    def __init__(
        self, pipeline: DiffusionPipeline, method: Attachable | Edit, *, timesteps: Sequence[float], assign: Assign
    ) -> None:
        if isinstance(getattr(pipeline, "unet", None), SteeredDenoiser):
            raise ValueError("the pipeline is steered already; leave that block before a second one.")
        self._adopt(pipeline)
        if hasattr(self.unet, "_orig_mod") or getattr(self.unet, "_compiled_call_impl", None) is not None:
            raise ValueError("the pipeline's U-Net is compiled and would ignore the edit; give it the plain one.")
        self.name, self.timesteps, self.guidance = (
            type(pipeline).__name__,
            list(timesteps),
            Guidance(1.0, 0.0, UNGUIDED),
        )
        self.method, self._assign, self._own_scheduler = method, assign, pipeline.scheduler
        if isinstance(method, Edit):
            find_module(self.unet, method.site)
            self.check_update(method.update)
        own = pipeline.scheduler
        able = isinstance(own, DDIMScheduler) and not own.config.thresholding
        self.stand_in = AsymmetricScheduler(own, self.guidance) if able else None
        self._thread: int | None = None
        self._images: PerImage | None = None

    def check_update(self, update: str) -> None:
        """See `DiffusionModel.check_update`."""
        if update == "asymmetric":
            check_asymmetric(self._own_scheduler)

    @contextmanager
    def noticing_calls(self) -> Iterator[None]:
        """Inside the block a call of the pipeline is noticed by its setting of the scheduler's timesteps."""

        def begin(*_: Any, **__: Any) -> None:
            self._thread, self._images = get_ident(), None

        def refuse_none(prompt: Any = None, *_: Any, **__: Any) -> None:
            if isinstance(prompt, list) and not prompt:
                raise ValueError(NO_IMAGE)

        with (
            preceded(self._own_scheduler, "set_timesteps", begin),
            preceded(self.pipeline, "encode_prompt", refuse_none),
        ):
            yield

    @contextmanager
    def one_step(self, sample: Tensor, more: Mapping[str, Any]) -> Iterator[None]:
        """The method attached for one call of the U-Net.

        Raises:
            ValueError: the pipeline does something in between that is not understood.
        """
        if self._thread not in (None, get_ident()):
            raise ValueError("the pipeline is called from two threads at once inside the block; call it from one.")
        self.guidance = guidance_of(self.pipeline)
        count, rest = divmod(len(sample), self.guidance.batch(1))
        if self._images is None:
            self._images = self._assigned(count, sample.device)
        if rest or count != len(self._images.target):
            raise ValueError(
                f"{self.name} changes its batch in the middle of a call ({len(sample)} rows for {len(self._images.target)} "
                "images), so that nobody knows which rows hold which image; use a pipeline that does not."
            )
        if any(more.get(name) is not None for name in RESIDUALS) and getattr(self.method, "update", "") == "asymmetric":
            raise ValueError(
                f"{self.name} adds residuals inside its U-Net; use features with mitigation.update=symmetric."
            )
        with self.attached(self.method, Batch(self._images, sample)):
            yield

    def _assigned(self, count: int, device: torch.device) -> PerImage:
        """What is known of the images of a new call.

        Raises:
            ValueError: there are none, or the pipeline samples on other steps than those that the features belong to.
        """
        if not count:
            raise ValueError(NO_IMAGE)
        grid, own = ([float(t) for t in steps] for steps in (self.pipeline.scheduler.timesteps, self.timesteps))
        if grid != own:
            raise ValueError(
                f"the features were found on {len(own)} steps ({own[0]:g} … {own[-1]:g}), the pipeline makes {len(grid)} "
                f"({grid[0]:g} … {grid[-1]:g}); call it with num_inference_steps={len(own)} and the run's scheduler."
            )
        targets = self._assign(count)
        if len(targets) != count:
            raise ValueError(f"{count} images need as many targets, got {len(targets)}.")
        return PerImage(targets).to(device)

    @contextmanager
    def _asymmetric(self) -> Iterator[AsymmetricScheduler]:
        """The stand-in, which the pipeline keeps between the calls of its U-Net."""
        assert self.stand_in is not None
        self.stand_in.guidance = self.guidance
        yield self.stand_in

    def _branch(self, site: Site) -> str:
        """The features of an unconditional model are looked for in the conditional branch."""
        return "cond" if site.branch == "none" else site.branch

    def _change(self, edit: Edit, images: PerImage) -> Change | None:
        change = super()._change(edit, images)

        def fitting(h: Tensor, step: int) -> Tensor | None:
            assert change is not None
            try:
                return change(h, step)
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:
                raise ValueError(
                    f"the features do not fit the activations [D, H, W] = {list(h.shape[1:])} at {edit.site.module!r} of "
                    f"{self.name}: compare model, site, image size, scheduler and number of steps with the run's "
                    f"({str(error).splitlines()[0]})."
                ) from error

        return change and fitting


@contextmanager
def preceded(owner: Any, name: str, before: Callable[..., None]) -> Iterator[None]:
    """Inside the block an object's method, if it has it, is preceded by another call with the same arguments."""
    plain = getattr(owner, name, None)
    if plain is None:
        yield
        return

    @wraps(plain)
    def both(*args: Any, **kwargs: Any) -> Any:
        before(*args, **kwargs)
        return plain(*args, **kwargs)

    object.__setattr__(owner, name, both)
    try:
        yield
    finally:
        object.__delattr__(owner, name)


class SteeredDenoiser(nn.Module):
    """Stands in for a pipeline's U-Net: the same but for what the method changes."""

    def __init__(self, steered: SteeredPipeline) -> None:
        super().__init__()
        # Past nn.Module, whose own attributes these are not: everything else is the U-Net's.
        self.__dict__.update(_steered=steered, _unet=steered.unet)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_unet"], name)

    def forward(self, sample: Tensor, timestep: Any, *args: Any, **kwargs: Any) -> Any:
        """One call of the U-Net."""
        with self._steered.one_step(sample, kwargs):
            return self._unet(sample, timestep, *args, **kwargs)
