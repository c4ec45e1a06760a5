"""A diffusion model under study: a diffusers pipeline with a U-Net, called by its own `__call__`, changed by hooks."""

import inspect
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from copy import copy
from functools import cached_property, partial
from typing import Any

import torch
from diffusers import DDIMPipeline, DDIMScheduler, DiffusionPipeline, ImagePipelineOutput, UNet2DModel
from jaxtyping import Float
from torch import Tensor, nn

from difflens.models.base import Attachable, Batch, Edit, Generated, vocabulary_fingerprint, weights_fingerprint
from difflens.models.devices import autocast_denoiser, choose_precision
from difflens.models.guidance import BATCHED, UNGUIDED, Guidance
from difflens.models.hooks import Change, Read, SiteHooks, SiteReachedError
from difflens.models.sampling import (
    AsymmetricScheduler,
    OneStepScheduler,
    PixelScheduler,
    RespacedScheduler,
    add_noise,
    check_asymmetric,
    encode_images,
    image_generator,
    nearest_steps,
    normal,
    scheduler_of,
    squared_error,
    timestep_grid,
)
from difflens.vocabulary import UNTOUCHED, Branch, GenerationPlan, PerImage, Site

log = logging.getLogger(__name__)

GUIDANCE = 7.5
"""The scale of a text-to-image model that names none."""


class UnconditionalPipeline(DDIMPipeline):  # type: ignore[misc]
    """A U-Net on pixels and a DDIM schedule; unlike a `DDIMPipeline` it can be given its noise, as text-to-image ones can."""

    def __init__(self, unet: UNet2DModel, scheduler: Any, *, respaced: bool = False) -> None:
        super().__init__(unet, scheduler)
        # Not before super().__init__, which makes a plain DDIMScheduler of any: its step takes no learned variance.
        kind = RespacedScheduler if respaced else PixelScheduler
        self.register_modules(scheduler=kind.from_config(scheduler.config))

    @torch.no_grad()
    def __call__(self, *, latents: Tensor, num_inference_steps: int, generator: Any = None, **settings: Any) -> Any:
        """Images [n, 3, H, W] in [0, 1] of the noise; `settings` are those of the scheduler's step."""
        self.scheduler.set_timesteps(num_inference_steps)
        x = latents
        for t in self.scheduler.timesteps:
            output = self.unet(x, t, return_dict=False)[0]
            x = self.scheduler.step(output, t, x, generator=generator, return_dict=False, **settings)[0]
        return ImagePipelineOutput((self._pixels(x) / 2 + 0.5).clamp(0, 1))

    def _pixels(self, x: Tensor) -> Tensor:
        return x


class LatentPipeline(UnconditionalPipeline):
    """The same on the latents of an autoencoder, as diffusers' `LDMPipeline` (Rombach et al., 2022)."""

    def __init__(self, unet: UNet2DModel, scheduler: Any, vae: Any, *, respaced: bool = False) -> None:
        super().__init__(unet, scheduler, respaced=respaced)
        self.register_modules(vae=vae)
        self.vae_scale_factor = 2 ** (len(vae.config.block_out_channels) - 1)

    def _pixels(self, x: Tensor) -> Tensor:
        images: Tensor = self.vae.decode(x / self.vae.config.scaling_factor, return_dict=False)[0]
        return images


