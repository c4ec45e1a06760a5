"""A diffusers pipeline with its settings: called by its own `__call__`, hooked only inside context managers."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from diffusers import DDIMScheduler, DiffusionPipeline
from torch import Tensor, nn

from difflens.models.guidance import BATCHED, UNGUIDED, Guidance, stack_branches, unstack_branches
from difflens.models.hooks import Aside, Change, Read, SiteHooks
from difflens.models.precision import autocast_denoiser, choose_precision
from difflens.models.schedulers import OneStepScheduler, scheduler_of, timestep_grid
from difflens.vocabulary import Site


class DrivenPipeline:
    """A pipeline with a `unet`, a `vae`, a `tokenizer` and a `scheduler`; the arguments are `TextToImageModel`'s."""

    def __init__(
        self,
        pipeline: DiffusionPipeline,
        *,
        steps: int,
        guidance: float,
        guidance_rescale: float,
        negative_prompt: str | None,
        eta: float,
        height: int | None,
        width: int | None,
        precision: str,
        calls: Sequence[str] | None,
    ) -> None:
        if eta and not isinstance(pipeline.scheduler, DDIMScheduler):
            raise ValueError(f"model.eta {eta} needs model.scheduler=ddim, got {type(pipeline.scheduler).__name__}.")
        self.pipeline, self.unet, self.device = pipeline, pipeline.unet, pipeline.unet.device
        self.precision = choose_precision(precision, self.device.type)
        self.eta, self.negative_prompt = float(eta), negative_prompt
        self.height, self.width = self._size(height, width)
        self._asked, self.timesteps = steps, timestep_grid(pipeline.scheduler, steps)
        self.guidance = Guidance(float(guidance), float(guidance_rescale), tuple(calls or self._calls(guidance)))
        self._prepare()

    def spec(self) -> dict[str, Any]:
        """Everything but the weights that decides the samples."""
        config, scheduler = self.pipeline.config, self.pipeline.scheduler
        settings = {k: v for k, v in scheduler.config.items() if not k.startswith("_")}
        return {
            "pipeline": type(self.pipeline).__name__,
            "pipeline_settings": {k: v for k, v in config.items() if isinstance(v, bool | int | float)},
            "scheduler": {"class": type(scheduler).__name__, **settings},
            "timesteps": self.timesteps,
            "guidance": self.guidance.scale,
            "guidance_rescale": self.guidance.rescale,
            "calls": list(self.guidance.calls),
            "negative_prompt": self.negative_prompt,
            "eta": self.eta,
            "size": [self.height, self.width],
            "precision": self.precision,
            "dtype": str(self.unet.dtype).removeprefix("torch."),
        }

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of the latents."""
        factor = self.pipeline.vae_scale_factor
        return self.unet.config.in_channels, self.height // factor, self.width // factor

    def networks(self) -> dict[str, nn.Module]:
        """The pipeline's networks by their names there."""
        return {name: part for name, part in self.pipeline.components.items() if isinstance(part, nn.Module)}

    def tokenizers(self) -> dict[str, Any]:
        """The pipeline's tokenizers by their names there."""
        return {name: part for name, part in self.pipeline.components.items() if hasattr(part, "get_vocab")}

    def autocast(self) -> AbstractContextManager[None]:
        """The denoiser's number format; entered before any hook, so that hooks see the output as the pipeline does."""
        return autocast_denoiser(self.unet, enabled=self.precision == "bf16" and self.unet.dtype == torch.float32)

    def __call__(self, prompts: Sequence[str], latents: Tensor, **settings: Any) -> Tensor:
        """The pipeline's own call: images [n, 3, H, W] in [0, 1], unless `settings` ask for something else."""
        usual = {"guidance_scale": self.guidance.scale, "height": self.height, "width": self.width, "output_type": "pt"}
        # Not every pipeline knows these, so they are passed only where they say something.
        optional: dict[str, Any] = {"eta": self.eta, "guidance_rescale": self.guidance.rescale}
        if self.negative_prompt is not None and self.guidance.calls != UNGUIDED:
            optional["negative_prompt"] = [self.negative_prompt] * len(prompts)
        given = {name: value for name, value in optional.items() if value}
        latents = latents.to(self.device, self.unet.dtype)
        made = self.pipeline(
            prompt=list(prompts), latents=latents, num_inference_steps=self._asked, **{**usual, **given, **settings}
        )
        return made.images

    def call_once(self, prompts: Sequence[str], latents: Tensor, *, timestep: float, guidance: float) -> None:
        """One denoising step of the pipeline at a timestep, on latents as the denoiser sees them."""
        stand_in = OneStepScheduler(self.pipeline.scheduler.config, timestep)
        with scheduler_of(self.pipeline, stand_in):
            self(prompts, latents, guidance_scale=guidance, output_type="latent")

    @contextmanager
    def hooks(
        self,
        site: Site,
        *,
        images: int,
        steps: int | None = None,
        read: Read | None = None,
        change: Change | None = None,
        fork: bool = False,
        aside: Aside | None = None,
    ) -> Iterator[None]:
        """`SiteHooks` on the rows of the site's branch, which must hold it once in each of the steps.

        Raises:
            ValueError: the pipeline does not compute that branch.
            RuntimeError: it computed the branch more or less often.
        """
        rows, batch = self.guidance.rows(site.branch, images), self.guidance.batch(images)
        if site.branch == "both":
            read, change = _on_stacked(read, change)
        hooks = SiteHooks(
            self.unet,
            site,
            timesteps=self.timesteps,
            read=read,
            change=change,
            fork=fork,
            rows=rows,
            aside=aside,
            batch=batch,
        )
        with hooks:
            yield
        steps = len(self.timesteps) if steps is None else steps
        if hooks.calls != steps:
            raise RuntimeError(
                f"the pipeline computed the branch {site.branch!r} {hooks.calls} times in {steps} steps."
            )

    def _calls(self, guidance: float) -> tuple[str, ...]:
        """One doubled call or one plain one, by the pipeline's own flag, which reads the scale that its call sets."""
        self.pipeline._guidance_scale = guidance
        return BATCHED if self.pipeline.do_classifier_free_guidance else UNGUIDED

    def _size(self, height: int | None, width: int | None) -> tuple[int, int]:
        factor, size = self.pipeline.vae_scale_factor, self.unet.config.sample_size
        own = (size, size) if isinstance(size, int) else tuple(size)
        height, width = height or own[0] * factor, width or own[1] * factor
        if height % 8 or width % 8 or height % factor or width % factor:
            raise ValueError(f"model.height and model.width must be multiples of 8, got {height} and {width}.")
        return height, width

    def _prepare(self) -> None:
        """Weights frozen; no progress bar, no watermark, and no safety checker, whose black images would enter tables."""
        self.pipeline.set_progress_bar_config(disable=True)
        checker = getattr(self.pipeline, "safety_checker", None)
        self.switched_off_checker = checker is not None or getattr(self.pipeline, "had_safety_checker", False)
        for name in ("safety_checker", "watermark"):
            if getattr(self.pipeline, name, None) is not None:
                setattr(self.pipeline, name, None)
        for network in self.networks().values():
            network.eval().requires_grad_(False)
        # Prompts that are too long are named once, by the model; pipeline and tokenizer would repeat it at every call.
        for tokenizer in self.tokenizers().values():
            tokenizer.deprecation_warnings["sequence-length-is-longer-than-the-specified-maximum"] = True
        logging.getLogger(type(self.pipeline).__module__).setLevel(logging.ERROR)


def _on_stacked(read: Read | None, change: Change | None) -> tuple[Read | None, Change | None]:
    """Readers and changes of the two branches' maps, given one above the other."""

    def read_stacked(step: int, rows: Tensor) -> None:
        assert read is not None
        read(step, stack_branches(rows))

    def change_stacked(rows: Tensor, step: int) -> Tensor | None:
        assert change is not None
        edited = change(stack_branches(rows), step)
        return None if edited is None else unstack_branches(edited)

    return read and read_stacked, change and change_stacked
