"""A folder's reference features are computed once per network and images, and keep their hash."""

from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from difflens.data.folder import collect_reference, scan_folder
from difflens.store.artifacts import ArtifactStore


class Means:
    """Mean colour as features; counts the images it saw."""

    name, dim, resize = "means", 3, "none"

    def __init__(self, fingerprint: str = "a") -> None:
        self.fingerprint, self.seen = fingerprint, 0

    def __call__(self, images: Tensor) -> Tensor:
        self.seen += len(images)
        return images.mean((2, 3))


def folder(path: Path, *, last: int = 90) -> Path:
    path.mkdir(exist_ok=True)
    for number, level in enumerate((0, 51, last)):
        Image.new("RGB", (4 + number, 4), (level, 255 - level, 255)).save(path / f"{number}.png")
    return path


def test_features_are_kept_with_the_images_hash(tmp_path: Path) -> None:
    store, extractor = ArtifactStore(tmp_path / "artifacts"), Means()
    first = collect_reference(scan_folder(folder(tmp_path / "images")), extractor, store=store, batch=2)
    levels = torch.tensor([0.0, 51, 90]) / 255
    assert torch.allclose(first.features, torch.stack([levels, 1 - levels, torch.ones(3)], dim=1))
    assert first.statistics.n == 3 and first.statistics.extractor == "means"
    again = collect_reference(scan_folder(tmp_path / "images"), extractor, store=store)
    assert extractor.seen == 3 and again.statistics.sha256 == first.statistics.sha256
    changed = collect_reference(scan_folder(folder(tmp_path / "images", last=91)), extractor, store=store)
    assert extractor.seen == 6 and changed.statistics.sha256 != first.statistics.sha256
    other = Means("b")
    collect_reference(scan_folder(tmp_path / "images"), other, store=store)
    assert other.seen == 3
