"""A user's own pipeline as a model under study, for the length of a `with` block and whatever it is called with there."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import wraps
from threading import Lock, get_ident
from typing import Any

import torch
from diffusers import DDIMScheduler, DiffusionPipeline
from torch import Tensor, nn

from difflens.models.base import Attachable, Batch, Edit
from difflens.models.guidance import UNGUIDED, Guidance, guidance_of
from difflens.models.hooks import Change, find_module
from difflens.models.model import DiffusionModel
from difflens.models.sampling import AsymmetricScheduler, check_asymmetric, scheduler_of
from difflens.vocabulary import UNTOUCHED, PerImage, Site

Assign = Callable[[int], Tensor]
"""Target classes of so many images."""

LeavesAlone = Callable[[str], bool]
"""Whether no image of a prompt is changed."""

RESIDUALS = (
    "mid_block_additional_residual",
    "down_block_additional_residuals",
    "down_intrablock_additional_residuals",
)
"""What ControlNets and adapters add in the middle of a U-Net, row by row, so that its batch cannot grow there."""

NO_IMAGE = "the pipeline was called for no image; give it at least one prompt."


@contextmanager
def edited_pipeline(
    pipeline: DiffusionPipeline,
    method: Attachable | Edit,
    *,
    timesteps: Sequence[float],
    assign: Assign,
    leaves_alone: LeavesAlone = lambda _: False,
) -> Iterator[None]:
    """Inside the block every call of the pipeline is changed by the method; after it the pipeline is as it was.

    Args:
        pipeline: with a U-Net that it calls with both branches of guidance in one batch; DDIM for an asymmetric edit.
        method: an edit of a site, or whatever else attaches to a model. It is attached at every step: what it changes in
            `Batch` itself comes too late for a call that the user makes.
        timesteps: the grid that the method belongs to.
        assign: gives the target classes of the images of each call that are not left alone.
        leaves_alone: asked of every prompt of a call; a call that is given embeddings has none that could be read.

    Raises:
        ValueError: the pipeline cannot be changed so; and, when it is called, the call cannot be.
    """
    steered = SteeredPipeline(pipeline, method, timesteps=timesteps, assign=assign, leaves_alone=leaves_alone)
    # Past the pipeline's own setter, which would write the stand-in's class into its configuration.
    object.__setattr__(pipeline, "unet", steered.denoiser)
    try:
        with steered.noticing_calls(), scheduler_of(pipeline, steered.scheduler):
            yield
    finally:
        object.__setattr__(pipeline, "unet", steered.unet)
        # Somebody may have kept the stand-in, as a pipeline does that was made of these parts inside the block.
        steered.denoiser.ended = True


class SteeredPipeline(DiffusionModel):
    """A pipeline as its user configured it; see `edited_pipeline`."""

    # Attached anew for each call of the U-Net: how many of them a user's call makes is not known beforehand.
    _steps_attached = 1

    def __init__(
        self,
        pipeline: DiffusionPipeline,
        method: Attachable | Edit,
        *,
        timesteps: Sequence[float],
        assign: Assign,
        leaves_alone: LeavesAlone,
    ) -> None:
        if isinstance(getattr(pipeline, "unet", None), SteeredDenoiser):
            raise ValueError("the pipeline is steered already; leave that block before a second one.")
        # Not super().__init__, which freezes weights, drops the safety checker and fixes a grid: these are the user's.
        self._adopt(pipeline)
        # A hook on a compiled module is ignored without a word, and any block may be compiled by itself.
        if any(is_compiled(module) for module in self.unet.modules()):
            raise ValueError("the pipeline's U-Net is compiled and would ignore the edit; give it the plain one.")
        self.name, self.timesteps = type(pipeline).__name__, list(timesteps)
        self.guidance = Guidance(1.0, 0.0, UNGUIDED)
        self.method, self._assign, self._own_scheduler = method, assign, pipeline.scheduler
        self._leaves_alone = leaves_alone
        # Whether each prompt of the call is left alone; None where it has none, or none that could be read.
        self._alone: list[bool] | None = None
        if isinstance(method, Edit):
            find_module(self.unet, method.site)
            self.check_update(method.update)
        own = pipeline.scheduler
        able = isinstance(own, DDIMScheduler) and not own.config.thresholding
        # Also for a method that is no edit itself: it may make an asymmetric one whenever it is attached.
        self.scheduler: Any = AsymmetricScheduler(own, self.guidance, self.unet) if able else own
        self.denoiser = SteeredDenoiser(self)
        self._thread: int | None = None
        self._images: PerImage | None = None
        self._busy = Lock()

    def check_update(self, update: str) -> None:
        """See `DiffusionModel.check_update`."""
        if update == "asymmetric" and not isinstance(self._own_scheduler, DDIMScheduler):
            raise ValueError(
                f"the asymmetric update needs a DDIMScheduler, the pipeline has {type(self._own_scheduler).__name__}; give "
                "it one, or take a run with mitigation.update=symmetric."
            )
        if update == "asymmetric":
            check_asymmetric(self._own_scheduler)

    @contextmanager
    def noticing_calls(self) -> Iterator[None]:
        """Inside the block a call of the pipeline is noticed by its setting of the scheduler's timesteps."""

        # Pipelines set their timesteps once per call; by the U-Net alone, a new call could pass for the next step.
        def begin(*_: Any, **__: Any) -> None:
            if self.pipeline.unet is not self.denoiser or self.pipeline.scheduler is not self.scheduler:
                raise ValueError("the pipeline was given another U-Net or scheduler inside the block; do so before it.")
            self._thread, self._images = get_ident(), None

        # The text encoder meets an empty list before the U-Net is called, where a call for no image is noticed.
        def read(prompt: Any = None, *_: Any, prompt_2: Any = None, **__: Any) -> None:
            if isinstance(prompt, list) and not prompt:
                raise ValueError(NO_IMAGE)
            # Of SDXL's two texts for an image either may name a class.
            given = [[text] if isinstance(text, str) else text for text in (prompt, prompt_2) if text is not None]
            self._alone = [any(map(self._leaves_alone, texts)) for texts in zip(*given, strict=False)] or None

        with (
            preceded(self._own_scheduler, "set_timesteps", begin),
            preceded(self.pipeline, "encode_prompt", read),
        ):
            yield

    @contextmanager
    def one_step(self, sample: Tensor, more: Mapping[str, Any]) -> Iterator[None]:
        """The method attached for one call of the U-Net.

        Raises:
            ValueError: the pipeline does something in between that is not understood.
        """
        if self.pipeline.scheduler is not self.scheduler:
            raise ValueError("the pipeline was given another scheduler inside the block; give it one before the block.")
        # The thread tells calls that take turns, the lock those that are in the U-Net together.
        if self._thread not in (None, get_ident()) or not self._busy.acquire(blocking=False):
            raise ValueError("the pipeline is called from two threads at once inside the block; call it from one.")
        try:
            # Asked at every step, since a callback may switch guidance off in the middle of a call.
            self.guidance = guidance_of(self.pipeline)
            asymmetric = getattr(self.method, "update", "") == "asymmetric"
            if asymmetric and any(more.get(name) is not None for name in RESIDUALS):
                raise ValueError(
                    f"{self.name} adds residuals inside its U-Net; use features with mitigation.update=symmetric."
                )
            with self.attached(self.method, Batch(self._images_of(sample), sample)):
                yield
        finally:
            self._busy.release()

    def _images_of(self, sample: Tensor) -> PerImage:
        """What is known of the images that one call of the U-Net holds: those of the call before, in the pipeline's order."""
        count, rest = divmod(len(sample), self.guidance.batch(1))
        if self._images is None:
            self._images = self._assigned(count, sample.device)
        halves = sample.tensor_split(self.guidance.batch(1))
        # Pipelines with more than two branches, or with both of an image side by side, could have a fitting number of rows.
        if rest or count != len(self._images.target) or not torch.equal(halves[0], halves[-1]):
            raise ValueError(
                f"{self.name} changes its batch in the middle of a call, or fills it with more than the two branches of "
                f"guidance ({len(sample)} rows for {len(self._images.target)} images), so that nobody knows which rows hold "
                "which image; use a pipeline that does not."
            )
        return self._images

    def _assigned(self, count: int, device: torch.device) -> PerImage:
        """What is known of the images of a new call, on the steps that the features belong to."""
        if not count:
            raise ValueError(NO_IMAGE)
        # Features and strengths belong to the noise levels of their own grid (METHOD section 1).
        grid, own = ([float(t) for t in steps] for steps in (self.pipeline.scheduler.timesteps, self.timesteps))
        if grid != own:
            raise ValueError(
                f"the features were found on {len(own)} steps ({own[0]:g} … {own[-1]:g}), the pipeline makes {len(grid)} "
                f"({grid[0]:g} … {grid[-1]:g}); call it with num_inference_steps={len(own)} and the run's scheduler."
            )
        # One call's prompts say nothing of the next one's, which may be given embeddings.
        alone, self._alone = self._alone, None
        # All images of a prompt stand beside each other.
        left = torch.tensor([False] if alone is None else alone).repeat_interleave(count // len(alone or [False]))
        if len(left) != count:
            raise ValueError(
                f"{self.name} makes {count} images of {len(left)} prompts, so that nobody knows which is whose."
            )
        wanted = int((~left).sum())
        given = self._assign(wanted) if wanted else torch.zeros(0, dtype=torch.int64)
        if len(given) != wanted:
            raise ValueError(f"{wanted} images need as many targets, got {len(given)}.")
        return PerImage(torch.full((count,), UNTOUCHED).masked_scatter(~left, given)).to(device)

    @contextmanager
    def _asymmetric(self, focus: float, release: float) -> Iterator[AsymmetricScheduler]:
        """The stand-in, which the pipeline keeps between the calls of its U-Net."""
        self.scheduler.guidance, self.scheduler.focus, self.scheduler.release = self.guidance, focus, release
        with self.scheduler.remembering():
            yield self.scheduler

    def _branch(self, site: Site) -> str:
        """The features of an unconditional model are looked for in the conditional branch."""
        return "cond" if site.branch == "none" else site.branch

    def _change(self, edit: Edit, images: PerImage) -> Change | None:
        change = super()._change(edit, images)

        def fitting(h: Tensor, step: int) -> Tensor | None:
            assert change is not None
            try:
                return change(h, step)
            # A RuntimeError as well, but none of shapes that do not fit.
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

    # Two pipelines may share a scheduler: what stood here before may be another block's.
    before_it = vars(owner).get(name)
    object.__setattr__(owner, name, both)
    try:
        yield
    finally:
        if before_it is None:
            object.__delattr__(owner, name)
        else:
            object.__setattr__(owner, name, before_it)


def is_compiled(module: nn.Module) -> bool:
    """Whether a module was compiled, by `torch.compile` or in place."""
    return hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None


class SteeredDenoiser(nn.Module):
    """Stands in for a pipeline's U-Net: the same but for what the method changes until the block ends.

    The U-Net is its only submodule, so that whatever moves or counts weights finds them.
    """

    def __init__(self, steered: SteeredPipeline) -> None:
        super().__init__()
        self.unet, self.ended = steered.unet, False
        self.__dict__["_steered"] = steered

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.unet, name)

    def forward(self, sample: Tensor, timestep: Any, *args: Any, **kwargs: Any) -> Any:
        """One call of the U-Net."""
        if self.ended:
            return self.unet(sample, timestep, *args, **kwargs)
        with self._steered.one_step(sample, kwargs):
            return self.unet(sample, timestep, *args, **kwargs)
