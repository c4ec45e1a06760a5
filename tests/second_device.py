"""A second device for machines without one: memory of the CPU under another name, which no operation may mix with the CPU's.

As on a GPU, tensors of no dimension and CPU indices of `x[…]` are let in anywhere; everything else must be moved first.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

SECOND = torch.device("meta")
"""The one name of a device, beside the CPU's, that every machine has; its tensors here do have values."""

aten = torch.ops.aten
MOVES = (aten._to_copy.default, aten.copy_.default)
INDEXED = (aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default)


class Away(Tensor):
    """A tensor on the second device; `here` holds its values."""

    here: Tensor

    @staticmethod
    def __new__(cls, here: Tensor) -> "Away":
        laid_out = {"strides": here.stride(), "storage_offset": here.storage_offset()}
        # A view of an ordinary tensor must be one too, also in inference mode.
        with torch.inference_mode(False):
            made: Away = Tensor._make_wrapper_subclass(cls, here.size(), dtype=here.dtype, device=SECOND, **laid_out)
        made.here = here
        return made

    def __repr__(self) -> str:
        return f"Away({self.here!r})"

    def tolist(self) -> Any:
        return self.here.tolist()

    @classmethod
    def __torch_dispatch__(cls, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise RuntimeError(f"{operation}: there is no second device outside of the block")

    __torch_function__ = torch._C._disabled_torch_function_impl


class _Operations(TorchDispatchMode):
    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        with self:  # what is made of other operations, which inference mode does not take apart
            made = operation.decompose(*args, **kwargs)
        return compute(operation, args, kwargs) if made is NotImplemented else made


class _Literals(TorchFunctionMode):
    """`torch.tensor(…, device=SECOND)` would be given no values."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function in (torch.tensor, torch.as_tensor) and kwargs.get("device") is not None:
            device = kwargs.pop("device")
            return function(*args, **kwargs).to(device)
        return function(*args, **kwargs)


@contextmanager
def second_device() -> Iterator[torch.device]:
    """A device on which one can compute inside the block; mixing it with the CPU raises RuntimeError."""
    with patch.object(torch, "autocast", lambda *_, **__: nullcontext()), _Operations(), _Literals():
        yield SECOND


def compute(operation: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    tensors = [value for value in tree_flatten((args, kwargs))[0] if isinstance(value, Tensor)]
    away = any(isinstance(tensor, Away) for tensor in tensors)
    if operation not in MOVES:
        refuse_mixture(operation, args, tensors)
    if kwargs.get("device") is not None:
        away = torch.device(kwargs["device"]) == SECOND
        kwargs = {**kwargs, "device": torch.device("cpu")} if away else kwargs
    args, kwargs = tree_map(lambda value: value.here if isinstance(value, Away) else value, (args, kwargs))
    made = operation(*args, **kwargs)
    if operation._schema.name.endswith("_"):  # in place
        return tensors[0]
    return tree_map(lambda value: Away(value) if away and isinstance(value, Tensor) else value, made)


def refuse_mixture(operation: Any, args: Any, tensors: list[Tensor]) -> None:
    if operation in INDEXED:
        indexed, indices = args[0], [index for index in args[1] if index is not None]
        if not isinstance(indexed, Away) and any(isinstance(index, Away) for index in indices):
            raise RuntimeError(f"{operation}: a tensor on the CPU was indexed by one on the second device")
        tensors = [indexed, *(value for value in args[2:] if isinstance(value, Tensor))]
    places = {tensor.device.type for tensor in tensors if tensor.ndim}
    if len(places) > 1:
        raise RuntimeError(f"{operation} was given tensors on both devices: {[t.device.type for t in tensors]}")
