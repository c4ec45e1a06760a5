"""Steering of cross-attention: what the classes' words add is projected out of every head, and the image's own class put in.

The rival "EquiSteer" after its public code: s^a is the mean difference, over prompts and tokens, of the cross-attentions'
head outputs between prompts that name class a and neutral ones; α^a the mean of the largest dot product with it under prompts
that name a. There one class is drawn for each call; here every image has its own. Whether an image shows a class already is
asked once, at the first step and one attention, as there (there the fifth on the way down, here the first).
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor

from difflens.data.prompts import fill
from difflens.methods.base import Given, Method, Steering, Window
from difflens.models.base import Batch
from difflens.models.model import DiffusionModel
from difflens.models.taps import attention_modules, sampled_taps, tapped
from difflens.vocabulary import Attribute, GenerationPlan

FIRST_ID = 4_000_000
"""Images that are learnt from get ids that no other image has."""
DIRECTION, LENGTH, BORDER = "direction/", "length/", "border"


class EquiSteer(Method):
    """Strength r adds r·α ŝ; 1 in the public code.

    Args:
        images: that are learnt from, of each class and of neutral prompts.
        seed: of these.
        window: the edited steps.
    """

    at_site = False

    def __init__(self, *, images: int = 48, seed: int = 9009, window: Window | None = None) -> None:
        self.images, self.seed, self.window = images, seed, window or Window()

    def learn(self, given: Given) -> dict[str, Tensor]:
        """Unit directions [classes, steps, D] and lengths [classes, steps] of each attention, and the borders [classes].

        Raises:
            ValueError: the model takes no prompts.
        """
        if not given.prompts:
            raise ValueError(
                "mitigation=equisteer edits cross-attention, and the model takes no prompts; use another one."
            )
        assert given.model is not None
        # What goes into `to_out.0` is what the heads give, before it is mixed.
        modules = [f"{name}.to_out.0" for name in attention_modules(given.model.unet, "attn2")]
        kinds = [None, *range(len(given.attribute.classes))]
        # Two passes over the same images: the outputs of all heads at every step would not fit into memory.
        neutral, *named = (self._averaged(given, modules, kind, lambda _, __, values: values.mean(1)) for kind in kinds)
        found: dict[str, Tensor] = {}
        for name in modules:
            difference = torch.stack([each[name] - neutral[name] for each in named])
            found[f"{DIRECTION}{name}"] = torch.nn.functional.normalize(difference, dim=-1)

        def dots(name: str, step: int, values: Tensor) -> Tensor:
            unit = found[f"{DIRECTION}{name}"][:, step].to(values)
            return torch.einsum("ntd,cd->nct", values, unit).amax(-1)

        neutral, *named = (self._averaged(given, modules, kind, dots) for kind in kinds)
        for name in modules:
            found[f"{LENGTH}{name}"] = torch.stack([each[name][:, c] for c, each in enumerate(named)])
        gate = first_of(modules)
        with_it = torch.stack([each[gate][0, c] for c, each in enumerate(named)])
        # Halfway between what is read with and without the class, as in the public code.
        found[BORDER] = (with_it + neutral[gate][0]) / 2
        return found

    def _averaged(
        self, given: Given, modules: list[str], kind: int | None, read: Callable[[str, int, Tensor], Tensor]
    ) -> dict[str, Float[Tensor, "steps values"]]:
        """The mean over images of what is read off each attention's heads at every step, under prompts of one kind."""
        assert given.model is not None
        texts, sums = given.prompts, dict.fromkeys(modules, torch.zeros(()))
        word = "" if kind is None else given.words[kind]
        prompts = tuple(fill(texts[i % len(texts)], word) for i in range(self.images))
        plan = GenerationPlan(self.seed, torch.arange(self.images) + FIRST_ID, None, prompts)
        for _, found in sampled_taps(given.model, plan, modules, read, inputs=True):
            for name, values in found.items():
                sums[name] = sums[name] + values.sum(1) / self.images
        return sums

    def edit(self, given: Given, learnt: Mapping[str, Tensor]) -> "HeadEdit":
        """See `Method.edit`."""
        return HeadEdit(given.attribute, learnt, window=self.window)


def first_of(modules: Iterable[str]) -> str:
    """The attention that is asked whether an image shows its class already."""
    # By name: what is read again from a file comes in another order than it was learnt in.
    return min(modules)


class HeadEdit(Steering):
    """Projects all classes' directions out of the conditional heads and adds the image's own (see `EquiSteer.learn`)."""

    def __init__(self, attribute: Attribute, learnt: Mapping[str, Tensor], *, window: Window) -> None:
        super().__init__(attribute, window=window)
        self.directions = {
            name.removeprefix(DIRECTION): each for name, each in learnt.items() if name.startswith(DIRECTION)
        }
        self.lengths = {name.removeprefix(LENGTH): each for name, each in learnt.items() if name.startswith(LENGTH)}
        self.border = learnt[BORDER]

    @contextmanager
    def attach(self, model: DiffusionModel, batch: Batch) -> Iterator[None]:
        """See `Steering.attach`."""
        target, strength = batch.images.target, self.strength_of(batch.images)
        # Every row needs an index; `moved` leaves out those without a class.
        wanted = target.clamp_min(0)
        first = first_of(self.directions)
        moved = (target >= 0) & (strength != 0)

        def steer(name: str, step: int, values: Tensor) -> Tensor | None:
            nonlocal moved
            unit, length = self.directions[name][:, step].to(values), self.lengths[name][:, step].to(values)
            # Before the window is asked: the reading is that of the first step, edited or not.
            if step == 0 and name == first:
                shown = torch.einsum("ntd,nd->nt", values, unit[wanted]).amax(-1)
                moved = moved & (shown <= self.border.to(values)[wanted])
            if not self.active(step, model.steps) or not bool(moved.any()):
                return None
            # An orthonormal basis of all directions, which Gram–Schmidt would give as well. QR knows no half precision.
            basis = torch.linalg.qr(unit.float().T)[0].to(values)
            without = values - (values @ basis) @ basis.T
            own = (strength.to(values) * length[wanted])[:, None, None] * unit[wanted][:, None]
            return torch.where(moved[:, None, None], without + own, values)

        with tapped(model, len(target), [*self.directions], steer, inputs=True):
            yield
