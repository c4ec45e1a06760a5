"""Debias Anything: CLIP's view of the finished image, read off the bottleneck early on, guides each image to its class.

After the public code of this name: a small adaptor learns to tell, from the bottleneck's activations at any step, where CLIP
will place the finished image; the gradient of that place along the direction of the class moves the predicted clean image.
There it learns from photographs noised twice, here from the model's own trajectories; images are matched to classes there by
their affinity, here by the quota that all methods share; directions are the classes' mean places less the mean of all; the
term that asks for diverse images is left out. Both releases guide by one formula in two notations, which is used for both
kinds of models, in the range of noise of the one for Stable Diffusion. The CLIP is that of the measures.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import layer_norm, linear, normalize, silu

from difflens.methods.base import Given, Method, Need, Steering, Window, class_counts
from difflens.models.base import Batch
from difflens.models.guidance import UNGUIDED
from difflens.models.hooks import SiteReachedError, find_module, map_rows, unhooked
from difflens.models.model import DiffusionModel
from difflens.store.progress import progress
from difflens.vocabulary import Attribute, Site

DIRECTIONS = "directions"


class DebiasAnything(Method):
    """x̂_0 ← x̂_0 + r σ² ∇_y ⟨A(h, t), d_c⟩ with y = x/√ᾱ and σ² = (1 − ᾱ)/ᾱ; the strength is r, 3,000 in the release.

    Args:
        epochs: in which the adaptor sees every image at every step once.
        batch: images of an update, all at one step.
        lr: of AdamW.
        weight_decay: likewise.
        width: of the adaptor's hidden layer, as a multiple of the activations' channels.
        seed: of first weights and order.
        sigma_min: steps with less noise σ are not edited.
        sigma_max: steps with more noise are not.

    Raises:
        ValueError: not 0 ≤ `sigma_min` < `sigma_max`.
    """

    reads_clip: ClassVar[bool] = True

    def __init__(
        self,
        *,
        epochs: int = 60,
        batch: int = 32,
        lr: float = 1e-3,
        weight_decay: float = 1e-4,
        width: int = 2,
        seed: int = 9229,
        sigma_min: float = 1.0,
        sigma_max: float = 6.0,
    ) -> None:
        if not 0 <= sigma_min < sigma_max:
            raise ValueError(f"mitigation needs 0 ≤ sigma_min < sigma_max, got {sigma_min} and {sigma_max}.")
        self.epochs, self.batch, self.lr, self.weight_decay = epochs, batch, lr, weight_decay
        self.width, self.seed, self.sigma_min, self.sigma_max = width, seed, sigma_min, sigma_max

    @property
    def needs(self) -> frozenset[Need]:
        """See `Method.needs`."""
        return frozenset(["activations"])

    def learn(self, given: Given) -> dict[str, Tensor]:
        """The adaptor's weights (see `placed_by`), and `directions` [classes, E].

        Raises:
            ValueError: the site is no module's whole output in one branch, or no image shows a class.
        """
        check_site(given.site)
        assert given.maps is not None and given.labels is not None and given.embeddings is not None
        labels, places = given.labels(), given.embeddings().float()
        directions = class_directions(given.attribute, labels, places)
        generator = torch.Generator().manual_seed(self.seed)
        first = given.maps(0)
        weights = first_weights(first.shape[1:], places.shape[1], given.steps, self.width, generator)
        weights = {name: value.requires_grad_() for name, value in weights.items()}
        optimiser = torch.optim.AdamW(list(weights.values()), lr=self.lr, weight_decay=self.weight_decay)
        for _ in progress(range(self.epochs), "adaptor"):
            # Step by step: maps of all steps would not fit into memory.
            for step in torch.randperm(given.steps, generator=generator).tolist():
                maps = given.maps(step).float()
                for rows in torch.randperm(len(maps), generator=generator).split(self.batch):
                    loss = 1 - (placed_by(weights, maps[rows], step) * places[rows]).sum(1).mean()
                    optimiser.zero_grad()
                    loss.backward()  # type: ignore[no-untyped-call]
                    optimiser.step()
        return {name: value.detach() for name, value in weights.items()} | {DIRECTIONS: directions}

    def edit(self, given: Given, learnt: Mapping[str, Tensor]) -> "GuidedByPlaces":
        """See `Method.edit`."""
        return GuidedByPlaces(given.attribute, learnt, site=given.site, sigmas=(self.sigma_min, self.sigma_max))


def check_site(site: Site) -> None:
    """Check that the activations are what a module gives in the branch that is guided.

    Raises:
        ValueError: they are not.
    """
    if site.tensor != "output" or site.branch not in ("none", "cond"):
        raise ValueError(
            "mitigation=debias_anything reads what a module gives in the conditional branch: set data.site.tensor=output and "
            "data.site.branch=cond (none without prompts)."
        )


def class_directions(
    attribute: Attribute, labels: Int[Tensor, "images"], places: Float[Tensor, "images embed"]
) -> Float[Tensor, "classes embed"]:
    """Unit vectors from the mean of the classes' mean places to each of them.

    Raises:
        ValueError: no image shows a class.
    """
    class_counts(attribute, labels, key="data.images")
    found = torch.stack([places[labels == index].mean(0) for index in range(len(attribute.classes))])
    # The mean of the classes, not of the images: a rare class pulls as much as a common one.
    return normalize(found - found.mean(0), dim=1)


def first_weights(
    shape: torch.Size, embed: int, steps: int, width: int, generator: torch.Generator
) -> dict[str, Tensor]:
    """Weights of the adaptor before training (see `placed_by`), of activations [D, H, W]."""
    channels, positions = shape[0], shape[1] * shape[2]

    def drawn(*size: int, inputs: int) -> Tensor:
        return torch.randn(*size, generator=generator) / inputs**0.5

    return {
        "position": torch.zeros(positions, channels),
        "query": torch.zeros(channels),
        # By step and not by a function of its timestep: the grid is fixed.
        "scale": torch.zeros(steps, channels),
        "shift": torch.zeros(steps, channels),
        "first": drawn(width * channels, channels, inputs=channels),
        "first_bias": torch.zeros(width * channels),
        "second": drawn(embed, width * channels, inputs=width * channels),
        "second_bias": torch.zeros(embed),
    }


def placed_by(
    weights: Mapping[str, Tensor], maps: Float[Tensor, "images channels height width"], step: int
) -> Float[Tensor, "images embed"]:
    """Where CLIP will place the finished images: the adaptor A(h, t), of unit length.

    Positions are added to the normalised activations, attention pools them, the step scales and shifts what is pooled, and
    two layers lead to CLIP's space.
    """
    tokens = maps.flatten(2).mT
    tokens = layer_norm(tokens, tokens.shape[-1:]) + weights["position"]
    looked = (tokens @ weights["query"] / tokens.shape[-1] ** 0.5).softmax(-1)
    pooled = (looked[..., None] * tokens).sum(1)
    pooled = pooled * (1 + weights["scale"][step]) + weights["shift"][step]
    hidden = silu(linear(pooled, weights["first"], weights["first_bias"]))
    return normalize(linear(hidden, weights["second"], weights["second_bias"]), dim=-1)


class GuidedByPlaces(Steering):
    """Moves the predicted clean image of every image that has a class.

    `learnt` by `DebiasAnything.learn`; the adaptor reads at `site`; `sigmas` are least and most noise σ of the edited steps.
    """

    def __init__(
        self, attribute: Attribute, learnt: Mapping[str, Tensor], *, site: Site, sigmas: tuple[float, float]
    ) -> None:
        super().__init__(attribute, window=Window())
        self.directions, self.site, self.sigmas = learnt[DIRECTIONS], site, sigmas
        self.weights = {name: value for name, value in learnt.items() if name != DIRECTIONS}

    @contextmanager
    def attach(self, model: DiffusionModel, batch: Batch) -> Iterator[None]:
        """See `Steering.attach`."""
        target, strength = batch.images.target, self.strength_of(batch.images)
        moved = (target >= 0) & (strength != 0)
        places = find_module(model.unet, self.site)
        calls, counted = model.guidance.rows("cond", len(target)), {"calls": 0}
        weights = {name: value.to(model.device) for name, value in self.weights.items()}
        towards = (strength[:, None].to(self.directions) * self.directions.to(target.device)[target.clamp_min(0)])[
            moved
        ]

        def guide(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
            rows = calls[counted["calls"] % len(calls)]
            counted["calls"] += 1
            timestep = args[1] if len(args) > 1 else kwargs["timestep"]
            alpha = float(model.pipeline.scheduler.alphas_cumprod[int(timestep)])
            sigma = ((1 - alpha) / alpha) ** 0.5
            if rows is None or not bool(moved.any()) or not self.sigmas[0] <= sigma <= self.sigmas[1]:
                return None
            told = output[0] if isinstance(output, tuple) else output.sample
            own = map_rows((args, kwargs), len(told), lambda value: value[rows][moved])
            slope = gradient(model, places, own, weights, model.step_of[float(timestep)], towards)
            # By y = x/√ᾱ: ∇_y = √ᾱ ∇_x.
            shift = output_shift(model.pipeline.scheduler, sigma**2 * alpha**0.5 * slope, alpha)
            # The guided estimate is to move so far, and its conditional part counts as often as the guidance's scale says.
            if model.guidance.calls != UNGUIDED:
                shift = shift / model.guidance.scale
            told = told.clone()
            picked = torch.arange(len(told), device=told.device)[rows][moved]
            told[picked, : shift.shape[1]] += shift.to(told)
            # In the form that the pipeline asked for by return_dict.
            return (told, *output[1:]) if isinstance(output, tuple) else type(output)(sample=told)

        handle = model.unet.register_forward_hook(guide, with_kwargs=True)
        try:
            yield
        finally:
            handle.remove()


def gradient(
    model: DiffusionModel,
    place: nn.Module,
    call: tuple[tuple[Any, ...], dict[str, Any]],
    weights: Mapping[str, Tensor],
    step: int,
    towards: Float[Tensor, "images embed"],
) -> Float[Tensor, "images channels height width"]:
    """∇_x Σ_i ⟨A(h(x_i), t), d_i⟩ of the images of one denoiser call, which ends at the site."""
    found: list[Tensor] = []

    def keep(_: nn.Module, __: Any, output: Any) -> None:
        found.append(output[0] if isinstance(output, tuple) else output)
        # What lies behind the site does not matter to the gradient.
        raise SiteReachedError

    # Sampling keeps no graph, and tensors made in inference mode can have none: copies can.
    with torch.inference_mode(False), torch.enable_grad(), unhooked():
        args, kwargs = map_rows(call, len(towards), torch.clone)
        x = (args[0] if args else kwargs["sample"]).requires_grad_()
        handle = place.register_forward_hook(keep)
        try:
            # By forward, past the hooks on the denoiser itself, which would take this for a call of the pipeline.
            model.unet.forward(*args, **kwargs)
        except SiteReachedError:
            pass
        finally:
            handle.remove()
        score = (placed_by(weights, found[0].float(), step) * towards.clone()).sum()
        # Not by autograd.grad, which fails where operations are counted.
        score.backward()  # type: ignore[no-untyped-call]
    assert x.grad is not None
    return x.grad.float()


def output_shift(scheduler: Any, clean: Tensor, alpha: float) -> Tensor:
    """What a denoiser's output changes by where the predicted clean image does, at one noise level.

    Raises:
        ValueError: the prediction type is not epsilon, v_prediction or sample.
    """
    match scheduler.config.prediction_type:
        case "epsilon":
            return -(alpha**0.5) / (1 - alpha) ** 0.5 * clean
        case "v_prediction":
            return -clean / (1 - alpha) ** 0.5
        case "sample":
            return clean
        case other:
            raise ValueError(f"prediction type {other!r} is not one of epsilon, v_prediction, sample.")
