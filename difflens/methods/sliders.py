"""Concept sliders: a low-rank adaptor per class, trained to move the estimate along what naming the class changes in it.

Gandikota et al. 2024 (arXiv 2311.12092), "Concept Sliders: LoRA Adaptors for Precise Control in Diffusion Models", the
objective for textual concepts, with the settings of the released code: rank 4, α = 1, AdamW at 2e-4, η = 4, 1,000 updates,
convolutions and self-attentions of the U-Net, none of the cross-attentions, nothing before a fifth of the steps is done.
That stops a partly denoised image at a random step for each update, here every step of a trajectory makes one; it sets a
concept against its opposite, here a class against the mean of all others; and it names other attributes in its prompts to
keep them, here the studied prompts are all the variety there is. Classes are trained side by side, each on its own images.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import conv2d, linear, one_hot

from difflens.data.prompts import fill
from difflens.methods.base import Given, Method, Steering, Window
from difflens.models.base import Batch
from difflens.models.guidance import UNGUIDED, split_branches
from difflens.models.model import DiffusionModel
from difflens.models.text import encode_prompts
from difflens.store.progress import progress
from difflens.vocabulary import Attribute

ADAPTED = ("Attention", "ResnetBlock2D", "Downsample2D", "Upsample2D")
"""Classes of diffusers whose linear layers and convolutions are adapted; attentions to the text are left out."""


class ConceptSliders(Method):
    """The strength is the slider's scale; the released sliders were trained at 1.

    Args:
        updates: of all adaptors, side by side.
        rank: of each adaptor.
        eta: how far the trained estimate is to go along the difference of the classes' estimates.
        lr: of AdamW.
        batch: images of each class in an update.
        seed: of first weights, prompts and noise.
        window: the edited steps.
    """

    def __init__(
        self,
        *,
        updates: int = 1000,
        rank: int = 4,
        eta: float = 4.0,
        lr: float = 2e-4,
        batch: int = 1,
        seed: int = 9119,
        window: Window | None = None,
    ) -> None:
        self.updates, self.rank, self.eta, self.lr, self.batch, self.seed = updates, rank, eta, lr, batch, seed
        self.window = window or Window(0.2, 1.0)

    def learn(self, given: Given) -> dict[str, Tensor]:
        """Of each adapted layer `<name>.down` [classes, rank, …] and `<name>.up` [classes, out, rank].

        Raises:
            ValueError: the model takes no prompts.
        """
        if not given.prompts:
            raise ValueError("mitigation=sliders learns from prompts, and the model takes none; choose another one.")
        assert given.model is not None
        model, classes = given.model, len(given.attribute.classes)
        # On the CPU, so that every device learns from the same draws.
        generator = torch.Generator().manual_seed(self.seed)
        weights = first_weights(model.unet, classes, self.rank, generator)
        weights = {name: value.to(model.device).requires_grad_() for name, value in weights.items()}
        optimiser = torch.optim.AdamW(list(weights.values()), lr=self.lr)
        own = torch.arange(classes).repeat(self.batch).to(model.device)
        trajectory = self._trajectory(given, weights, own, generator)
        for _ in progress(range(self.updates), "sliders"):
            told, wanted = next(trajectory)
            # The sum over classes: each adaptor's gradient is that of its own mean.
            loss = (told - wanted).square().flatten(1).mean(1).sum() / self.batch
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
        return {name: value.detach().cpu() for name, value in weights.items()}

    def edit(self, given: Given, learnt: Mapping[str, Tensor]) -> "SliderEdit":
        """See `Method.edit`."""
        return SliderEdit(given.attribute, learnt, window=self.window)

    def _trajectory(
        self, given: Given, weights: Mapping[str, Tensor], own: Int[Tensor, "images"], generator: torch.Generator
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """The adapted conditional estimate of an image of every class, with gradients, and what it is to be; step by step."""
        assert given.model is not None
        model, classes = given.model, len(given.attribute.classes)
        scheduler, rows, share = model.pipeline.scheduler, len(own), one_hot(own, classes).float()
        named = [[fill(prompt), *(fill(prompt, word) for word in given.words)] for prompt in given.prompts]
        texts = encode_prompts(model, [text for each in named for text in each]).hidden.unflatten(0, (len(named), -1))
        nothing = encode_prompts(model, [model.negative_prompt or ""]).hidden.expand(rows, -1, -1)
        guided = model.guidance.calls != UNGUIDED
        while True:
            # The neutral text's states for every image, then each class's.
            every = texts[int(torch.randint(len(named), (1,), generator=generator))].repeat_interleave(rows, 0)
            neutral = every[:rows]
            noise = torch.randn(rows, *model.latent_shape, generator=generator).to(model.device, model.unet.dtype)
            scheduler.set_timesteps(model.steps, device=model.device)
            x = noise * scheduler.init_noise_sigma
            for t in scheduler.timesteps:
                shown = scheduler.scale_model_input(x, t)
                with torch.no_grad():
                    plain = called(model, shown.repeat(1 + classes, 1, 1, 1), t, every).unflatten(0, (1 + classes, -1))
                with torch.enable_grad(), adapted(model.unet, weights, share):
                    told = called(model, shown, t, neutral)
                yield told.float(), self.wanted(plain[0], plain[1:], own).float()
                # After the update, with the adaptors as they now are.
                with torch.no_grad(), adapted(model.unet, weights, share):
                    branches = torch.cat([nothing, neutral]) if guided else neutral
                    output = called(model, shown.repeat(len(branches) // rows, 1, 1, 1), t, branches)
                combined = model.guidance.combine(split_branches("both" if guided else "cond", output))
                x = scheduler.step(combined, t, x, return_dict=False)[0]

    def wanted(
        self,
        neutral: Float[Tensor, "images channels height width"],
        named: Float[Tensor, "classes images channels height width"],
        own: Int[Tensor, "images"],
    ) -> Float[Tensor, "images channels height width"]:
        """ε(neutral) + η (ε(class) − mean of ε(the others)), of each image's own class."""
        mine = named[own, torch.arange(len(own), device=own.device)]
        others = (named.sum(0) - mine) / (len(named) - 1)
        return neutral + self.eta * (mine - others)


