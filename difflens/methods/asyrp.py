"""Asyrp: one small network per class shifts the activations at noisy steps, trained until CLIP sees the class appear.

Kwon et al. 2023 (arXiv 2210.10960), "Diffusion Models Already Have a Semantic Latent Space", sections 3 and 4, with the
network and the loss of the released code. That trains on inverted photographs one by one, here on the model's own noise in
small batches; its texts describe photographs, here they are one sentence with a slot for the class; the noise that it adds
at the last steps is left out, so that the sampler is every other method's. The CLIP is that of the measures.
"""

import math
from collections.abc import Mapping
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import cosine_similarity, group_norm, silu

from difflens.data.prompts import SLOT, fill
from difflens.judges.protocol import Clip
from difflens.methods.base import Given, MapEdit, Method, Window, check_update
from difflens.models.hooks import SiteHooks
from difflens.models.model import DiffusionModel
from difflens.models.sampling import ddim_step, estimate, image_generator, normal
from difflens.store.progress import progress
from difflens.vocabulary import Attribute, Site

FIRST_ID = 6_000_000
"""Images that are learnt from get ids that no other image has."""
TIMES = "times"


class Asyrp(Method):
    """h′ = h + r f_c(h, t); the released code adds it once (r = 1).

    Args:
        images: that are learnt from.
        rounds: how often each is, for each class.
        batch: images of an update.
        lr: of stochastic gradient descent; an update follows each edited step.
        keep: weight of the mean absolute difference to the unedited image.
        text: what CLIP is told, with a slot for the class's word.
        seed: of noise, first weights and the order of images.
        update: `asymmetric` as published, or `symmetric`; training is asymmetric.
        window: the edited steps; in the released code those of timestep 500 and above.

    Raises:
        ValueError: the text has no slot, or another one.
    """

    reads_clip: ClassVar[bool] = True

    def __init__(
        self,
        *,
        images: int = 100,
        rounds: int = 5,
        batch: int = 4,
        lr: float = 0.5,
        keep: float = 3.0,
        text: str = "a face of a {} person",
        seed: int = 9009,
        update: str = "asymmetric",
        window: Window | None = None,
    ) -> None:
        check_update(update)
        if text.count(SLOT) != 1:
            raise ValueError(f"mitigation.text needs exactly one slot {SLOT} for a class's word, got {text!r}.")
        self.images, self.rounds, self.batch, self.lr, self.keep = images, rounds, batch, lr, keep
        self.text, self.seed, self.update, self.window = text, seed, update, window or Window(0.0, 0.5)

    def learn(self, given: Given) -> dict[str, Tensor]:
        """The weights of each class's network (see `delta_block`), first axis classes, and `times` [steps, T].

        Raises:
            ValueError: the model takes prompts, or nobody says how the classes are called.
        """
        assert given.model is not None and given.clip is not None
        if given.model.prompted:
            raise ValueError("mitigation=asyrp is written out for models without prompts; choose another one.")
        if not given.words:
            raise ValueError(
                "mitigation=asyrp learns an attribute from its classes' words, which one that is held lacks."
            )
        clip, model = given.clip(), given.model
        towards = clip.embed_texts([fill(self.text, word) for word in given.words])
        # Where every image is pushed from: what the sentence says of a person of no class.
        towards = (towards - clip.embed_texts([fill(self.text)])).to(model.device)
        times = time_embeddings(model)
        told = self._unedited(model, clip)
        found = []
        for index, name in enumerate(given.attribute.classes):
            found.append(self._trained(given, clip, told, towards[index], times, title=f"network of {name}"))
        return {name: torch.cat([each[name] for each in found]).cpu() for name in found[0]} | {TIMES: times.cpu()}

    def edit(self, given: Given, learnt: Mapping[str, Tensor]) -> "BlockEdit":
        """See `Method.edit`."""
        return BlockEdit(given.attribute, learnt, site=given.site, update=self.update, window=self.window)

    def _steps(self, model: DiffusionModel) -> list[int]:
        return [step for step in range(model.steps) if self.window.holds(step, model.steps)]

    @torch.no_grad()
    def _unedited(self, model: DiffusionModel, clip: Clip) -> "Unedited":
        """What the unedited images look like where training compares with them."""
        generators = [image_generator(self.seed, FIRST_ID + i) for i in range(self.images)]
        noise = normal(generators, model.latent_shape, device=model.device)
        starts, clean, finished = [], [], []
        for x in noise.split(model.micro_batch):
            predicted = []
            for step in range(model.steps):
                if step == self._steps(model)[0]:
                    starts.append(x)
                output = denoised(model, x, step)
                predicted.append(estimate(model.pipeline.scheduler, output, int(model.timesteps[step]), x).clean)
                x = stepped(model, x, step, output)
            # On the CPU, where there is room for all of them.
            clean.append(torch.stack([predicted[step].cpu() for step in self._steps(model)]))
            finished.append(clip.embed_pixels(in_unit_range(x)))
        return Unedited(torch.cat(starts), torch.cat(clean, 1), torch.cat(finished))

    def _trained(
        self, given: Given, clip: Clip, told: "Unedited", towards: Tensor, times: Tensor, *, title: str
    ) -> dict[str, Tensor]:
        assert given.model is not None
        model = given.model
        # On the CPU, so that every device learns from the same draws.
        generator = torch.Generator().manual_seed(self.seed)
        channels = model.site_shape(given.site)[0]
        weights = first_weights(channels, times.shape[1], generator)
        weights = {name: value.to(model.device).requires_grad_() for name, value in weights.items()}
        optimiser = torch.optim.SGD(list(weights.values()), lr=self.lr)
        for _ in progress(range(self.rounds), title):
            for rows in torch.randperm(self.images, generator=generator).split(self.batch):
                x = told.starts[rows.to(model.device)]
                for place, step in enumerate(self._steps(model)):
                    output = denoised(model, x, step)
                    edited = changed(model, given.site, x, step, weights, times)
                    clean = estimate(model.pipeline.scheduler, edited, int(model.timesteps[step]), x).clean
                    with torch.enable_grad():
                        seen = clip.embed_pixels(in_unit_range(clean))
                        loss = direction_loss(seen - told.finished[rows.to(seen.device)], towards).mean()
                        loss = loss + self.keep * (clean - told.clean[place, rows].to(clean)).abs().mean()
                    optimiser.zero_grad()
                    loss.backward()  # type: ignore[no-untyped-call]
                    optimiser.step()
                    x = stepped(model, x, step, output, edited.detach())
        return {name: value.detach() for name, value in weights.items()}


