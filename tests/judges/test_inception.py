"""Inception features are clean-fid's own, from a checked local file."""

import warnings
from pathlib import Path

import pytest
import torch
from cleanfid.inception_torchscript import InceptionV3W
from cleanfid.resize import build_resizer
from torch import Tensor, nn

from difflens.judges.inception import load_inception
from difflens.judges.protocol import FeatureExtractor

FILE = "inception-2015-12-05.pt"


class Layers(nn.Module):
    """2048 of the pixels it is given."""

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :, ::9, ::9].flatten(1)[:, :2048]


class Published(nn.Module):
    """Has `layers`, as the published file has."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = Layers()

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


def write(folder: Path) -> Path:
    """A TorchScript file of the published form."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.trace(Published().eval(), torch.zeros(1, 3, 299, 299)).save(folder / FILE)
    return folder / FILE


def test_features_are_those_of_clean_fid(tmp_path: Path) -> None:
    path = write(tmp_path)
    extractor = load_inception(str(path), obtain="", sha256=None, batch=2)
    assert isinstance(extractor, FeatureExtractor) and "clean-fid" in extractor.resize
    pixels = torch.randint(0, 256, (3, 3, 70, 50), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    resized = [torch.from_numpy(build_resizer("clean")(x.permute(1, 2, 0).numpy())) for x in pixels]
    with torch.no_grad():
        expected = InceptionV3W(str(tmp_path), download=False)(torch.stack(resized).permute(0, 3, 1, 2))
    assert expected.std() > 0.1 and torch.equal(extractor(pixels.float() / 255), expected)
    assert torch.equal(extractor(pixels[1:].float() / 255), expected[1:])


def test_only_the_published_file_is_believed(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"{FILE}'; put it there.*nvidia"):
        load_inception(str(tmp_path / FILE), obtain="nvidia")
    path = write(tmp_path)
    with pytest.raises(ValueError, match="instead of f58cb9b6ec32"):
        load_inception(str(path), obtain="nvidia")
    torch.save({"layers": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match="no TorchScript Inception") as caught:
        load_inception(str(path), obtain="nvidia", sha256=None)
    assert "\n" not in str(caught.value)