def called(model: DiffusionModel, x: Tensor, t: Any, text: Tensor) -> Tensor:
    """The denoiser's output."""
    output: Tensor = model.unet(x, t, encoder_hidden_states=text, return_dict=False)[0]
    return output


def adapted_layers(unet: nn.Module) -> dict[str, nn.Linear | nn.Conv2d]:
    """The layers that have an adaptor, by their names."""
    found: dict[str, nn.Linear | nn.Conv2d] = {}
    for name, module in unet.named_modules():
        if type(module).__name__ in ADAPTED and "attn2" not in name:
            for inner, layer in module.named_modules():
                if isinstance(layer, nn.Linear | nn.Conv2d):
                    found[f"{name}.{inner}"] = layer
    return found


def first_weights(unet: nn.Module, classes: int, rank: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Adaptors that change nothing yet (see `ConceptSliders.learn`): the way down is random, the way up is zero."""
    found = {}
    for name, layer in adapted_layers(unet).items():
        out, *inputs = layer.weight.shape
        # Uniform with variance 1 / inputs, as LoRA begins.
        bound = (3 / torch.Size(inputs).numel()) ** 0.5
        found[f"{name}.down"] = torch.empty(classes, rank, *inputs).uniform_(-bound, bound, generator=generator)
        found[f"{name}.up"] = torch.zeros(classes, out, rank)
    return found


@contextmanager
def adapted(
    unet: nn.Module,
    weights: Mapping[str, Tensor],
    share: Float[Tensor, "images classes"],
    *,
    active: Callable[[], bool] = lambda: True,
) -> Iterator[None]:
    """Inside the block each layer gives W x + s/rank · up down x, with the scale s of each image and class.

    Args:
        unet: whose rows are the images, once for every branch of guidance.
        weights: see `ConceptSliders.learn`.
        share: the scales; a row of zeros keeps its bits.
        active: whether the call that is being made is changed.
    """
    with ExitStack() as stack:
        for name, layer in adapted_layers(unet).items():
            hook = _adding(weights[f"{name}.down"], weights[f"{name}.up"], share, active)
            stack.callback(layer.register_forward_hook(hook).remove)
        yield


def _adding(down: Tensor, up: Tensor, share: Tensor, active: Callable[[], bool]) -> Any:
    rank = down.shape[1]
    # All classes' adaptors at once, each image letting through its own: no loop over classes or rows.
    scales = (share / rank).repeat_interleave(rank, 1)

    def hook(layer: nn.Linear | nn.Conv2d, args: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        if not active():
            return None
        x = args[0]
        own = scales.to(x).repeat(len(x) // len(scales), 1)
        first, second = down.to(x).flatten(0, 1), up.to(x).transpose(0, 1).flatten(1)
        if isinstance(layer, nn.Conv2d):
            places: Any = (layer.stride, layer.padding, layer.dilation)
            added = conv2d(conv2d(x, first, None, *places) * own[:, :, None, None], second[:, :, None, None])
        else:
            added = linear(linear(x, first) * own.view(len(x), *[1] * (x.ndim - 2), -1), second)
        changed = (own != 0).any(1).view(-1, *[1] * (output.ndim - 1))
        return torch.where(changed, output + added.to(output), output)

    return hook


class SliderEdit(Steering):
    """Adapts the denoiser for each image towards its class; `weights` by `ConceptSliders.learn`."""

    def __init__(self, attribute: Attribute, weights: Mapping[str, Tensor], *, window: Window) -> None:
        super().__init__(attribute, window=window)
        self.weights = dict(weights)

    @contextmanager
    def attach(self, model: DiffusionModel, batch: Batch) -> Iterator[None]:
        """See `Steering.attach`."""
        target, strength = batch.images.target, self.strength_of(batch.images)
        share = one_hot(target.clamp_min(0), len(self.attribute.classes)) * strength[:, None]
        share = torch.where((target >= 0)[:, None], share, 0.0)
        step_of, now = model.step_of, {"step": -1}

        def begin(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            now["step"] = step_of[float(args[1] if len(args) > 1 else kwargs["timestep"])]

        handle = model.unet.register_forward_pre_hook(begin, with_kwargs=True)
        try:
            # On the device once, and not in every layer of every step.
            weights = {name: value.to(model.device) for name, value in self.weights.items()}
            with adapted(model.unet, weights, share, active=lambda: self.active(now["step"], model.steps)):
                yield
        finally:
            handle.remove()
