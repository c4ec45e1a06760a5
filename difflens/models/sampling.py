"""Sampling one step at a time: noise that belongs to one image, the DDIM update written out, and schedulers that make it.

Noise streams are derived by hashing, so that no two images or seeds overlap. The update is written out so that the clean
image and the direction can come from different noise estimates.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from diffusers import DDIMScheduler, DiffusionPipeline, SchedulerMixin
from diffusers.schedulers.scheduling_ddim import DDIMSchedulerOutput
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor, nn

from difflens.models.guidance import Guidance, split_branches
from difflens.models.hooks import unhooked

COMBINED = 0.02
"""Relative difference of two guided estimates that half precision explains."""


def image_generator(base_seed: int, image_id: int) -> torch.Generator:
    """The random stream of one image, a function of (base seed, image id) alone; lives on the CPU on every machine."""
    return torch.Generator().manual_seed(stream_seed(base_seed, image_id))


def stream_seed(base_seed: int, image_id: int) -> int:
    """The seed of an image's stream, of 63 bits; torch's generator on a processor keeps the lowest 32 of them."""
    # Hashed, since base + id would give neighbouring base seeds nearly the same images.
    digest = hashlib.sha256(f"{base_seed}:{image_id}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def coinciding(images: Iterable[tuple[int, int]]) -> tuple[tuple[int, int], tuple[int, int]] | None:
    """Two different images (base seed, image id) that would begin with the same noise; None where no two do."""
    known: dict[int, tuple[int, int]] = {}
    for image in images:
        # Only the bits that the generator keeps: among 200,000 images of one seed a few share them.
        other = known.setdefault(stream_seed(*image) & 0xFFFFFFFF, image)
        if other != image:
            return other, image
    return None


def normal(generators: Sequence[torch.Generator], shape: Sequence[int], *, device: torch.device) -> Tensor:
    """Standard normal noise [len(generators), *shape] (float32), each row drawn from its own stream."""
    # A draw for each row: in one draw for all, an image's noise would depend on its place in the batch. Drawn on the
    # CPU, whose generator gives the same numbers whatever device the model is on.
    rows = [torch.randn(tuple(shape), generator=generator) for generator in generators]
    return torch.stack(rows).to(device)


class Estimate(NamedTuple):
    """What one denoiser output says: the clean image x_0 and the noise, both [n, C, H, W]."""

    clean: Tensor
    noise: Tensor


def estimate(scheduler: SchedulerMixin, output: Tensor, timestep: int, x: Tensor) -> Estimate:
    """Read a denoiser output by the scheduler's prediction type; x_0 is clipped if the scheduler clips.

    Raises:
        ValueError: the prediction type is not epsilon, v_prediction or sample.
    """
    alpha = scheduler.alphas_cumprod[timestep].item()
    signal, noise_level = alpha**0.5, (1 - alpha) ** 0.5
    match scheduler.config.prediction_type:
        case "epsilon":
            clean, noise = (x - noise_level * output) / signal, output
        case "v_prediction":
            # v = √ᾱ ε − √(1 − ᾱ) x_0 (Salimans & Ho 2022), solved with x_t = √ᾱ x_0 + √(1 − ᾱ) ε.
            clean, noise = signal * x - noise_level * output, signal * output + noise_level * x
        case "sample":
            clean, noise = output, (x - signal * output) / noise_level
        case other:
            raise ValueError(f"prediction type {other!r} is not one of epsilon, v_prediction, sample.")
    # The noise stays as told: deriving it again from the clipped x_0 is a choice of its own (see `ddim_step`).
    if scheduler.config.get("clip_sample", False):
        bound = scheduler.config.clip_sample_range
        clean = clean.clamp(-bound, bound)
    return Estimate(clean, noise)


def ddim_step(
    scheduler: DDIMScheduler,
    output: Tensor,
    *,
    timestep: int,
    x: Tensor,
    edited_output: Tensor | None = None,
    eta: float = 0.0,
    variance_noise: Tensor | None = None,
    rederive_direction: bool = False,
) -> Tensor:
    """One step x_t → x_{t−1} (Song et al. 2021, eq. 12), asymmetric where an edited output is given.

    The edited estimate serves the predicted x_0 alone, the direction keeps the unedited one (Kwon et al. 2023, eq. 5;
    METHOD section 5). With equal estimates this is `DDIMScheduler.step`. Outputs are the denoiser's for `x` [n, C, H, W].

    Args:
        scheduler: with its timesteps set.
        output: without an edit.
        timestep: the current one.
        x: the noisy images.
        edited_output: with edited activations.
        eta: 0 deterministic, 1 as DDPM.
        variance_noise: fresh standard normal noise, needed when eta > 0.
        rederive_direction: derive the unedited noise again from the (clipped) unedited x_0.
    """
    previous = previous_timestep(scheduler, timestep)
    alpha = scheduler.alphas_cumprod[timestep].item()
    # The last step ends at no timestep; the scheduler's set_alpha_to_one decides the noise level there.
    alpha_previous = (scheduler.alphas_cumprod[previous] if previous >= 0 else scheduler.final_alpha_cumprod).item()
    unedited = estimate(scheduler, output, timestep, x)
    clean = unedited.clean if edited_output is None else estimate(scheduler, edited_output, timestep, x).clean
    # The direction never sees the edit; as released, P2 takes it from the clipped x_0 (METHOD section 5).
    noise = (x - alpha**0.5 * unedited.clean) / (1 - alpha) ** 0.5 if rederive_direction else unedited.noise
    # Song et al. 2021, eq. 16.
    sigma = eta * ((1 - alpha_previous) / (1 - alpha) * (1 - alpha / alpha_previous)) ** 0.5
    # Not below 0: Python's root of a number that rounding made negative is complex.
    x = alpha_previous**0.5 * clean + max(1 - alpha_previous - sigma**2, 0.0) ** 0.5 * noise
    if sigma == 0:
        return x
    if variance_noise is None:
        raise ValueError(f"eta {eta} needs variance_noise, one fresh draw per image and step.")
    return x + sigma * variance_noise


def largest(size: Tensor, share: float) -> Tensor:
    """Where in each map [n, H, W] the values are among the largest `share`, [n, 1, H, W]."""
    # In float32, since torch.quantile knows no half precision.
    limit = torch.quantile(size.flatten(1).float(), 1 - share, dim=1).to(size)
    # All of a tie count, so that no place is singled out in an image that nothing changed.
    return (size >= limit[:, None, None])[:, None]


@torch.no_grad()
def encode_images(vae: Any, images: Tensor) -> Tensor:
    """Latents (float32) of images in [0, 1], scaled as the U-Net expects: the mean where the VAE gives a posterior."""
    dtype = vae.dtype
    # SDXL's VAE overflows in half precision; its pipeline decodes in float32 for the same reason.
    working = torch.float32 if dtype == torch.float16 and vae.config.get("force_upcast") else dtype
    if working != dtype:
        vae.to(working)
    try:
        encoded = vae.encode((images * 2 - 1).to(vae.device, working))
    finally:
        if working != dtype:
            # The pipeline decodes with the same VAE.
            vae.to(dtype)
    # The mean, no draw: whatever is compared on an image starts from the same latents.
    latents = encoded.latent_dist.mode() if hasattr(encoded, "latent_dist") else encoded.latents
    return latents.float() * vae.config.scaling_factor


def add_noise(scheduler: SchedulerMixin, clean: Tensor, noise: Tensor, timestep: int) -> Tensor:
    """Latents at a timestep of the forward process, at the scale that the denoiser sees whatever the scheduler's own."""
    # Not scheduler.add_noise: Euler's gives x_0 + σ ε, which only its scale_model_input brings to this scale.
    alpha = scheduler.alphas_cumprod[timestep].item()
    return alpha**0.5 * clean + (1 - alpha) ** 0.5 * noise


