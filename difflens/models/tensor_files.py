"""Tensors of a weight file one at a time, by plain reads: pages of a mapped file would stay in memory beside the copies."""

import json
import pickle
import re
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""Names of number formats in safetensors files."""


class Stored(NamedTuple):
    """Where a tensor lies in a safetensors file, in bytes from its start."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    length: int


def read_index(path: Path) -> dict[str, Stored]:
    """The tensors of a safetensors file by name, of which nothing but the header is read.

    Raises:
        ValueError: the header is no such header, or the file is shorter or longer than it says.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        # In any other file the first 8 bytes are some number, of up to exabytes to be read.
        if length > size - 8:
            raise ValueError(f"{str(path)!r} is no safetensors file, or half of one.")
        header = json.loads(file.read(length))
    try:
        header.pop("__metadata__", None)
        found = {
            # Offsets in the header count from its end.
            name: Stored(DTYPES[entry["dtype"]], tuple(entry["shape"]), 8 + length + start, end - start)
            for name, entry in header.items()
            for start, end in (entry["data_offsets"],)
        }
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{str(path)!r} has a header that cannot be read ({error!r}).") from error
    # Half a download has a whole header, and would be noticed only when its last tensors are read.
    if max((entry.start + entry.length for entry in found.values()), default=8 + length) != size:
        raise ValueError(f"{str(path)!r} does not have the size that its header tells; it is half a file.")
    return found


INSTEAD = {
    b"version https://git-lfs": "a git-lfs pointer instead of the file; run `git lfs pull` where it was cloned",
    b"<!doctype html": "a web page instead of the file; download the file itself, perhaps logged in",
    b"<html": "a web page instead of the file; download the file itself, perhaps logged in",
}
"""What lies under a checkpoint's name where a download went wrong, by its first bytes in lower case."""


def read_state_dict(path: Path, *, part: str | None = None) -> dict[str, Tensor]:
    """The tensors of a checkpoint; nothing but tensors is ever unpickled from it.

    The prefix `module.` that parallel training gives to all names is left out.

    Args:
        path: as `torch.save` wrote it.
        part: which entry of a training checkpoint, such as `ema`; None where it is a state dict itself.

    Raises:
        ValueError: there is no such file, it is no checkpoint or half of one, it holds anything but a flat state dict, or
            numbers that are not finite.
    """
    if not path.is_file():
        raise ValueError(f"no checkpoint at {str(path)!r}; put the released file there or name another.")
    # Before torch, which would say of a web page or a pointer only that it cannot be unpickled.
    _refuse_other_files(path)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, UnicodeDecodeError, LookupError, AttributeError) as error:
        # torch explains itself on twenty lines; what it met is one word of them.
        met = re.search(r"GLOBAL (\S+)", str(error))
        reason = f"it holds {met[1]}, which is no tensor" if met else str(error).split("\n")[0]
        raise ValueError(f"{path} is no checkpoint that can be read safely (weights_only): {reason}") from error
    if not isinstance(state, Mapping):
        raise ValueError(f"{path} holds a {type(state).__name__} instead of a state dict of named tensors.")
    flat = {str(key): value for key, value in _part_of(path, state, part).items()}
    if all(key.startswith("module.") for key in flat):
        flat = {key.removeprefix("module."): value for key, value in flat.items()}
    broken = [key for key, value in flat.items() if value.is_floating_point() and not bool(value.isfinite().all())]
    if broken:
        more = f" and {len(broken) - 3} more" if len(broken) > 3 else ""
        raise ValueError(
            f"{path} holds numbers that are not finite, in {', '.join(broken[:3])}{more}; its training diverged."
        )
    return flat


def _refuse_other_files(path: Path) -> None:
    """Check that a file is not something else that was saved under a checkpoint's name; else ValueError, which says what."""
    with path.open("rb") as file:
        start = file.read(64).lstrip().lower()
    if not path.stat().st_size:
        raise ValueError(f"{path} is empty; download it again.")
    for sign, what in INSTEAD.items():
        if start.startswith(sign):
            raise ValueError(f"{path} is {what}.")
    # A zip archive, or a bare pickle as older versions of torch wrote it; `start` is in lower case.
    if not start.startswith((b"pk\3\4", b"\x80")):
        raise ValueError(
            f"{path} is nothing that torch.save wrote; it begins with {start[:16].decode('ascii', 'replace')!r}."
        )
    # An archive's directory stands at its end, which half a file lacks.
    if start.startswith(b"pk\3\4") and not zipfile.is_zipfile(path):
        raise ValueError(f"{path} is cut off; download it again.")


def _part_of(path: Path, state: Mapping[Any, Any], part: str | None) -> Mapping[Any, Tensor]:
    """The state dict that a checkpoint is, or that its entry `part` is."""
    parts = [str(key) for key, value in state.items() if isinstance(value, Mapping) and value and not _foreign(value)]
    if part is not None and part not in parts:
        raise ValueError(f"{path} has no weights named {part!r}; it holds {', '.join(parts) or 'one state dict'}.")
    if part is not None:
        found: Mapping[Any, Tensor] = state[part]
        return found
    if parts:
        raise ValueError(
            f"{path} is a training checkpoint with weights named {', '.join(parts)}; choose one, as in "
            f"task.weights={parts[-1]}."
        )
    if foreign := _foreign(state):
        raise ValueError(f"{path} is no flat state dict; not tensors: {', '.join(foreign)}.")
    return state


def _foreign(state: Mapping[Any, Any]) -> list[str]:
    """Entries that are no named tensors."""
    return [str(key) for key, value in state.items() if not (isinstance(key, str) and isinstance(value, Tensor))]


def is_torchscript(path: Path) -> bool:
    """Whether a file is a TorchScript archive, as OpenAI publishes CLIP."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        # torch.save writes zip archives too, but none with this entry.
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def tensor_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors of a safetensors file or a TorchScript archive, by name.

    Raises:
        ValueError: the file is neither, or damaged.
    """
    if path.suffix == ".safetensors":
        return {name: entry.shape for name, entry in read_index(path).items()}
    return {name: tuple(value.shape) for name, value in _scripted(path).items()}


def read_tensors(path: Path, names: Iterable[str]) -> Iterator[tuple[str, Tensor]]:
    """The tensors of these names, each read when its turn comes; a TorchScript archive is read whole.

    Raises:
        ValueError: see `tensor_shapes`.
        KeyError: there is no tensor of a name.
    """
    if path.suffix != ".safetensors":
        state = _scripted(path)
        yield from ((name, state[name]) for name in names)
        return
    index = read_index(path)
    with path.open("rb") as file:
        for name in names:
            entry = index[name]
            # Read into the tensor's own memory: there is no second copy, and NumPy need not know the number format.
            content = torch.empty(entry.length, dtype=torch.uint8)
            file.seek(entry.start)
            file.readinto(content.numpy().data)
            yield name, content.view(entry.dtype).view(entry.shape)


def _scripted(path: Path) -> dict[str, Tensor]:
    if not is_torchscript(path):
        raise ValueError(f"{str(path)!r} is neither a safetensors file nor a TorchScript archive.")
    state: dict[str, Tensor] = torch.jit.load(str(path), map_location="cpu").state_dict()
    return state
