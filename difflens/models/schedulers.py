"""Schedulers that stand in for a pipeline's own for the length of a `with` block."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from diffusers import DDIMScheduler, DiffusionPipeline, SchedulerMixin
from diffusers.schedulers.scheduling_ddim import DDIMSchedulerOutput
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from difflens.models.guidance import Guidance, split_branches
from difflens.models.sampling import ddim_step


@contextmanager
def scheduler_of(pipeline: DiffusionPipeline, stand_in: Any) -> Iterator[None]:
    """The pipeline samples with `stand_in` inside the block and has its own scheduler back after it."""
    own = pipeline.scheduler
    # Past the pipeline's own setter, which would write the stand-in's class into its configuration.
    object.__setattr__(pipeline, "scheduler", stand_in)
    try:
        yield
    finally:
        object.__setattr__(pipeline, "scheduler", own)


class AsymmetricScheduler:
    """A DDIM scheduler whose step takes the predicted clean latents from the edited estimate (METHOD section 5).

    Everything else is the wrapped scheduler's, and so is a step at which nothing was edited.

    Args:
        scheduler: the pipeline's own, DDIM.
        guidance: how the pipeline combines the branches.
        branch: of the site that is edited.
    """

    def __init__(self, scheduler: DDIMScheduler, guidance: Guidance, *, branch: str) -> None:
        self._scheduler, self.guidance, self._branch = scheduler, guidance, branch
        self._outputs: dict[str, Tensor] = {}
        self._edited: dict[str, Tensor] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._scheduler, name)

    def keep(self, call: int, output: Tensor, edited: Tensor) -> None:
        """Take what one denoiser call gave: the rows of its batch, and those with edited activations, if any."""
        self._outputs |= split_branches(self.guidance.calls[call], output)
        if len(edited):
            self._edited |= split_branches(self._branch, edited)

    def step(
        self,
        model_output: Tensor,
        timestep: Any,
        sample: Tensor,
        eta: float = 0.0,
        use_clipped_model_output: bool | None = False,
        generator: Any = None,
        variance_noise: Tensor | None = None,
        return_dict: bool = True,
    ) -> Any:
        """See `DDIMScheduler.step`, whose arguments these are; `model_output` is the unedited guided estimate."""
        branches, edited = self._outputs | self._edited, bool(self._edited)
        self._outputs, self._edited = {}, {}
        if eta > 0 and variance_noise is None:
            shape, like = model_output.shape, {"device": model_output.device, "dtype": model_output.dtype}
            variance_noise = randn_tensor(shape, generator=generator, **like)
        if not edited:
            return self._scheduler.step(
                model_output,
                timestep,
                sample,
                eta=eta,
                use_clipped_model_output=bool(use_clipped_model_output),
                variance_noise=variance_noise,
                return_dict=return_dict,
            )
        previous = ddim_step(
            self._scheduler,
            model_output.float(),
            timestep=int(timestep),
            x=sample.float(),
            edited_output=self.guidance.combine(branches).float(),
            eta=eta,
            variance_noise=variance_noise,
            rederive_direction=bool(use_clipped_model_output),
        )
        previous = previous.to(sample.dtype)
        return DDIMSchedulerOutput(prev_sample=previous) if return_dict else (previous,)


class OneStepScheduler:
    """One denoiser call at a timestep, on latents that are noised already; the step changes nothing."""

    init_noise_sigma, order = 1.0, 1

    def __init__(self, config: Any, timestep: float) -> None:
        self.config = config
        self.timesteps = torch.tensor([int(timestep) if timestep == int(timestep) else timestep])

    def set_timesteps(self, num_inference_steps: int | None = None, device: str | torch.device | None = None) -> None:
        """Move the one timestep to the device."""
        self.timesteps = self.timesteps.to(device)

    def scale_model_input(self, sample: Tensor, timestep: Any = None) -> Tensor:
        """The latents, which have the denoiser's scale."""
        return sample

    def step(self, model_output: Tensor, timestep: Any, sample: Tensor, return_dict: bool = True) -> tuple[Tensor]:
        """The latents as they were."""
        return (sample,)


def timestep_grid(scheduler: SchedulerMixin, steps: int) -> list[float]:
    """The timesteps a scheduler visits in `steps` steps, integers where they are.

    Raises:
        ValueError: too many or no steps, or a timestep visited twice, so that it would not tell its step.
    """
    limit = scheduler.config.num_train_timesteps
    if not 1 <= steps <= limit:
        raise ValueError(f"model.steps must be 1 to {limit}, got {steps}.")
    scheduler.set_timesteps(steps)
    grid = [int(t) if t == int(t) else t for t in scheduler.timesteps.tolist()]
    twice = next((t for i, t in enumerate(grid) if t in grid[:i]), None)
    if twice is not None:
        raise ValueError(
            f"{type(scheduler).__name__} visits timestep {twice} twice in {steps} steps, so that a step cannot be told "
            "from its timestep: use model.scheduler=ddim or another scheduler without warm-up or second-order steps."
        )
    return grid