class DiffusionModel:
    """A diffusers pipeline whose hidden states can be read and edited while it samples.

    An image depends on (base seed, image id, micro-batch size), its prompt and its edit alone, never on its neighbours. A
    safety checker is switched off, since black images would enter every measurement.

    Args:
        pipeline: on its device and in its dtype; text-to-image, or an `UnconditionalPipeline`.
        name: what the model is called in tables and artifacts.
        steps: denoising steps.
        micro_batch: every pipeline call makes exactly this many images; the last micro-batch is padded.
        guidance: guidance scale; 1 or less computes no unconditional branch.
        guidance_rescale: see `Guidance`.
        negative_prompt: what the unconditional branch is given; None for the pipeline's own.
        eta: 0 for deterministic DDIM, 1 for DDPM-like noise; needs a DDIM scheduler if not 0.
        rederive_direction: see `ddim_step`; of unconditional models alone.
        height: of the images in pixels; None for the U-Net's own.
        width: likewise.
        precision: `bf16` runs a U-Net with float32 weights under autocast; else the name of the weights' dtype.
        calls: the branch of each denoiser call of a step (see `Guidance`); None where the pipeline makes one call.

    Raises:
        ValueError: a setting is out of its range or of the other kind of model, the pipeline has no U-Net, or the scheduler
            visits a timestep twice.
    """

    def __init__(
        self,
        pipeline: DiffusionPipeline,
        *,
        name: str,
        steps: int,
        micro_batch: int,
        guidance: float | None = None,
        guidance_rescale: float = 0.0,
        negative_prompt: str | None = None,
        eta: float = 0.0,
        rederive_direction: bool = False,
        height: int | None = None,
        width: int | None = None,
        precision: str = "fp32",
        calls: Sequence[str] | None = None,
    ) -> None:
        if micro_batch < 1:
            raise ValueError(f"model.micro_batch must be at least 1, got {micro_batch}.")
        self._adopt(pipeline)
        # A setting of the other kind of model would be ignored without a word.
        foreign: dict[str, Any] = {
            "guidance": guidance,
            "guidance_rescale": guidance_rescale,
            "negative_prompt": negative_prompt,
        }
        foreign |= {"height": height, "width": width, "calls": calls}
        if self.prompted:
            foreign = {"rederive_direction": rederive_direction}
        for key, value in foreign.items():
            if value:
                kind = "a text-to-image" if self.prompted else "an unconditional"
                raise ValueError(f"{kind} model knows no model.{key}, got {value!r}.")
        # The step written out here clips x_0 at a fixed range alone.
        if not self.prompted and pipeline.scheduler.config.thresholding:
            raise ValueError("no unconditional model is sampled with dynamic thresholding; set it to false.")
        if eta and not isinstance(pipeline.scheduler, DDIMScheduler):
            raise ValueError(f"model.eta {eta} needs model.scheduler=ddim, got {type(pipeline.scheduler).__name__}.")
        among = ("fp32", "fp16", "bf16") if self.prompted else ("fp32", "bf16")
        self.precision = choose_precision(precision, self.device.type, among=among)
        self.name, self.micro_batch, self.negative_prompt = name, micro_batch, negative_prompt
        self.eta, self.rederive_direction = float(eta), rederive_direction
        self.height, self.width = self._size(height, width)
        self._asked, self.timesteps = steps, timestep_grid(pipeline.scheduler, steps)
        scale = 1.0 if not self.prompted else GUIDANCE if guidance is None else float(guidance)
        self.guidance = Guidance(scale, float(guidance_rescale), tuple(calls or self._calls(scale)))
        self._known: set[str] = set()
        self._prepare()

    def _adopt(self, pipeline: DiffusionPipeline) -> None:
        """Take a pipeline as it is (ValueError: it has no U-Net)."""
        unet = getattr(pipeline, "unet", None)
        if not isinstance(unet, nn.Module):
            raise ValueError(f"{type(pipeline).__name__} has no U-Net; models of this kind are not supported.")
        # A diffusers U-Net has a device, a dtype and a configuration, which torch's own modules lack.
        self.pipeline: Any = pipeline
        self.unet: Any = unet
        device: Any = unet.device
        self.device: torch.device = device
        self.prompted = "prompt" in inspect.signature(pipeline.__call__).parameters

    studied: Sequence[float] | None = None
    """The timesteps of the model that fits were made on, where this one visits others (see `resampled`)."""

    @property
    def steps(self) -> int:
        """Number of denoising steps, as whatever was fitted counts them."""
        return len(self.studied or self.timesteps)

    @property
    def step_of(self) -> dict[float, int]:
        """The step that edits and probes are told at each timestep: the studied one of the nearest noise."""
        if self.studied is None:
            return {float(t): step for step, t in enumerate(self.timesteps)}
        return nearest_steps(self.timesteps, self.studied)

    def resampled(self, *, scheduler: Any = None, **changes: Any) -> "DiffusionModel":
        """The same networks, sampled otherwise; edits and probes meet the nearest steps of this model.

        Args:
            scheduler: another one, None for the model's own.
            changes: arguments of the constructor, such as `steps`, `guidance` and `eta`.

        Raises:
            ValueError: a setting is out of its range or of the other kind of model, or a timestep is far from all of this
                model's.
        """
        # A pipeline of its own for the scheduler's sake; the networks in it are the same objects.
        pipeline = copy(self.pipeline)
        # Past the pipeline's own setter, which would write the class into the configuration that both share.
        own = type(self.pipeline.scheduler).from_config(self.pipeline.scheduler.config)
        object.__setattr__(pipeline, "scheduler", scheduler or own)
        settings: dict[str, Any] = {"steps": self._asked, "eta": self.eta, "precision": self.precision}
        if self.prompted:
            settings |= {"guidance": self.guidance.scale, "guidance_rescale": self.guidance.rescale}
            settings |= {"negative_prompt": self.negative_prompt, "height": self.height, "width": self.width}
            # Of a pipeline that is called once a step, the scale tells whether its batch holds both branches.
            settings |= {"calls": self.guidance.calls} if len(self.guidance.calls) > 1 else {}
        else:
            settings |= {"rederive_direction": self.rederive_direction}
        other = DiffusionModel(pipeline, name=self.name, micro_batch=self.micro_batch, **{**settings, **changes})
        other.safety_checker, other.studied = self.safety_checker, self.studied or self.timesteps
        # Hashing gigabytes of weights again would find what is known.
        vars(other)["fingerprints"] = self.fingerprints
        other.step_of  # noqa: B018
        return other

    @property
    def _steps_attached(self) -> int:
        """Steps that a method stays attached for."""
        return len(self.timesteps)

    @property
    def default_branch(self) -> Branch:
        """The branch of a site whose configuration names none."""
        return "cond" if self.prompted else "none"

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of what is denoised."""
        factor = self._factor
        return self.unet.config.in_channels, self.height // factor, self.width // factor

    def spec(self) -> dict[str, Any]:
        """Everything that decides the samples: weights' fingerprint, scheduler, timesteps, precision, batch shape."""
        # Without entries like diffusers' version, which decide no sample: an upgrade would make every artifact anew.
        scheduler = {k: v for k, v in self.pipeline.scheduler.config.items() if not k.startswith("_")}
        common = {"name": self.name, "timesteps": self.timesteps, "eta": self.eta, "precision": self.precision}
        common |= {"micro_batch": self.micro_batch}
        if not self.prompted:
            own: dict[str, Any] = {"weights": self.fingerprints["unet"], "scheduler": scheduler}
            own |= {"vae": self.fingerprints["vae"]} if "vae" in self.fingerprints else {}
            if isinstance(self.pipeline.scheduler, RespacedScheduler):
                # The spec of an unconditional model names no class, so that this grid needs an entry of its own.
                own["respaced"] = True
            return common | own | {"rederive_direction": self.rederive_direction}
        return common | {
            "weights": self.fingerprints,
            "pipeline": type(self.pipeline).__name__,
            # Switches such as SDXL's force_zeros_for_empty_prompt change samples too.
            "pipeline_settings": {k: v for k, v in self.pipeline.config.items() if isinstance(v, bool | int | float)},
            "scheduler": {"class": type(self.pipeline.scheduler).__name__, **scheduler},
            "guidance": self.guidance.scale,
            "guidance_rescale": self.guidance.rescale,
            "calls": list(self.guidance.calls),
            "negative_prompt": self.negative_prompt,
            "size": [self.height, self.width],
            # Beside the precision: bf16 means float32 weights under autocast, or bfloat16 ones.
            "dtype": str(self.unet.dtype).removeprefix("torch."),
        }

    @cached_property
    def fingerprints(self) -> dict[str, str]:
        """Of every network and tokenizer of the pipeline, by its name there."""
        networks = {name: weights_fingerprint(network) for name, network in self._networks().items()}
        return networks | {name: vocabulary_fingerprint(part) for name, part in self._tokenizers().items()}

    def check_update(self, update: str) -> None:
        """Check that the model's sampler can make an update; else ValueError."""
        if update == "asymmetric":
            check_asymmetric(self.pipeline.scheduler)

    @torch.no_grad()
    def site_shape(self, site: Site) -> tuple[int, int, int]:
        """Channels, height and width of the activations at a site; the forward pass ends there.

        Raises:
            ValueError: the denoiser has no such module, it gives no map of activations, or the pipeline has no such branch.
        """
        branch, shapes = self._branch(site), []
        self.guidance.check_branch(branch)

        def read(_: int, h: Tensor) -> None:
            shapes.append(tuple(h.shape))
            raise SiteReachedError

        batch = Batch(
            PerImage(torch.zeros(1, dtype=torch.int64)),
            torch.zeros(1, *self.latent_shape),
            [""] * self.prompted or None,
        )
        # One row without guidance tells the shape of either branch.
        hooks = SiteHooks(self.unet, site, timesteps=self.timesteps, read=read)
        with suppress(SiteReachedError), self._autocast(), hooks:
            self._call_once(batch, timestep=self.timesteps[0], guidance=1.0)
        ((_, channels, height, width),) = shapes
        return channels, height * (2 if branch == "both" else 1), width

    def sample(
        self,
        plan: GenerationPlan,
        *,
        record: Site | None = None,
        readers: Mapping[Site, Read] | None = None,
        method: Attachable | Edit | None = None,
    ) -> Iterator[Generated]:
        """Generate the plan's images in full micro-batches, recording a site or changing the images on the way.

        Args:
            plan: which images.
            record: the site whose activations are given back, in half precision.
            readers: sites, and what is called at each with (step, activations [n, D, H, W] of the micro-batch's images).
            method: attached around each call of the pipeline (see `base.Attachable`); an `Edit` is attached at its site.

        Raises:
            ValueError: the plan lacks prompts or targets, or the model cannot make what the method asks for.
        """
        if isinstance(method, Edit):
            self.check_update(method.update)
        for start in range(0, len(plan.image_ids), self.micro_batch):
            yield self._sample_batch(plan.part(start, start + self.micro_batch), record, readers or {}, method)

    @torch.no_grad()
    def _sample_batch(
        self, plan: GenerationPlan, record: Site | None, readers: Mapping[Site, Read], method: Attachable | Edit | None
    ) -> Generated:
        n, batch = len(plan.image_ids), self._batch(plan, edited=method is not None)
        recorded: list[Tensor] = []
        with ExitStack() as stack:
            stack.enter_context(self._autocast())
            # Hooked first, so that at the same site it reads what comes before the edit.
            if record is not None:
                read = lambda _, h: recorded.append(h[:n].half().cpu())  # noqa: E731
                stack.enter_context(self.hooks(record, images=self.micro_batch, read=read))
            for site, take in readers.items():
                # Bound as a default, since each site has one of its own.
                own = lambda step, h, take=take: take(step, h[:n])  # noqa: E731
                stack.enter_context(self.hooks(site, images=self.micro_batch, read=own))
            if method is not None:
                stack.enter_context(self.attached(method, batch))
            made = self._call(batch, generator=batch.generators)
        activations = torch.stack(recorded, 1) if record is not None else None
        return Generated(plan.image_ids, made[:n].float().cpu(), activations)

    def _batch(self, plan: GenerationPlan, *, edited: bool = False) -> Batch:
        """The plan's images as one full micro-batch."""
        # Padded by repetition: pixels differ by up to one level of 255 across batch sizes.
        padded = plan.take(torch.arange(self.micro_batch) % len(plan.image_ids))
        generators = [image_generator(plan.base_seed, image_id) for image_id in padded.image_ids.tolist()]
        images = padded.per_image() if edited else PerImage(torch.full((self.micro_batch,), UNTOUCHED))
        # Drawn before a method is attached: comparisons pair images by id, which must begin with the same noise.
        latents = normal(generators, self.latent_shape, device=self.device)
        return Batch(images.to(self.device), latents, self._prompts(padded), generators)

    @torch.no_grad()
    def states(
        self, plan: GenerationPlan, site: Site, step: int
    ) -> Iterator[Float[Tensor, "images channels height width"]]:
        """The site's activations of the plan's images at a step of their unedited trajectories, which end there.

        The step must be one of those in `step_of`.
        """
        for start in range(0, len(plan.image_ids), self.micro_batch):
            part = plan.part(start, start + self.micro_batch)
            batch, found = self._batch(part), list[Tensor]()

            # The list is bound as a default, since each batch has one of its own.
            def read(now: int, h: Tensor, found: list[Tensor] = found) -> None:
                if now == step:
                    # A copy, since h may be a view that holds the rows of both branches in memory.
                    found.append(h.clone())
                    raise SiteReachedError

            with suppress(SiteReachedError), self._autocast(), self.hooks(site, images=self.micro_batch, read=read):
                self._call(batch, generator=batch.generators)
            yield found[0][: len(part.image_ids)]

    @torch.no_grad()
    def make(self, batch: Batch) -> Float[Tensor, "images 3 height width"]:
        """The images in [0, 1] that a call of the pipeline gives now; the batch's generators stay as they are."""
        assert batch.generators is not None
        # At eta > 0 a call uses its streams up, and the call that counts is still to come.
        return self._call(batch, generator=[generator.clone_state() for generator in batch.generators])

    def attached(self, method: Attachable | Edit, batch: Batch) -> AbstractContextManager[None]:
        """The method attached for one call; an edit that is no method is attached at its site."""
        return method.attach(self, batch) if isinstance(method, Attachable) else self.editing(method, batch.images)

    @contextmanager
    def editing(self, edit: Edit, images: PerImage) -> Iterator[None]:
        """Inside the block the pipeline's next call, of these images, is edited at the edit's site and in its window.

        At a step outside of the window, and wherever the edit changes no bit, the plain denoiser goes on at its own batch
        size, and so to the same bits; where no image has a target, nothing is attached.

        Raises:
            ValueError: the sampler cannot make the edit's update, or the pipeline does not compute the site's branch.
        """
        self.check_update(edit.update)
        change = self._change(edit, images)
        if change is None:
            yield
        elif edit.update == "symmetric":
            with self.hooks(edit.site, images=len(images.target), change=change):
                yield
        else:
            with self._asymmetric(getattr(edit, "focus", 0.0), getattr(edit, "release", 1.0)) as scheduler:
                keep = partial(scheduler.keep, branch=self._branch(edit.site))
                with self.hooks(edit.site, images=len(images.target), change=change, fork=True, aside=keep):
                    yield

    @contextmanager
    def hooks(self, site: Site, *, images: int, steps: int | None = None, **how: Any) -> Iterator[None]:
        """`SiteHooks` on the rows of the site's branch, which the call must hold once in each of its `steps`.

        There are `images` rows of a branch; as many `steps` as a method stays attached for if None; `how` is `read`,
        `change`, `fork` and `aside` of `SiteHooks`.

        Raises:
            ValueError: the pipeline does not compute that branch.
            RuntimeError: it computed the branch more or less often.
        """
        branch = self._branch(site)
        how |= {"rows": self.guidance.rows(branch, images), "batch": self.guidance.batch(images)}
        how |= {"numbers": list(self.step_of.values()), "stacked": branch == "both"}
        with SiteHooks(self.unet, site, timesteps=self.timesteps, **how) as hooks:
            yield
        steps = self._steps_attached if steps is None else steps
        # A pipeline that skips the branch at some steps would leave them unread or unedited without a word.
        if hooks.calls != steps:
            raise RuntimeError(f"the pipeline computed the branch {branch!r} {hooks.calls} times in {steps} steps.")

    @torch.no_grad()
    def denoising_loss(
        self,
        images: Float[Tensor, "images 3 height width"],
        step: int,
        *,
        site: Site,
        change: Callable[[Tensor], Tensor] | None = None,
        seed: int = 0,
        prompts: Sequence[str] | None = None,
    ) -> Float[Tensor, "images"]:
        """Squared error of the denoiser on each image in [0, 1] noised to `step`, the site's activations changed or not.

        The noise is the same for every change. A model of latents encodes the images by its VAE; a text-to-image one needs a
        prompt for each image and measures the branch of the site.
        """
        n, t, scheduler = len(images), self.timesteps[step], self.pipeline.scheduler
        if self.prompted and (prompts is None or len(prompts) != n):
            raise ValueError(f"the denoising loss of {n} images needs their prompts, one for each.")
        vae = self.pipeline.components.get("vae")
        clean = (images * 2 - 1).to(self.device) if vae is None else encode_images(vae, images)
        noise = normal([image_generator(seed, row) for row in range(n)], clean.shape[1:], device=self.device)
        noisy = add_noise(scheduler, clean, noise, int(t))
        outputs: dict[int, Tensor] = {}
        # Taken at the denoiser, since the pipeline goes on to mix the branches by guidance.
        keep = lambda call, output, _: outputs.update({call: output})  # noqa: E731
        edit = None if change is None else lambda h, _: change(h)
        batch = Batch(PerImage(torch.full((n,), UNTOUCHED)), noisy, list(prompts or ()) or None)
        with self._autocast(), self.hooks(site, images=n, steps=1, change=edit, aside=keep):
            # At the model's own scale: with less, a guided model may not compute the unconditional branch.
            self._call_once(batch, timestep=t, guidance=self.guidance.scale)
        branch = enumerate(self.guidance.rows(self._branch(site), n))
        picked = [outputs[call][rows] for call, rows in branch if rows is not None]
        errors = squared_error(scheduler, torch.cat(picked), int(t), noisy=noisy, noise=noise)
        return errors.view(-1, n).mean(0).cpu()  # of both branches where the site has both

    def _call(self, batch: Batch, **more: Any) -> Tensor:
        """The pipeline's own call: images [n, 3, H, W] in [0, 1], unless `more` asks for something else."""
        latents = batch.latents.to(self.device, self.unet.dtype)
        given: dict[str, Any] = {"latents": latents, "num_inference_steps": self._asked, "eta": self.eta}
        if not self.prompted:
            given |= {"use_clipped_model_output": self.rederive_direction}
            # The others, such as output_type, are settings of text-to-image pipelines.
            more = {name: value for name, value in more.items() if name == "generator"}
            return self.pipeline(**{**given, **more, **batch.settings}).images
        # Not every pipeline knows these, so they are passed only where they say something.
        given = {name: value for name, value in given.items() if name != "eta" or value}
        if self.guidance.rescale:
            given["guidance_rescale"] = self.guidance.rescale
        if self.negative_prompt is not None and self.guidance.calls != UNGUIDED:
            given["negative_prompt"] = [self.negative_prompt] * len(latents)
        if batch.prompts is not None:
            given["prompt"] = list(batch.prompts)
        given |= {"guidance_scale": self.guidance.scale, "height": self.height, "width": self.width}
        return self.pipeline(**{**given, "output_type": "pt", **more, **batch.settings}).images

    def _call_once(self, batch: Batch, *, timestep: float, guidance: float) -> None:
        """One denoising step of the pipeline at a timestep, on latents as the denoiser sees them."""
        stand_in = OneStepScheduler(self.pipeline.scheduler.config, timestep)
        with scheduler_of(self.pipeline, stand_in):
            self._call(batch, guidance_scale=guidance, output_type="latent")

    def _change(self, edit: Edit, images: PerImage) -> Change | None:
        """What the edit does to activations of these images, None where it may touch none of them."""
        if not bool((images.target != UNTOUCHED).any()):
            return None

        def change(h: Tensor, step: int) -> Tensor | None:
            if not edit.active(step, self.steps):
                return None
            edited = edit(h, step, images)
            # Bit for bit: a fork for nothing costs a second pass, and another batch size gives other bits.
            return None if torch.equal(edited, h) else edited

        return change

    @contextmanager
    def _asymmetric(self, focus: float, release: float) -> Iterator[AsymmetricScheduler]:
        """The scheduler that takes both estimates, in the place of the pipeline's own."""
        scheduler = AsymmetricScheduler(self.pipeline.scheduler, self.guidance, self.unet, focus=focus, release=release)
        with scheduler_of(self.pipeline, scheduler), scheduler.remembering():
            yield scheduler

    def _branch(self, site: Site) -> str:
        """The branch of a site; an unconditional model's only one counts as `cond`."""
        return "cond" if site.branch == "none" and not self.prompted else site.branch

    def _networks(self) -> dict[str, nn.Module]:
        return {name: part for name, part in self.pipeline.components.items() if isinstance(part, nn.Module)}

    def _tokenizers(self) -> dict[str, Any]:
        return {name: part for name, part in self.pipeline.components.items() if hasattr(part, "get_vocab")}

    def _autocast(self) -> AbstractContextManager[None]:
        """The denoiser's number format; entered before any hook, so that hooks see the output as the pipeline does."""
        return autocast_denoiser(self.unet, enabled=self.precision == "bf16" and self.unet.dtype == torch.float32)

    def _calls(self, guidance: float) -> tuple[str, ...]:
        """One doubled call or one plain one, by the pipeline's own flag, which reads the scale that its call sets."""
        self.pipeline._guidance_scale = guidance
        return BATCHED if getattr(self.pipeline, "do_classifier_free_guidance", False) else UNGUIDED

    @property
    def _factor(self) -> int:
        """Pixels per latent, along a side."""
        return getattr(self.pipeline, "vae_scale_factor", 1)

    def _size(self, height: int | None, width: int | None) -> tuple[int, int]:
        factor, size = self._factor, self.unet.config.sample_size
        own = (size, size) if isinstance(size, int) else tuple(size)
        height, width = height or own[0] * factor, width or own[1] * factor
        # diffusers asks for multiples of 8 whatever the VAE's factor, but only when the pipeline is called.
        if self.prompted and (height % 8 or width % 8 or height % factor or width % factor):
            raise ValueError(f"model.height and model.width must be multiples of 8, got {height} and {width}.")
        return height, width

    def _prepare(self) -> None:
        """Weights frozen; no progress bar, no watermark, and no safety checker, whose black images would enter tables."""
        self.pipeline.set_progress_bar_config(disable=True)
        checker = getattr(self.pipeline, "safety_checker", None)
        had = checker is not None or getattr(self.pipeline, "had_safety_checker", False)
        self.safety_checker = "switched off" if had else None
        # A watermark, which SDXL adds where its package is installed, would change every image.
        for name in ("safety_checker", "watermark"):
            if getattr(self.pipeline, name, None) is not None:
                setattr(self.pipeline, name, None)
        for network in self._networks().values():
            network.eval().requires_grad_(False)
        # Prompts that are too long are named once, by the model; pipeline and tokenizer would repeat it at every call.
        for tokenizer in self._tokenizers().values():
            tokenizer.deprecation_warnings["sequence-length-is-longer-than-the-specified-maximum"] = True
        if self.prompted:
            logging.getLogger(type(self.pipeline).__module__).setLevel(logging.ERROR)

    def _prompts(self, plan: GenerationPlan) -> list[str] | None:
        """The plan's prompts; one too long for a tokenizer is named once, with the part that is not read."""
        if not self.prompted:
            return None
        if plan.prompts is None:
            raise ValueError("a text-to-image model needs plan.prompts: one prompt per image.")
        for prompt in sorted(set(plan.prompts) - self._known):
            unread = next((lost for part in self._tokenizers().values() if (lost := cut_off(prompt, part))), None)
            if unread:
                log.warning("prompt %r is longer than the model reads; it never sees %r", prompt, unread)
        self._known |= set(plan.prompts)
        return list(plan.prompts)


def cut_off(prompt: str, tokenizer: Any) -> str:
    """The end of a prompt that a CLIP tokenizer's length leaves unread; empty if it is read whole."""
    tokens = tokenizer(prompt).input_ids
    # The last place that is read is the end token's, which here stands behind all others.
    unread = tokens[tokenizer.model_max_length - 1 : -1]
    return tokenizer.decode(unread).strip() if unread else ""
