"""The number formats a text-to-image model runs in, and the devices that models, judges and extractors run on."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def check_device(device: str) -> torch.device:
    """The device of that name.

    Raises:
        ValueError: there is no such device here.
    """
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ValueError(f"device={device} cannot be used here ({reason}); use cpu, or cuda on a GPU.") from error
    return found


def check_precision(precision: str, device: str) -> torch.dtype:
    """The dtype a precision names.

    Raises:
        ValueError: no such precision, fp16 on a CPU, or a GPU that is not there.
    """
    if precision not in DTYPES:
        raise ValueError(f"model.precision must be one of {', '.join(DTYPES)}, got {precision!r}.")
    if precision == "fp16" and device == "cpu":
        raise ValueError("model.precision=fp16 needs a GPU; on model.device=cpu use bf16 or fp32.")
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"model.device is {device!r} and there is no GPU; use model.device=cpu model.precision=bf16.")
    check_device(device)
    return DTYPES[precision]


@contextmanager
def autocast_denoiser(denoiser: nn.Module, *, enabled: bool) -> Iterator[None]:
    """Inside the block the denoiser runs under bfloat16 autocast and returns float32; nothing else of the pipeline does."""
    if not enabled:
        yield
        return
    autocast = torch.autocast(next(denoiser.parameters()).device.type, torch.bfloat16)

    def enter(_: nn.Module, args: tuple[Any, ...]) -> None:
        autocast.__enter__()

    def leave(_: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        autocast.__exit__(None, None, None)
        if isinstance(output, tuple) and isinstance(output[0], Tensor):
            return (output[0].float(), *output[1:])
        return output

    before = denoiser.register_forward_pre_hook(enter)
    after = denoiser.register_forward_hook(leave, always_call=True)
    try:
        yield
    finally:
        before.remove()
        after.remove()
