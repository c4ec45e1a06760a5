"""Rows of a batch inside the nested values that pass between the blocks of a denoiser."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor


def map_rows(value: Any, batch: int, change: Callable[[Tensor], Tensor]) -> Any:
    """A nested value with every tensor changed that has one row per image of the batch."""
    if isinstance(value, Tensor):
        return change(value) if value.ndim > 1 and len(value) == batch else value
    if isinstance(value, tuple | list):
        return type(value)(map_rows(item, batch, change) for item in value)
    if isinstance(value, Mapping):
        return {key: map_rows(item, batch, change) for key, item in value.items()}
    return value


def append_rows(output: Any, more: Any) -> Any:
    """The rows of two equally nested outputs, one after the other."""
    if isinstance(output, Tensor):
        return torch.cat([output, more])
    return type(output)(append_rows(one, other) for one, other in zip(output, more, strict=True))
