"""Reading and changing what several modules of a denoiser compute at once, in the conditional branch, step by step."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from difflens.models.model import DiffusionModel

Tap = Callable[[str, int, Tensor], Tensor | None]
"""(module, step, the conditional rows of its values [n, …]) → what takes their place, None where they stay."""


@contextmanager
def tapped(
    model: DiffusionModel, images: int, modules: Sequence[str], tap: Tap, *, inputs: bool = False
) -> Iterator[None]:
    """Inside the block the tap sees what each of these modules gives, or with `inputs` what it is given first.

    The modules are named within the denoiser. The tap is called for each of them in every denoiser call that holds the
    conditional branch, of `images` rows.
    """
    step_of = model.step_of
    calls = model.guidance.rows("cond", images)
    state = {"step": -1, "call": -1}

    def begin(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        timestep = args[1] if len(args) > 1 else kwargs["timestep"]
        state["step"] = step_of[float(timestep)]
        state["call"] = (state["call"] + 1) % len(calls)

    def exchanged(name: str, values: Tensor) -> Tensor | None:
        rows = calls[state["call"]]
        if rows is None:
            return None
        other = tap(name, state["step"], values[rows])
        if other is None:
            return None
        # In a copy, since other modules may be given the same tensor.
        values = values.clone()
        values[rows] = other.to(values)
        return values

    def after(name: str) -> Callable[[nn.Module, Any, Any], Any]:
        return lambda _, __, output: exchanged(name, output)

    def before(name: str) -> Callable[[nn.Module, tuple[Any, ...]], Any]:
        def hook(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
            other = exchanged(name, args[0])
            return None if other is None else (other, *args[1:])

        return hook

    with ExitStack() as stack:
        stack.callback(model.unet.register_forward_pre_hook(begin, with_kwargs=True).remove)
        for name in modules:
            module = model.unet.get_submodule(name)
            handle = (
                module.register_forward_pre_hook(before(name)) if inputs else module.register_forward_hook(after(name))
            )
            # One by one, so that a module that does not exist leaves no hook behind.
            stack.callback(handle.remove)
        yield


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
