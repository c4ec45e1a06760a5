"""Tensors of a weight file one at a time, by plain reads: pages of a mapped file would stay in memory beside the copies."""

import json
import pickle
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
        if length > size - 8:
            raise ValueError(f"{str(path)!r} is no safetensors file, or half of one.")
        header = json.loads(file.read(length))
    try:
        found = {name: _stored(entry, 8 + length) for name, entry in header.items() if name != "__metadata__"}
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{str(path)!r} has a header that cannot be read ({error!r}).") from error
    if max((entry.start + entry.length for entry in found.values()), default=8 + length) != size:
        raise ValueError(f"{str(path)!r} does not have the size that its header tells; it is half a file.")
    return found


def _stored(entry: Mapping[str, Any], origin: int) -> Stored:
    start, end = entry["data_offsets"]
    return Stored(DTYPES[entry["dtype"]], tuple(entry["shape"]), origin + start, end - start)


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint; nothing but tensors is ever unpickled from it.

    Raises:
        ValueError: there is no such file, or it holds anything but a flat state dict.
    """
    if not path.is_file():
        raise ValueError(f"no checkpoint at {str(path)!r}; put the released file there or name another.")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, UnicodeDecodeError) as error:
        reason = str(error).split("\n")[0]
        raise ValueError(f"{path} is no checkpoint that can be read safely (weights_only): {reason}") from error
    if not isinstance(state, Mapping):
        raise ValueError(f"{path} holds a {type(state).__name__} instead of a state dict of named tensors.")
    foreign = [str(key) for key, value in state.items() if not (isinstance(key, str) and isinstance(value, Tensor))]
    if foreign:
        raise ValueError(f"{path} is no flat state dict; not tensors: {', '.join(foreign)}.")
    return dict(state)


def is_torchscript(path: Path) -> bool:
    """Whether a file is a TorchScript archive, as OpenAI publishes CLIP."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
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
            content = torch.empty(entry.length, dtype=torch.uint8)
            file.seek(entry.start)
            file.readinto(content.numpy().data)
            yield name, content.view(entry.dtype).view(entry.shape)


def _scripted(path: Path) -> dict[str, Tensor]:
    if not is_torchscript(path):
        raise ValueError(f"{str(path)!r} is neither a safetensors file nor a TorchScript archive.")
    state: dict[str, Tensor] = torch.jit.load(str(path), map_location="cpu").state_dict()
    return state
