"""What networks run on and in: devices, number formats, memory given back, and quiet while they are loaded."""

import ctypes
import logging
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from copy import deepcopy
from functools import cache, wraps
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

log = logging.getLogger(__name__)

Network = TypeVar("Network", bound=nn.Module)

_copies: WeakKeyDictionary[nn.Module, dict[torch.device, Any]] = WeakKeyDictionary()

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
AUTO = "auto"
LOGGERS = ("diffusers", "transformers", "huggingface_hub")
"""Of the libraries that models are loaded with."""

MMAP_THRESHOLD = -3
"""What glibc's `mallopt` calls the size from which a block has pages of its own."""

BF16_INSTRUCTIONS = ("avx512_bf16", "amx_bf16", "bf16")  # of x86 and of ARM


def check_device(device: str) -> torch.device:
    """The device of that name (ValueError: there is no such device here)."""
    try:
        found = torch.device(device)
        # A name that parses may still be of a device that is not there; only an allocation tells.
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
    device, plain = next(denoiser.parameters()).device.type, denoiser.forward

    @wraps(plain)
    def forward(*args: Any, **kwargs: Any) -> Any:
        with torch.autocast(device, torch.bfloat16):
            output = plain(*args, **kwargs)
        # In float32 the scheduler goes on as it does without autocast.
        if isinstance(output, tuple) and isinstance(output[0], Tensor):
            return (output[0].float(), *output[1:])
        return output

    # Not by hooks: a pass that calls `forward` itself, past all hooks, computes in the same numbers.
    own = denoiser.__dict__.get("forward")
    denoiser.forward = forward
    try:
        yield
    finally:
        if own is None:
            del denoiser.forward
        else:
            denoiser.forward = own


def placed(network: Network, device: torch.device) -> Network:
    """The network on a device: itself where it lies there, else a copy, made at the first call and kept as long as itself.

    The network stays where it is, for those who read stored activations with it. It must not change any more.
    """
    tensors = [*network.parameters(), *network.buffers()]
    if all(tensor.device == device for tensor in tensors):
        return network
    copies = _copies.setdefault(network, {})
    if device not in copies:
        # Whoever asks first may be in inference mode, whose tensors would be of no use outside.
        with torch.inference_mode(False):
            moved: dict[int, Any] = {}
            for tensor in tensors:
                there = tensor.detach().to(device)
                learnt = isinstance(tensor, nn.Parameter)
                moved[id(tensor)] = nn.Parameter(there, tensor.requires_grad) if learnt else there
            # deepcopy takes what its memo holds for copies already made: nothing is copied on the old device, and
            # tensors that are shared stay so.
            copies[device] = deepcopy(network, moved)
    return copies[device]


@contextmanager
def quietly() -> Iterator[None]:
    """In the block the libraries that models are loaded with log nothing, warn of nothing and show no progress."""
    # Imported by need: what measures images has no room for them beside its networks.
    import diffusers
    import transformers

    loggers = [logging.getLogger(name) for name in LOGGERS]
    levels = [logger.level for logger in loggers]
    bars = (diffusers.utils.logging, transformers.utils.logging)
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    for bar in bars:
        bar.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        for bar in bars:
            bar.enable_progress_bar()


def return_memory_at_once(least: int = 2**20) -> None:
    """Have every block of so many bytes given back when it is freed, on Linux with glibc; elsewhere nothing changes.

    Left alone, glibc raises that size to 32 MB as it goes, and keeps freed weights and activations of networks in pieces
    too small for the next ones: 300 MB and more beside a CLIP of 600.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(MMAP_THRESHOLD, least)
