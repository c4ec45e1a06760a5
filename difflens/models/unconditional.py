"""Unconditional pixel-space diffusion models: any folder or hub id that holds a diffusers `UNet2DModel` pipeline."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from diffusers import DDIMScheduler, UNet2DModel
from torch import Tensor

from difflens.models.base import DiffusionModel, Edit, Generated, weights_fingerprint
from difflens.models.edits import change_by
from difflens.models.hooks import SiteHooks
from difflens.models.noise import image_generator, normal
from difflens.models.precision import choose_precision
from difflens.models.sampling import ddim_step, estimate
from difflens.store.locations import locate
from difflens.vocabulary import GenerationPlan, PerImage, Site

PRECISIONS = ("fp32", "bf16")


class UnconditionalModel(DiffusionModel):
    """A U-Net and a DDIM schedule.

    Args:
        unet: predicts noise, velocity or x_0, as the scheduler's `prediction_type` says.
        scheduler: a DDIM scheduler; its timesteps are set here.
        name: what the model is called in tables and artifacts.
        steps: denoising steps.
        micro_batch: every denoiser call holds exactly this many images; the last micro-batch is padded.
        eta: 0 for deterministic DDIM, 1 for DDPM-like noise.
        rederive_direction: see `ddim_step`.
        precision: `bf16` runs the denoiser under autocast, `auto` does so where the device computes it.
        device: where it runs.

    Raises:
        ValueError: a setting is out of its range.
    """

    def __init__(
        self,
        unet: UNet2DModel,
        scheduler: DDIMScheduler,
        *,
        name: str,
        steps: int,
        micro_batch: int,
        eta: float = 0.0,
        rederive_direction: bool = False,
        precision: str = "fp32",
        device: str = "cpu",
    ) -> None:
        if not 1 <= steps <= scheduler.config.num_train_timesteps:
            raise ValueError(f"model.steps must be 1 to {scheduler.config.num_train_timesteps}, got {steps}.")
        if micro_batch < 1:
            raise ValueError(f"model.micro_batch must be at least 1, got {micro_batch}.")
        self.precision = choose_precision(precision, device, among=PRECISIONS)
        self.device = torch.device(device)
        self.unet = unet.float().eval().requires_grad_(False).to(device)
        self.scheduler, self.name, self.steps, self.micro_batch = scheduler, name, steps, micro_batch
        self.eta, self.rederive_direction = eta, rederive_direction
        self.scheduler.set_timesteps(steps)
        self.timesteps = [int(t) for t in self.scheduler.timesteps]
        self.fingerprint = weights_fingerprint(self.unet)

    def spec(self) -> dict[str, Any]:
        """See `DiffusionModel.spec`."""
        return {
            "name": self.name,
            "weights": self.fingerprint,
            "scheduler": {k: v for k, v in self.scheduler.config.items() if not k.startswith("_")},
            "timesteps": self.timesteps,
            "eta": self.eta,
            "rederive_direction": self.rederive_direction,
            "precision": self.precision,
            "micro_batch": self.micro_batch,
        }

    def site_shape(self, site: Site) -> tuple[int, int, int]:
        """See `DiffusionModel.site_shape`."""
        shapes: list[tuple[int, ...]] = []
        x = torch.zeros(1, self.unet.config.in_channels, *self._size(), device=self.device)
        with (
            torch.inference_mode(),
            SiteHooks(self.unet, site, timesteps=self.timesteps, read=lambda _, h: shapes.append(tuple(h.shape))),
        ):
            self.unet(x, self.timesteps[0])
        if len(shapes[0]) != 4:
            raise ValueError(f"site {site.module!r} gives activations of shape {shapes[0]}, not a map [n, D, H, W].")
        return shapes[0][1], shapes[0][2], shapes[0][3]

    def sample(
        self, plan: GenerationPlan, *, record: Site | None = None, edit: Edit | None = None
    ) -> Iterator[Generated]:
        """See `DiffusionModel.sample`."""
        for start in range(0, len(plan.image_ids), self.micro_batch):
            part = plan.part(start, start + self.micro_batch)
            yield self._sample_batch(part, record, edit)

    @torch.inference_mode()
    def _sample_batch(self, plan: GenerationPlan, record: Site | None, edit: Edit | None) -> Generated:
        n, full = len(plan.image_ids), self.micro_batch
        padded = plan.take(torch.arange(full) % n)
        generators = [image_generator(plan.base_seed, int(image_id)) for image_id in padded.image_ids]
        shape = (self.unet.config.in_channels, *self._size())
        x = normal(generators, shape, device=self.device)
        recorded: list[Tensor] = []
        with ExitStack() as hooks:
            if record is not None:
                read = SiteHooks(
                    self.unet, record, timesteps=self.timesteps, read=lambda _, h: recorded.append(h[:n].half().cpu())
                )
                hooks.enter_context(read)
            if edit is not None:
                hooks.enter_context(self._edit_hooks(edit, padded.per_image().to(self.device)))
            for t in self.timesteps:
                output = self._denoise(x, t)
                x = ddim_step(
                    self.scheduler,
                    output[:full],
                    timestep=t,
                    x=x,
                    edited_output=output[full:] if len(output) > full else None,
                    eta=self.eta,
                    variance_noise=normal(generators, shape, device=self.device) if self.eta else None,
                    rederive_direction=self.rederive_direction,
                )
        images = (x[:n] / 2 + 0.5).clamp(0, 1).cpu()
        return Generated(plan.image_ids, images, torch.stack(recorded, 1) if record is not None else None)

    @torch.inference_mode()
    def denoising_loss(
        self,
        images: Tensor,
        step: int,
        *,
        site: Site,
        change: Callable[[Tensor], Tensor] | None = None,
        seed: int = 0,
        prompts: Sequence[str] | None = None,
    ) -> float:
        """See `DiffusionModel.denoising_loss`; it reads no prompts, and the noise is the same for every change."""
        clean = (images * 2 - 1).to(self.device)
        noise = normal([image_generator(seed, row) for row in range(len(clean))], clean.shape[1:], device=self.device)
        t = self.timesteps[step]
        noisy = self.scheduler.add_noise(clean, noise, torch.full((len(clean),), t, device=self.device))
        edit = None if change is None else lambda h, _: change(h)
        with SiteHooks(self.unet, site, timesteps=self.timesteps, change=edit):
            output = self._denoise(noisy, t)
        return float((estimate(self.scheduler, output, t, noisy).noise - noise).double().square().mean())

    def _denoise(self, x: Tensor, timestep: int) -> Tensor:
        """The denoiser's output in float32; a learned variance, which DDIM does not use, is split off."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            output = self.unet(x, timestep).sample
        return output.float()[:, : x.shape[1]]

    def _edit_hooks(self, edit: Edit, images: PerImage) -> SiteHooks:
        change = change_by(edit, images, steps=self.steps)
        fork = edit.update == "asymmetric"
        return SiteHooks(self.unet, edit.site, timesteps=self.timesteps, change=change, fork=fork)

    def _size(self) -> tuple[int, int]:
        size = self.unet.config.sample_size
        return (size, size) if isinstance(size, int) else (size[0], size[1])


def load_unconditional(folder: str, **settings: Any) -> UnconditionalModel:
    """The model saved in a diffusers pipeline folder with a `unet` and a `scheduler`.

    Args:
        folder: holds `unet/` and `scheduler/`, as `save_pretrained` writes them.
        settings: passed to `UnconditionalModel`.

    Raises:
        ValueError: the folder does not exist or holds no such model.
    """
    path = locate(folder)
    for part in ("unet", "scheduler"):
        if not (path / part).is_dir():
            raise ValueError(f"no {part}/ in model folder {str(path)!r}; save a diffusers pipeline there.")
    unet = UNet2DModel.from_pretrained(
        path / "unet", local_files_only=True, use_safetensors=True, low_cpu_mem_usage=False
    )
    scheduler = DDIMScheduler.from_pretrained(path / "scheduler", local_files_only=True)
    return UnconditionalModel(unet, scheduler, **settings)