def squared_error(scheduler: SchedulerMixin, output: Tensor, timestep: int, *, noisy: Tensor, noise: Tensor) -> Tensor:
    """Squared error [n] of the noise told by a denoiser output, whose rows may be the batch several times over."""
    repeats = (len(output) // len(noise), 1, 1, 1)
    # A learned variance says nothing of the noise.
    told = estimate(scheduler, output[:, : noise.shape[1]].float(), timestep, noisy.repeat(repeats)).noise
    # In double precision: the loss recovered is a ratio of differences of such means.
    return (told - noise.repeat(repeats)).double().square().flatten(1).mean(1)


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


def check_asymmetric(scheduler: Any) -> None:
    """Check that the asymmetric update can be made: it is written out for DDIM alone; else ValueError."""
    # Asked first: a stand-in is no DDIMScheduler, so that the next check would blame the model's own scheduler.
    if isinstance(scheduler, AsymmetricScheduler):
        raise ValueError("another asymmetric edit is being made at once; give all but one of them update=symmetric.")
    if not isinstance(scheduler, DDIMScheduler):
        raise ValueError(
            f"the asymmetric update needs the DDIM scheduler, this model has {type(scheduler).__name__}: "
            "use model.scheduler=ddim or mitigation.update=symmetric."
        )
    # `estimate` clips x_0 at a fixed range, not at a quantile of each image.
    if scheduler.config.thresholding:
        raise ValueError("the asymmetric update knows no dynamic thresholding; use mitigation.update=symmetric.")


class PixelScheduler(DDIMScheduler):  # type: ignore[misc]
    """DDIM by `ddim_step`, for unconditional networks; a learned variance, which DDIM does not use, is split off."""

    def step(
        self, model_output: Tensor, timestep: Any, sample: Tensor, eta: float = 0.0, generator: Any = None, **more: Any
    ) -> Any:
        """See `DDIMScheduler.step`, whose arguments these are."""
        return update(self, model_output, None, timestep, sample, eta=eta, generator=generator, **more)


class RespacedScheduler(PixelScheduler):
    """The schedule of guided-diffusion's respacing as the paper's release runs it (METHOD section 9).

    n steps lie evenly from the first to the last training timestep. The noise levels are those of the nearest timesteps, but
    the network is told the next lower ones, and a step ends at the next grid point whatever the distance.
    """

    def set_timesteps(self, num_inference_steps: int, device: str | torch.device | None = None) -> None:
        """See `DDIMScheduler.set_timesteps`."""
        super().set_timesteps(num_inference_steps, device)
        last, gaps = self.config.num_train_timesteps - 1, max(1, num_inference_steps - 1)
        # Rounded down for the network, to the nearest for the noise levels: the release's hard-coded timesteps
        # (0, 20, 40, 61, …) are not those of its respacing (0, 20, 41, 61, …).
        told = [i * last // gaps for i in range(num_inference_steps)]
        # Kept aside, so that another number of steps begins with the trained levels, not with those of the last grid.
        if not hasattr(self, "trained_alphas"):
            self.trained_alphas: Tensor = self.alphas_cumprod.clone()
        self.alphas_cumprod: Tensor = self.trained_alphas.clone()
        # Written where the told timesteps look them up, so that every formula of DDIM stays as it is.
        self.alphas_cumprod[told] = self.trained_alphas[[round(i * last / gaps) for i in range(num_inference_steps)]]
        self.before = dict(zip(told, [-1, *told[:-1]], strict=True))
        self.timesteps = torch.tensor(told[::-1], device=device)


def previous_timestep(scheduler: Any, timestep: int) -> int:
    """The timestep at which the step from this one ends; negative at the last."""
    if isinstance(scheduler, RespacedScheduler):
        return int(scheduler.before[timestep])
    # By the stride, wherever the grid's next point lies: so does DDIMScheduler.step, which equal estimates reproduce.
    return int(timestep - scheduler.config.num_train_timesteps // scheduler.num_inference_steps)


class AsymmetricScheduler:
    """A DDIM scheduler whose step takes the predicted clean latents from the edited estimate (METHOD section 5).

    Everything else is the wrapped scheduler's, and so is a step at which nothing was edited.

    With a `focus` (a share below 1) the unedited trajectory goes on beside the edited one, by one more denoiser pass in
    each step after the first edited one. That share of each image's places follows it: those where the edits so far changed
    the predicted clean image least. From the share `release` of the steps on they are let go, and the model joins them to
    the others.

    Raises:
        ValueError: see `check_asymmetric`.
    """

    def __init__(
        self, scheduler: Any, guidance: Guidance, denoiser: nn.Module, *, focus: float = 0.0, release: float = 1.0
    ) -> None:
        check_asymmetric(scheduler)
        self._scheduler, self.guidance, self.denoiser = scheduler, guidance, denoiser
        self.focus, self.release = focus, release
        self._outputs: dict[str, Tensor] = {}
        self._edited: dict[str, Tensor] = {}
        self._given: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
        self._beside: Tensor | None = None
        self._changed: Tensor | None = None

    def __getattr__(self, name: str) -> Any:
        # Pipelines ask their scheduler for its timesteps, configuration, order and more.
        return getattr(self._scheduler, name)

    def set_timesteps(self, *args: Any, **kwargs: Any) -> None:
        """See `DDIMScheduler.set_timesteps`: what a pipeline's call begins with, whichever step it starts from."""
        self._beside = self._changed = None
        self._scheduler.set_timesteps(*args, **kwargs)

    def keep(self, call: int, output: Tensor, edited: Tensor, *, branch: str) -> None:
        """Take what one denoiser call gave: the rows of its batch, and those with edited activations, if any."""
        if call == 0:
            # A step that an exception ended has left its own behind.
            self._outputs, self._edited = {}, {}
        self._outputs |= split_branches(self.guidance.calls[call], output)
        if len(edited):
            self._edited |= split_branches(branch, edited)

    @contextmanager
    def remembering(self) -> Iterator[None]:
        """Inside the block it takes what the denoiser is called with."""
        # Text embeddings, time ids and the like are known nowhere else: the pipeline makes them within its call.
        handle = self.denoiser.register_forward_pre_hook(self._remember, with_kwargs=True)
        try:
            yield
        finally:
            handle.remove()

    def _remember(self, _: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if len(self._given) == len(self.guidance.calls):
            self._given = []
        self._given.append((args, kwargs))

    def step(
        self, model_output: Tensor, timestep: Any, sample: Tensor, eta: float = 0.0, generator: Any = None, **more: Any
    ) -> Any:
        """See `DDIMScheduler.step`, whose arguments these are; `model_output` is the unedited guided estimate."""
        # Taken at once, so that a step that fails leaves nothing to the next.
        outputs, edited = self._outputs, self._edited
        self._outputs, self._edited = {}, {}
        # The wrapped step itself, and so the very bits of a sampler without an edit.
        if not edited and self._beside is None:
            return self._scheduler.step(model_output, timestep, sample, eta=eta, generator=generator, **more)
        channels, combined = sample.shape[1], None
        if edited:
            # On the unedited branches, where the pipeline's answer is known; ours alone combines the edited ones.
            check_combination(model_output[:, :channels], self.guidance.combine(outputs)[:, :channels])
            combined = self.guidance.combine(outputs | edited)
        # Drawn once: both trajectories take the same noise, and the generators are used as without an edit.
        if eta > 0 and more.get("variance_noise") is None:
            more["variance_noise"] = randn_tensor(
                sample.shape, generator=generator, device=sample.device, dtype=sample.dtype
            )
        told = more.pop("return_dict", True)

        def make(output: Tensor, edited_output: Tensor | None, x: Tensor) -> Tensor:
            made = update(self._scheduler, output, edited_output, timestep, x, eta=eta, return_dict=False, **more)
            return made[0]  # type: ignore[no-any-return]

        made = make(model_output, combined, sample)
        if self.focus and self._released(timestep):
            self._beside = None
        elif self.focus:
            if combined is not None:
                pair = (each[:, :channels].float() for each in (model_output, combined))
                plain, other = (estimate(self._scheduler, each, int(timestep), sample.float()).clean for each in pair)
                # Place by place: averaged over 3 × 3 places, the change chose no better ones (experiments/README.md).
                change = (other - plain).abs().mean(1)
                self._changed = change if self._changed is None else self._changed + change
            assert self._changed is not None
            # A trajectory of its own: places held at the unedited estimate of the edited one still changed with it
            # (experiments/README.md).
            if self._beside is None:  # both trajectories are still one
                self._beside = make(model_output, None, sample)
            else:
                self._beside = make(self._denoise(self._beside), None, self._beside)
            made = torch.where(largest(self._changed, 1 - self.focus), made, self._beside)
        return DDIMSchedulerOutput(prev_sample=made) if told else (made,)

    def _released(self, timestep: Any) -> bool:
        grid = self._scheduler.timesteps
        # Looked up only where it can be so: on a GPU that waits for all that was asked of it before.
        return self.release < 1 and grid.tolist().index(int(timestep)) >= self.release * len(grid)

    def _denoise(self, latents: Tensor) -> Tensor:
        """The guided estimate of other latents, in the calls that the pipeline just made; no hook sees them."""
        outputs: dict[str, Tensor] = {}
        with unhooked():
            for branch, (args, kwargs) in zip(self.guidance.calls, self._given, strict=True):
                # As the pipelines batch them: the same latents for each branch, and unscaled, since DDIM scales none.
                rows = latents.repeat(self.guidance.batch(1), 1, 1, 1)
                given = (rows, *args[1:]) if args else args
                named = kwargs if args else {**kwargs, "sample": rows}
                # By forward, past the hooks on the denoiser itself, which would take this for a call of the pipeline.
                found = self.denoiser.forward(*given, **named)
                outputs |= split_branches(branch, found[0])
        return self.guidance.combine(outputs)


@torch.no_grad()
def check_combination(told: Tensor, ours: Tensor) -> None:
    """Check that a pipeline combines the branches as its `Guidance` does, by which the edited ones are combined.

    Raises:
        ValueError: its estimate is another than ours, by more than half precision explains.
    """
    # NaN on both sides comes from the model, not from another formula, and must not spoil the scale either.
    largest = float(ours.float().nan_to_num().abs().max())
    if told.shape != ours.shape or not torch.allclose(
        told.float(), ours.float(), rtol=0, atol=COMBINED * largest, equal_nan=True
    ):
        raise ValueError(
            "the pipeline makes its estimate of the branches in a way of its own, which the asymmetric update cannot follow; "
            "use mitigation.update=symmetric."
        )


def update(
    scheduler: DDIMScheduler,
    output: Tensor,
    edited_output: Tensor | None,
    timestep: Any,
    sample: Tensor,
    *,
    eta: float,
    generator: Any = None,
    variance_noise: Tensor | None = None,
    use_clipped_model_output: bool | None = False,
    return_dict: bool = True,
) -> Any:
    """`ddim_step` in float32, as a scheduler's `step` gives it; noise comes from a generator for each row, or one for all."""
    if eta > 0 and variance_noise is None:
        variance_noise = randn_tensor(sample.shape, generator=generator, device=sample.device, dtype=sample.dtype)
    # Further channels hold a learned variance, which DDIM has no use for and DDIMScheduler.step does not split off.
    channels = sample.shape[1]
    # In float32: at noisy steps x − √(1 − ᾱ) ε nearly cancels and is then divided by a small √ᾱ.
    x = ddim_step(
        scheduler,
        output[:, :channels].float(),
        timestep=int(timestep),
        x=sample.float(),
        edited_output=None if edited_output is None else edited_output[:, :channels].float(),
        eta=eta,
        variance_noise=variance_noise,
        rederive_direction=bool(use_clipped_model_output),
    ).to(sample.dtype)
    return DDIMSchedulerOutput(prev_sample=x) if return_dict else (x,)


class OneStepScheduler:
    """One denoiser call at a timestep, on latents that are noised already; the step changes nothing."""

    # Pipelines multiply the latents they are given by this; these have their noise already.
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

    def step(self, model_output: Tensor, timestep: Any, sample: Tensor, **_: Any) -> tuple[Tensor]:
        """The latents as they were."""
        return (sample,)


def nearest_steps(timesteps: Sequence[float], grid: Sequence[float]) -> dict[float, int]:
    """For every timestep the place in a grid of the one nearest to it, of two as near the noisier one.

    Raises:
        ValueError: one lies farther from all of the grid than neighbours in the grid lie apart.
    """
    widest = max((abs(one - other) for one, other in pairwise(grid)), default=0.0)
    found = {}
    for t in timesteps:
        place = min(range(len(grid)), key=lambda i: abs(grid[i] - t))
        # Beyond the grid's ends nothing was ever fitted; between its points the nearest noise level was.
        if abs(grid[place] - t) > widest:
            raise ValueError(
                f"timestep {t:g} is too far from the {len(grid)} that were studied ({grid[0]:g} … {grid[-1]:g}): nothing "
                "was fitted near it."
            )
        found[float(t)] = place
    return found


def timestep_grid(scheduler: SchedulerMixin, steps: int) -> list[float]:
    """The timesteps a scheduler visits in `steps` steps, integers where they are.

    Raises:
        ValueError: too many or no steps, or a timestep visited twice, so that it would not tell its step.
    """
    limit = scheduler.config.num_train_timesteps
    if not 1 <= steps <= limit:
        raise ValueError(f"model.steps must be 1 to {limit}, got {steps}.")
    scheduler.set_timesteps(steps)
    # Integers where they are: they index alphas_cumprod, which a float cannot.
    grid = [int(t) if t == int(t) else t for t in scheduler.timesteps.tolist()]
    twice = next((t for i, t in enumerate(grid) if t in grid[:i]), None)
    if twice is not None:
        raise ValueError(
            f"{type(scheduler).__name__} visits timestep {twice} twice in {steps} steps, so that a step cannot be told "
            "from its timestep: use model.scheduler=ddim or another scheduler without warm-up or second-order steps."
        )
    return grid
