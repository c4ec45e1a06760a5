"""The number formats a text-to-image model runs in, and the devices that models, judges and extractors run on."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

log = logging.getLogger(__name__)

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
AUTO = "auto"
BF16_INSTRUCTIONS = ("avx512_bf16", "amx_bf16", "bf16")  # of x86 and of ARM


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


def computes_bf16(device: torch.device) -> bool:
    """Whether the device has instructions for bfloat16; a processor without them takes forty times as long as in float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and any(torch.cpu.get_capabilities().get(name) for name in BF16_INSTRUCTIONS)


def fast_autocast() -> AbstractContextManager[None]:
    """Bfloat16 on a processor that computes it, else float32."""
    return torch.autocast("cpu", torch.bfloat16, enabled=computes_bf16(torch.device("cpu")))


def choose_precision(precision: str, device: str, *, among: Sequence[str] = tuple(DTYPES)) -> str:
    """The precision itself; for `auto`, `bf16` where the device computes it, else `fp32`.

    Raises:
        ValueError: no such precision, fp16 on a CPU, or a GPU that is not there.
    """
    if precision not in (AUTO, *among):
        raise ValueError(f"model.precision must be one of {', '.join((AUTO, *among))}, got {precision!r}.")
    if precision == "fp16" and device == "cpu":
        raise ValueError("model.precision=fp16 needs a GPU; on model.device=cpu use auto.")
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"model.device is {device!r} and there is no GPU; use model.device=cpu model.precision=auto.")
    native = computes_bf16(check_device(device))
    if precision == "bf16" and not native:
        _warn_once(f"{device} has no bf16 instructions and emulates them slowly; model.precision=auto is faster")
    if precision == AUTO:
        return "bf16" if native else "fp32"
    return precision


@cache
def _warn_once(message: str) -> None:
    log.warning(message)


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
