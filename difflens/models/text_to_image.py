"""Text-to-image models: any diffusers pipeline with a U-Net, run by its own `__call__`, read and edited by hooks."""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import cached_property
from typing import Any

import torch
from diffusers import DDIMScheduler, DiffusionPipeline
from torch import Tensor

from difflens.models.base import DiffusionModel, Edit, Generated, weights_fingerprint
from difflens.models.driven_pipeline import DrivenPipeline
from difflens.models.edits import change_by
from difflens.models.hooks import SiteHooks
from difflens.models.latents import add_noise, encode_images, squared_error
from difflens.models.noise import image_generator, normal
from difflens.models.prompts import cut_off, vocabulary_fingerprint
from difflens.models.schedulers import AsymmetricScheduler, scheduler_of
from difflens.vocabulary import Branch, GenerationPlan, Site

log = logging.getLogger(__name__)


class _SiteReachedError(Exception):
    """Ends a forward pass at the site, whose shape is all that was asked for."""


class TextToImageModel(DiffusionModel):
    """A diffusers text-to-image pipeline, used as it is; its safety checker is switched off, as evaluation needs.

    Args:
        pipeline: on its device and in its dtype.
        name: what the model is called in tables and artifacts.
        steps: denoising steps.
        micro_batch: every pipeline call makes exactly this many images; the last micro-batch is padded.
        guidance: guidance scale; 1 or less computes no unconditional branch.
        guidance_rescale: see `Guidance`.
        negative_prompt: what the unconditional branch is given; None for the pipeline's own.
        eta: 0 for deterministic DDIM, 1 for DDPM-like noise; needs a DDIM scheduler if not 0.
        height: of the images in pixels; None for the U-Net's own.
        width: likewise.
        precision: `bf16` runs a U-Net with float32 weights under autocast; else the name of the weights' dtype.
        calls: the branch of each denoiser call of a step (see `Guidance`); None where the pipeline makes one call.

    Raises:
        ValueError: a setting is out of its range, or the scheduler visits a timestep twice.
    """

    default_branch: Branch = "cond"

    def __init__(
        self,
        pipeline: DiffusionPipeline,
        *,
        name: str,
        steps: int,
        micro_batch: int,
        guidance: float = 7.5,
        guidance_rescale: float = 0.0,
        negative_prompt: str | None = None,
        eta: float = 0.0,
        height: int | None = None,
        width: int | None = None,
        precision: str = "fp32",
        calls: Sequence[str] | None = None,
    ) -> None:
        if micro_batch < 1:
            raise ValueError(f"model.micro_batch must be at least 1, got {micro_batch}.")
        self.driven = DrivenPipeline(
            pipeline,
            steps=steps,
            guidance=guidance,
            guidance_rescale=guidance_rescale,
            negative_prompt=negative_prompt,
            eta=eta,
            height=height,
            width=width,
            precision=precision,
            calls=calls,
        )
        self.name, self.micro_batch, self.pipeline = name, micro_batch, pipeline
        self.timesteps, self.guidance, self.device = self.driven.timesteps, self.driven.guidance, self.driven.device
        self.steps = len(self.timesteps)
        self.safety_checker = "switched off" if self.driven.switched_off_checker else None
        self._known: set[str] = set()

    def spec(self) -> dict[str, Any]:
        """See `DiffusionModel.spec`."""
        own = {"name": self.name, "weights": self.fingerprints, "micro_batch": self.micro_batch}
        return own | self.driven.spec()

    @cached_property
    def fingerprints(self) -> dict[str, str]:
        """Of every network and tokenizer of the pipeline, by its name there."""
        networks = {name: weights_fingerprint(network) for name, network in self.driven.networks().items()}
        return networks | {name: vocabulary_fingerprint(part) for name, part in self.driven.tokenizers().items()}

    def check_update(self, update: str) -> None:
        """See `DiffusionModel.check_update`: the asymmetric one is written out for DDIM alone."""
        scheduler = self.pipeline.scheduler
        if update == "asymmetric" and not isinstance(scheduler, DDIMScheduler):
            raise ValueError(
                f"the asymmetric update needs the DDIM scheduler, this model has {type(scheduler).__name__}: "
                "use model.scheduler=ddim or mitigation.update=symmetric."
            )
        if update == "asymmetric" and scheduler.config.thresholding:
            raise ValueError("the asymmetric update knows no dynamic thresholding; use mitigation.update=symmetric.")

    @torch.no_grad()
    def site_shape(self, site: Site) -> tuple[int, int, int]:
        """See `DiffusionModel.site_shape`; the forward pass ends at the site."""
        self.guidance.check_branch(site.branch)
        shapes: list[tuple[int, ...]] = []

        def read(_: int, h: Tensor) -> None:
            shapes.append(tuple(h.shape))
            raise _SiteReachedError

        latents = torch.zeros(1, *self.driven.latent_shape)
        hooks = SiteHooks(self.driven.unet, site, timesteps=self.timesteps, read=read)
        try:
            with self.driven.autocast(), hooks:
                self.driven.call_once([""], latents, timestep=self.timesteps[0], guidance=1.0)
        except _SiteReachedError:
            pass
        if len(shapes[0]) != 4:
            raise ValueError(f"site {site.module!r} gives activations of shape {shapes[0]}, not a map [n, D, H, W].")
        _, channels, height, width = shapes[0]
        return channels, height * (2 if site.branch == "both" else 1), width

    def sample(
        self, plan: GenerationPlan, *, record: Site | None = None, edit: Edit | None = None
    ) -> Iterator[Generated]:
        """See `DiffusionModel.sample`."""
        if edit is not None:
            self.check_update(edit.update)
        for start in range(0, len(plan.image_ids), self.micro_batch):
            yield self._sample_batch(plan.part(start, start + self.micro_batch), record, edit)

    @torch.no_grad()
    def _sample_batch(self, plan: GenerationPlan, record: Site | None, edit: Edit | None) -> Generated:
        n, full = len(plan.image_ids), self.micro_batch
        rows = (torch.arange(full) % n).tolist()
        prompts = self._prompts(plan, rows)
        generators = [image_generator(plan.base_seed, int(plan.image_ids[row])) for row in rows]
        latents = normal(generators, self.driven.latent_shape, device=self.device)
        recorded: list[Tensor] = []
        with ExitStack() as stack:
            stack.enter_context(self.driven.autocast())
            if record is not None:
                read = lambda _, h: recorded.append(h[:n].half().cpu())  # noqa: E731
                stack.enter_context(self.driven.hooks(record, images=full, read=read))
            if edit is not None:
                self._attach(stack, edit, plan, rows)
            images = self.driven(prompts, latents, generator=generators)
        activations = torch.stack(recorded, 1) if record is not None else None
        return Generated(plan.image_ids, images[:n].float().cpu(), activations)

    @torch.no_grad()
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
        """See `DiffusionModel.denoising_loss`; the VAE encodes the images, the noise is the same for every change."""
        n, t, scheduler = len(images), self.timesteps[step], self.pipeline.scheduler
        if prompts is None or len(prompts) != n:
            raise ValueError(f"the denoising loss of {n} images needs their prompts, one for each.")
        clean = encode_images(self.pipeline.vae, images)
        noise = normal([image_generator(seed, row) for row in range(n)], clean.shape[1:], device=self.device)
        noisy = add_noise(scheduler, clean, noise, int(t))
        outputs: dict[int, Tensor] = {}
        keep = lambda call, output, _: outputs.update({call: output})  # noqa: E731
        edit = None if change is None else lambda h, _: change(h)
        with self.driven.autocast(), self.driven.hooks(site, images=n, steps=1, change=edit, aside=keep):
            self.driven.call_once(prompts, noisy, timestep=t, guidance=self.guidance.scale)
        branch = enumerate(self.guidance.rows(site.branch, n))
        picked = [outputs[call][rows] for call, rows in branch if rows is not None]
        return float(squared_error(scheduler, torch.cat(picked), int(t), noisy=noisy, noise=noise).mean())

    def _attach(self, stack: ExitStack, edit: Edit, plan: GenerationPlan, rows: list[int]) -> None:
        """Edit one micro-batch's images for as long as the stack is open; where none has a target, attach nothing."""
        images = plan.take(torch.tensor(rows)).per_image().to(self.device)
        change = change_by(edit, images, steps=self.steps)
        if change is None:
            return
        if edit.update == "symmetric":
            stack.enter_context(self.driven.hooks(edit.site, images=len(rows), change=change))
            return
        scheduler = AsymmetricScheduler(self.pipeline.scheduler, self.guidance, branch=edit.site.branch)
        stack.enter_context(scheduler_of(self.pipeline, scheduler))
        hooks = self.driven.hooks(edit.site, images=len(rows), change=change, fork=True, aside=scheduler.keep)
        stack.enter_context(hooks)

    def _prompts(self, plan: GenerationPlan, rows: list[int]) -> list[str]:
        """The prompts of the plan's rows; one too long for a tokenizer is named once, with the part that is not read."""
        if plan.prompts is None:
            raise ValueError("a text-to-image model needs plan.prompts: one prompt per image.")
        for prompt in sorted(set(plan.prompts) - self._known):
            tokenizers = self.driven.tokenizers().values()
            unread = next((lost for tokenizer in tokenizers if (lost := cut_off(prompt, tokenizer))), None)
            if unread:
                log.warning("prompt %r is longer than the model reads; it never sees %r", prompt, unread)
        self._known |= set(plan.prompts)
        return [plan.prompts[row] for row in rows]
