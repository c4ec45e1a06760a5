"""Tensors are read off safetensors files by plain reads, as safetensors itself reads them; half a file is refused."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from difflens.models.tensor_files import read_index, read_tensors, tensor_shapes

TENSORS = {
    "full": torch.randn(3, 4),
    "half": torch.randn(5).half(),
    "brain": torch.randn(2, 2).bfloat16(),
    "count": torch.tensor(7),
    "none": torch.empty(0, 3),
    "truth": torch.tensor([True, False]),
}


def test_every_tensor_comes_back_bit_for_bit_in_the_order_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file(TENSORS, path, metadata={"format": "pt"})
    assert tensor_shapes(path) == {name: tuple(value.shape) for name, value in TENSORS.items()}
    names = sorted(TENSORS, reverse=True)
    found = dict(read_tensors(path, names))
    assert list(found) == names
    for name, value in found.items():
        assert value.dtype == TENSORS[name].dtype and torch.equal(value, TENSORS[name])


def test_half_a_file_and_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file(TENSORS, path)
    content = path.read_bytes()
    for damaged in (content[:-1], content + b"0", content[:20], b"", b"no tensors at all", b"\2" + bytes(7) + b"{]"):
        path.write_bytes(damaged)
        with pytest.raises(ValueError):
            read_index(path)
    (tmp_path / "x.pt").write_bytes(b"no archive")
    with pytest.raises(ValueError, match="neither"):
        tensor_shapes(tmp_path / "x.pt")