class Unedited(NamedTuple):
    """Images without an edit: x at the first edited step, predicted x_0 at every edited one, CLIP's view of the finished."""

    starts: Float[Tensor, "images channels height width"]
    clean: Float[Tensor, "steps images channels height width"]
    finished: Float[Tensor, "images embed"]


def in_unit_range(images: Tensor) -> Tensor:
    """Images in [−1, 1], and a little beyond, as images in [0, 1]."""
    return (images / 2 + 0.5).clamp(0, 1)


@torch.no_grad()
def denoised(model: DiffusionModel, x: Tensor, step: int) -> Tensor:
    """The denoiser's own output."""
    output: Tensor = model.unet(x, int(model.timesteps[step]), return_dict=False)[0]
    return output[:, : x.shape[1]]


def changed(
    model: DiffusionModel, site: Site, x: Tensor, step: int, weights: Mapping[str, Tensor], times: Tensor
) -> Tensor:
    """The same with h + f(h, t) at the site, with gradients."""
    change = lambda h, at: h + delta_block(h.float(), times[at], weights).to(h.dtype)  # noqa: E731
    with torch.enable_grad(), SiteHooks(model.unet, site, timesteps=model.timesteps, change=change):
        output: Tensor = model.unet(x, int(model.timesteps[step]), return_dict=False)[0]
    return output[:, : x.shape[1]]


