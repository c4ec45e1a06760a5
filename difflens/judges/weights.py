"""Weight files that a user brings: looked for where the configuration says, checked, never fetched."""

import importlib.util
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import nn

from difflens.models.tensor_files import read_state_dict
from difflens.store.files import sha256_of
from difflens.store.locations import place


def find_weights(path: str, *, obtain: str, sha256: str | None = None, package: str | None = None) -> Path:
    """The file at `path`, with the bytes that were published where their SHA-256 is known.

    Args:
        path: where it should lie, or `package:…` for a file that is shipped.
        obtain: where or how to get it, told if it is not there.
        sha256: of the published file in hexadecimal; None where nobody published one.
        package: a Python package that has a file of this name, taken where it is installed and `path` is not there.

    Raises:
        ValueError: there is no such file, or it has another SHA-256.
    """
    found = place(path)
    if package is not None and not found.is_file() and (spec := importlib.util.find_spec(package)) is not None:
        # Found without an import, which would run the package.
        inside = (Path(folder).rglob(found.name) for folder in spec.submodule_search_locations or ())
        found = next(chain.from_iterable(inside), found)
    if not found.is_file():
        raise ValueError(f"no file at {str(found)!r}; put it there or name where it lies; it comes from: {obtain}")
    # A flipped bit loads silently; only the hash tells such a file from the published one.
    actual = sha256_of(found) if sha256 is not None else None
    if sha256 is not None and actual != sha256.lower():
        raise ValueError(
            f"{str(found)!r} has SHA-256 {actual} instead of {sha256.lower()}: it is damaged or another file; "
            f"the right one comes from: {obtain}"
        )
    return found


def load_weights(network: nn.Module, path: Path) -> nn.Module:
    """The network with the tensors of a checkpoint, in evaluation mode and without gradients.

    Raises:
        ValueError: the file holds no plain state dict, or its keys or shapes are not the network's; all are listed.
    """
    try:
        # Nothing but tensors is unpickled: a checkpoint of somebody else could run code.
        network.load_state_dict(read_state_dict(path))
    except RuntimeError as error:
        # torch lists every key that does not fit, each on a line of its own.
        raise ValueError(f"{str(path)!r} holds another network: {' '.join(str(error).split())}") from error
    return network.eval().requires_grad_(False)


class OnDemand:
    """A network that is built when it is needed, and anew after its memory was given back.

    Args:
        build: gives the network.
    """

    def __init__(self, build: Callable[[], Any]) -> None:
        self._build = build
        self._network: Any = None

    def __call__(self) -> Any:
        """The network."""
        if self._network is None:
            with torch.inference_mode(False):  # whose tensors would be of no use outside
                self._network = self._build()
        return self._network

    def free(self) -> None:
        """Let go of the network."""
        self._network = None


def free(reader: object) -> None:
    """Have a judge or an extractor give back the memory of its networks, if it can."""
    # `free` is no part of the protocols: a judge of one's own may lack it.
    getattr(reader, "free", lambda: None)()
