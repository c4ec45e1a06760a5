"""Steering along linear probes of self-attention: the direction that tells a class is added at several attentions at once.

The "ICM" rival of the fairness literature on Stable Diffusion (see `published` in `conf/experiment/table_sd.yaml`), after its
public code: logistic regressions on the spatial means of every self-attention's output at every step, of images whose prompts
name a class; their unit normals are added to the conditional branch. There it tells two classes apart; here one class from
all others, and every image has a class of its own. Without prompts the labelling judge says what an image shows.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from difflens.data.prompts import fill
from difflens.data.sampled import as_bytes
from difflens.methods.base import Given, Method, Steering, Window, class_counts
from difflens.models.base import Batch
from difflens.models.model import DiffusionModel
from difflens.models.taps import as_tokens, attention_modules, like_tokens, sampled_taps, tapped
from difflens.probes.base import minimise, standardised
from difflens.vocabulary import Attribute, GenerationPlan

FIRST_ID = 3_000_000
"""Images that are learnt from get ids that no other image has."""


class AttentionSteering(Method):
    """The strength α is the length of what is added; 10 to 15 in the public code.

    Args:
        images: that are learnt from.
        seed: of these.
        window: the edited steps; from 15 of 50 on in the public code.
    """

    at_site = False

    def __init__(self, *, images: int = 256, seed: int = 8008, window: Window | None = None) -> None:
        self.images, self.seed, self.window = images, seed, window or Window(0.3, 1.0)

    def learn(self, given: Given) -> dict[str, Tensor]:
        """Unit directions [classes, steps, D] of each attention, by its name.

        Raises:
            ValueError: no image shows a class, or the denoiser has no self-attention in its middle or later.
        """
        assert given.model is not None
        modules = steered_modules(given.model)
        means, labels = collect_means(given, modules, self.images, self.seed)
        found = {}
        for name in modules:
            steps = [
                torch.stack([normal_of(x, labels == c) for c in range(len(given.attribute.classes))])
                for x in means[name]
            ]
            found[name] = torch.stack(steps, 1)
        return found

    def edit(self, given: Given, learnt: Mapping[str, Tensor]) -> "AttentionEdit":
        """See `Method.edit`."""
        return AttentionEdit(given.attribute, learnt, window=self.window)


def steered_modules(model: DiffusionModel) -> list[str]:
    """The self-attentions of the middle block and of the first upward block that has some.

    Raises:
        ValueError: there are none.
    """
    names = attention_modules(model.unet, "attn1")
    middle = [name for name in names if name.startswith("mid_block")]
    upward = [name for name in names if name.startswith("up_blocks")]
    first = [name for name in upward if name.split(".")[1] == upward[0].split(".")[1]]
    if not middle + first:
        raise ValueError(f"{type(model.unet).__name__} has no self-attention in its middle or upward blocks.")
    return middle + first


def collect_means(
    given: Given, modules: list[str], images: int, seed: int
) -> tuple[dict[str, Float[Tensor, "steps images dim"]], Tensor]:
    """The spatial mean of each module's output at every step, and the class of each image [N].

    Raises:
        ValueError: a class is shown by no image.
    """
    assert given.model is not None and given.classify is not None
    model, classes = given.model, len(given.attribute.classes)
    ids, prompts = torch.arange(images) + FIRST_ID, None
    labels = torch.arange(images) % classes
    if given.prompts:
        texts = given.prompts
        # Classes vary faster than prompts, so that every prompt names every class equally often.
        prompts = tuple(fill(texts[i // classes % len(texts)], given.words[i % classes]) for i in range(images))
    plan = GenerationPlan(seed, ids, None, prompts)
    made, means = [], []
    for batch, found in sampled_taps(model, plan, modules, lambda _, __, values: as_tokens(values).mean(1)):
        made.append(as_bytes(batch.images))
        means.append(found)
    if not given.prompts:
        labels = given.classify(torch.cat(made))
    class_counts(given.attribute, labels, key="mitigation.images")
    return {name: torch.cat([found[name] for found in means], 1) for name in modules}, labels


def normal_of(x: Float[Tensor, "images dim"], member: Bool[Tensor, "images"]) -> Float[Tensor, "dim"]:
    """The unit normal of a logistic regression that tells members from others, with ‖w‖²/2 added to the sum of losses."""
    x, _, scale = standardised(x.double())
    sign = member.double() * 2 - 1
    weight, bias = (
        torch.zeros(x.shape[1], dtype=x.dtype, requires_grad=True),
        torch.zeros(1, dtype=x.dtype, requires_grad=True),
    )

    def loss() -> Tensor:
        # The objective of scikit-learn's `LogisticRegression` at its default C = 1.
        return torch.nn.functional.softplus(-sign * (x @ weight + bias)).sum() + weight.square().sum() / 2

    # Whoever calls may have switched gradients off, and the fit needs them.
    with torch.inference_mode(False), torch.enable_grad():
        minimise([weight, bias], loss, iterations=100)
    return torch.nn.functional.normalize(weight.detach() / scale, dim=0).float()


class AttentionEdit(Steering):
    """Adds each image's direction at every position of several modules; `directions`: module → [classes, steps, D]."""

    def __init__(self, attribute: Attribute, directions: Mapping[str, Tensor], *, window: Window) -> None:
        super().__init__(attribute, window=window)
        self.directions = dict(directions)

    @contextmanager
    def attach(self, model: DiffusionModel, batch: Batch) -> Iterator[None]:
        """See `Steering.attach`."""
        target, strength = batch.images.target, self.strength_of(batch.images)
        moved = (target >= 0) & (strength != 0)

        def add(name: str, step: int, values: Tensor) -> Tensor | None:
            if not self.active(step, model.steps) or not bool(moved.any()):
                return None
            own = self.directions[name][:, step].to(values)[target.clamp_min(0)]
            pushed = as_tokens(values) + (strength.to(values)[:, None] * own)[:, None]
            return torch.where(moved.view(-1, *[1] * (values.ndim - 1)), like_tokens(pushed, values), values)

        with tapped(model, len(target), [*self.directions], add):
            yield