@torch.no_grad()
def stepped(model: DiffusionModel, x: Tensor, step: int, output: Tensor, edited: Tensor | None = None) -> Tensor:
    """Images at the next step of the deterministic sampler."""
    model.pipeline.scheduler.set_timesteps(model.steps)
    return ddim_step(
        model.pipeline.scheduler,
        output,
        timestep=int(model.timesteps[step]),
        x=x,
        edited_output=edited,
        rederive_direction=model.rederive_direction,
    )


@torch.no_grad()
def time_embeddings(model: DiffusionModel) -> Float[Tensor, "steps dim"]:
    """What the denoiser itself makes of every timestep."""
    unet = model.unet
    projected = unet.time_proj(torch.tensor([float(t) for t in model.timesteps], device=model.device))
    found: Tensor = unet.time_embedding(projected.to(unet.dtype))
    return found.float()


def direction_loss(change: Float[Tensor, "images embed"], towards: Float[Tensor, "embed"]) -> Float[Tensor, "images"]:
    """−log((1 + cos) / 2) of the angle between an image's change and the text's: 0 where they agree, log 2 at 90°."""
    # A change opposite to the text's would be infinitely bad.
    return -((1 + cosine_similarity(change, towards[None])) / 2).clamp_min(1e-4).log()


def first_weights(channels: int, times: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Weights of `delta_block` before training, for one class: uniform within ±1/√inputs, as torch's own layers begin."""

    def layer(name: str, inputs: int) -> dict[str, Tensor]:
        bound = 1 / math.sqrt(inputs)
        return {
            name: torch.empty(1, channels, inputs).uniform_(-bound, bound, generator=generator),
            f"{name}_bias": torch.empty(1, channels).uniform_(-bound, bound, generator=generator),
        }

    scale = {"scale": torch.ones(1, channels), "shift": torch.zeros(1, channels)}
    return {**layer("first", channels), **layer("time", times), **scale, **layer("second", channels)}


def delta_block(
    h: Float[Tensor, "images channels height width"], time: Float[Tensor, "dim"], weights: Mapping[str, Tensor]
) -> Float[Tensor, "images channels height width"]:
    """f(h, t): a 1×1 convolution, the time's share, group norm, SiLU, and another 1×1 convolution.

    Args:
        h: the activations.
        time: embedding of the timestep.
        weights: `first`, `second` [n, D, D], `time` [n, D, T], and the vectors [n, D] `first_bias`, `time_bias`,
            `second_bias`, `scale` and `shift` of the norm; n is 1 or the number of images.
    """
    # One product for each image, whose rounding does not depend on which classes stand beside it.
    moved = weights["first_bias"] + weights["time_bias"] + weights["time"] @ silu(time)
    z = weights["first"] @ h.flatten(2) + moved[..., None]
    z = group_norm(z, math.gcd(32, z.shape[1]), eps=1e-6)
    z = silu(z * weights["scale"][..., None] + weights["shift"][..., None])
    return (weights["second"] @ z + weights["second_bias"][..., None]).view_as(h)


class BlockEdit(MapEdit):
    """Adds what the network of the target class makes of the activations, times its strength; `learnt` by `Asyrp.learn`."""

    def __init__(
        self, attribute: Attribute, learnt: Mapping[str, Tensor], *, site: Site, update: str, window: Window
    ) -> None:
        super().__init__(attribute, site=site, update=update, window=window)
        self.times = learnt[TIMES]
        self.weights = {name: value for name, value in learnt.items() if name != TIMES}

    def change(self, z: Tensor, step: int, target: Tensor, strength: Tensor, shown: Tensor | None = None) -> Tensor:
        """See `SiteEdit.change`."""
        weights = {name: value.to(z)[target] for name, value in self.weights.items()}
        return strength.to(z)[:, None, None, None] * delta_block(z, self.times[step].to(z), weights)
