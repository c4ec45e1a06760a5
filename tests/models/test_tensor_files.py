"""Tensors are read off safetensors files by plain reads, as safetensors itself reads them; half a file is refused."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from difflens.models.tensor_files import read_index, read_state_dict, read_tensors, tensor_shapes

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


WEIGHTS = {"a": torch.ones(2), "b": torch.zeros(1)}
TRAINING = {"model": WEIGHTS, "ema": {"module.a": torch.full((2,), 3.0)}, "opt": {"lr": 0.1}, "step": 7}


@pytest.mark.parametrize(
    ("saved", "part", "first"),
    [
        (WEIGHTS, None, 1),
        ({f"module.{name}": value for name, value in WEIGHTS.items()}, None, 1),
        (TRAINING, "model", 1),
        (TRAINING, "ema", 3),
    ],
)
def test_checkpoints_as_people_have_them_are_read(tmp_path: Path, saved: Any, part: str | None, first: float) -> None:
    torch.save(saved, tmp_path / "x.pt")
    assert read_state_dict(tmp_path / "x.pt", part=part)["a"].tolist() == [first, first]


class Mischief:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, (str(Path("mischief").absolute()),)


@pytest.mark.parametrize(
    ("content", "part", "message"),
    [
        (TRAINING, None, "weights named model, ema; choose one, as in task.weights=ema"),
        (TRAINING, "opt", "no weights named 'opt'; it holds model, ema"),
        (WEIGHTS, "ema", "no weights named 'ema'; it holds one state dict"),
        (WEIGHTS | {"c": torch.tensor([0, math.nan])}, None, "not finite, in c; its training diverged"),
        (WEIGHTS | {"c": Path("x")}, None, "it holds pathlib.*, which is no tensor"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1", None, "git-lfs pointer.*git lfs pull"),
        (b"\n<!DOCTYPE html><html>", None, "a web page instead of the file"),
        (b"root:x:0:0:root:/root:/bin/bash\n", None, "torch.save wrote; it begins with 'root:x:0:0:root:'"),
        (b"", None, "is empty; download it again"),
        ([torch.zeros(1)], None, "holds a list instead"),
        (Mischief(), None, "read safely"),
        (None, None, "no checkpoint at"),
    ],
)
def test_what_is_no_checkpoint_is_named_on_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: Any, part: str | None, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "x.pt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    with pytest.raises(ValueError, match=message) as caught:
        read_state_dict(path, part=part)
    assert "\n" not in str(caught.value) and "weights_only argument" not in str(caught.value)
    assert not (tmp_path / "mischief").exists()
