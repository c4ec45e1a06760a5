"""Reading and changing what several modules of a denoiser compute at once, in the conditional branch, step by step."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import cycle
from typing import Any

import torch
from torch import Tensor, nn

from difflens.models.base import Generated
from difflens.models.model import DiffusionModel
from difflens.vocabulary import GenerationPlan

Tap = Callable[[str, int, Tensor], Tensor | None]
"""(module, step, the conditional rows of its values [n, …]) → what takes their place, None where they stay."""


def in_turn(
    model: DiffusionModel, images: int
) -> Callable[[tuple[Any, ...], Mapping[str, Any]], tuple[int, slice | None]]:
    """A function that is given the arguments of each denoiser call in turn: its step, and its conditional rows if any."""
    # Counted: a call does not say which branch it holds, but their order within a step is declared.
    step_of, rows = model.step_of, cycle(model.guidance.rows("cond", images))

    def place(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[int, slice | None]:
        return step_of[float(args[1] if len(args) > 1 else kwargs["timestep"])], next(rows)

    return place


@contextmanager
def tapped(
    model: DiffusionModel, images: int, modules: Sequence[str], tap: Tap, *, inputs: bool = False
) -> Iterator[None]:
    """Inside the block the tap sees what each of these modules gives, or with `inputs` what it is given first.

    The modules are named within the denoiser. The tap is called for each of them in every denoiser call that holds the
    conditional branch, of `images` rows.
    """
    place = in_turn(model, images)
    step = -1
    rows: slice | None = None

    def begin(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        nonlocal step, rows
        step, rows = place(args, kwargs)

    def exchanged(name: str, values: Tensor) -> Tensor | None:
        other = None if rows is None else tap(name, step, values[rows])
        if other is None:
            return None
        # In a copy, since other modules may be given the same tensor.
        values = values.clone()
        values[rows] = other.to(values)
        return values

    def after(name: str, _: nn.Module, __: Any, output: Tensor) -> Tensor | None:
        return exchanged(name, output)

    def before(name: str, _: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        other = exchanged(name, args[0])
        return None if other is None else (other, *args[1:])

    with ExitStack() as stack:
        stack.callback(model.unet.register_forward_pre_hook(begin, with_kwargs=True).remove)
        for name in modules:
            module = model.unet.get_submodule(name)
            # One by one, so that a module that does not exist leaves no hook behind.
            if inputs:
                stack.callback(module.register_forward_pre_hook(partial(before, name)).remove)
            else:
                stack.callback(module.register_forward_hook(partial(after, name)).remove)
        yield


def sampled_taps(
    model: DiffusionModel,
    plan: GenerationPlan,
    modules: Sequence[str],
    read: Callable[[str, int, Tensor], Tensor],
    *,
    inputs: bool = False,
) -> Iterator[tuple[Generated, dict[str, Tensor]]]:
    """Each micro-batch of a plan, and what `read` makes of each module's values: [steps, n, …] in float32, on the CPU.

    `read` is called at once, since the values of all modules at every step would not fit into memory.
    """
    for start in range(0, len(plan.image_ids), model.micro_batch):
        part = plan.part(start, start + model.micro_batch)
        kept: dict[str, list[Tensor]] = {name: [] for name in modules}

        # `kept` is bound here, since the loop gives its name to another dictionary.
        def keep(name: str, step: int, values: Tensor, kept: dict[str, list[Tensor]] = kept) -> None:
            kept[name].append(read(name, step, values.float()).cpu())

        with tapped(model, model.micro_batch, modules, keep, inputs=inputs):
            (made,) = model.sample(part)
        # The last micro-batch is padded by repetition, and copies must not count.
        yield made, {name: torch.stack(steps)[:, : len(part.image_ids)] for name, steps in kept.items()}


def attention_modules(unet: nn.Module, kind: str) -> list[str]:
    """The names of all attentions of a kind, `attn1` (self) or `attn2` (cross); of a U-Net without text its own ones."""
    found = [name for name, _ in unet.named_modules() if name.rpartition(".")[2] == kind]
    if found or kind != "attn1":
        return found
    return [name for name, part in unet.named_modules() if type(part).__name__ == "Attention"]


def as_tokens(values: Tensor) -> Tensor:
    """Values [n, tokens, D] of a module that works on tokens or on maps [n, D, H, W]."""
    return values if values.ndim == 3 else values.flatten(2).transpose(1, 2)


def like_tokens(tokens: Tensor, values: Tensor) -> Tensor:
    """The inverse of `as_tokens`, in the shape of `values`."""
    return tokens if values.ndim == 3 else tokens.transpose(1, 2).reshape(values.shape)
