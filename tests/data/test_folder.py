"""Every file of a folder is read, converted or refused by name, in bounded memory; its features are computed once."""

import json
import os
import struct
import tracemalloc
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from difflens.data.folder import ImageFolder, RefusedFileError, collect_reference, decode, pair_by_name, scan_folder
from difflens.store.artifacts import ArtifactStore

COLOUR = (200, 100, 50)


def deep_png(pixels: np.ndarray) -> bytes:
    """A PNG of 16-bit RGB, which Pillow reads but does not write."""
    height, width, _ = pixels.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    packed = [struct.pack(">I", len(d)) + t + d + struct.pack(">I", zlib.crc32(t + d)) for t, d in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


def pixels(folder: ImageFolder, name: str) -> np.ndarray:
    """An image [H, W, 3] by name."""
    batch = next(folder.batches(1, [name]))
    assert batch.names == (name,) and batch.pixels.dtype == np.uint8
    return batch.pixels[0].transpose(1, 2, 0)


@pytest.fixture
def messy(tmp_path: Path) -> Path:
    """One file of each kind."""
    folder = tmp_path / "messy"
    (folder / "inner").mkdir(parents=True)
    plain = Image.new("RGB", (6, 4), COLOUR)
    plain.save(folder / "plain.png")
    plain.save(folder / "plain.tiff")
    plain.save(folder / "inner" / "plain.webp", lossless=True)
    Image.new("L", (6, 4), 77).save(folder / "grey.png")
    Image.new("1", (6, 4), 1).save(folder / "bilevel.png")
    Image.new("RGBA", (6, 4), (*COLOUR, 0)).save(folder / "clear.png")
    Image.new("LA", (6, 4), (10, 255)).save(folder / "opaque_grey.png")
    plain.quantize(4).save(folder / "palette.png")
    Image.fromarray(np.full((4, 6), 51 * 257, np.uint16)).save(folder / "deep.png")
    (folder / "deep_colour.png").write_bytes(deep_png(np.full((4, 6, 3), 51 * 257)))
    Image.new("CMYK", (6, 4), (0, 255, 0, 0)).save(folder / "print.jpg", quality=100)
    sideways = Image.new("RGB", (8, 16), "black")
    sideways.paste("white", (0, 0, 8, 8))
    exif = Image.Exif()
    exif[0x0112] = 6
    sideways.save(folder / "turned.jpg", exif=exif, quality=100)
    plain.save(folder / "moving.gif", save_all=True, append_images=[Image.new("RGB", (6, 4), "blue")])
    (folder / "empty.png").touch()
    for name, side in (("large", 9_000), ("gigantic", 20_000)):  # a header is all that is read of them
        header = b"IHDR" + struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
        png = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
        (folder / f"{name}.png").write_bytes(png + b"\0\0\0\0IDAT" + struct.pack(">I", zlib.crc32(b"IDAT")))
    (folder / "cut.png").write_bytes((folder / "deep_colour.png").read_bytes()[:-30])
    (folder / "lie.jpg").write_bytes(b"not a picture")
    (folder / "notes.txt").write_text("not a picture")
    Image.new("F", (6, 4), 0.5).save(folder / "float.tiff")
    os.symlink(folder / "gone.png", folder / "dangling.png")
    return folder


def test_every_file_is_accounted_for_by_name(messy: Path) -> None:
    found = scan_folder(messy)
    assert found.refused == {
        "corrupt": ("cut.png", "lie.jpg"),
        "empty": ("empty.png",),
        "more than 64 megapixels": ("gigantic.png", "large.png"),
        "mode F, which has no 8-bit RGB": ("float.tiff",),
        "not a file": ("dangling.png",),
        "not an image": ("notes.txt",),
        "same name as another image": ("plain.tiff",),
    }
    assert found.converted == {
        "16 bits": ("deep.png", "deep_colour.png"),
        "CMYK": ("print.jpg",),
        "first of several frames": ("moving.gif",),
        "grayscale": ("bilevel.png", "deep.png", "grey.png", "opaque_grey.png"),
        "palette": ("moving.gif", "palette.png"),
        "rotated by EXIF": ("turned.jpg",),
        "transparency": ("clear.png", "opaque_grey.png"),
    }
    files = [path for path in messy.rglob("*") if not path.is_dir()]
    assert len(found.files) + sum(map(len, found.refused.values())) == len(files)
    report = found.report()
    assert report["images"] == 12 and report["refused"]["corrupt"] == {"count": 2, "names": ["cut.png", "lie.jpg"]}
    assert "2 corrupt (cut.png, lie.jpg)" in found.describe() and "\n" not in found.describe()


@pytest.mark.parametrize(
    ("name", "colour", "tolerance"),
    [
        ("plain", COLOUR, 0),
        ("inner/plain", COLOUR, 0),
        ("grey", (77, 77, 77), 0),
        ("bilevel", (255, 255, 255), 0),
        ("clear", (255, 255, 255), 0),
        ("opaque_grey", (10, 10, 10), 0),
        ("palette", COLOUR, 0),
        ("deep", (51, 51, 51), 0),
        ("deep_colour", (51, 51, 51), 1),
        ("print", (255, 0, 255), 3),
        ("moving", COLOUR, 0),
    ],
)
def test_conversions_keep_the_colours(messy: Path, name: str, colour: tuple[int, ...], tolerance: int) -> None:
    found = pixels(scan_folder(messy), name).astype(int)
    assert found.shape == (4, 6, 3) and int(np.abs(found - np.array(colour)).max()) <= tolerance


def test_a_camera_held_sideways_is_turned_upright(messy: Path) -> None:
    turned = pixels(scan_folder(messy), "turned")
    assert turned.shape == (8, 16, 3)
    # Orientation 6: the top of the stored image is the right side of the picture.
    assert turned[:, 9:].min() > 240 and turned[:, :7].max() < 15


def test_half_transparency_lies_on_white(tmp_path: Path) -> None:
    Image.new("RGBA", (2, 2), (0, 0, 0, 128)).save(tmp_path / "veil.png")
    assert np.abs(pixels(scan_folder(tmp_path), "veil").astype(int) - 127).max() <= 1


def test_batches_break_at_another_size_and_keep_the_order(tmp_path: Path) -> None:
    for number, width in enumerate((5, 5, 5, 7, 5)):
        Image.new("RGB", (width, 4), (number, 0, 0)).save(tmp_path / f"{number}.png")
    found = scan_folder(tmp_path)
    batches = list(found.batches(2))
    assert [batch.names for batch in batches] == [("0", "1"), ("2",), ("3",), ("4",)]
    assert [batch.pixels.shape for batch in batches] == [(2, 3, 4, 5), (1, 3, 4, 5), (1, 3, 4, 7), (1, 3, 4, 5)]
    assert [int(batch.pixels[-1, 0, 0, 0]) for batch in batches] == [1, 2, 3, 4]
    assert [batch.names for batch in found.batches(2, ["4", "1"])] == [("4", "1")]


def peak_memory(batches: Iterator[object]) -> int:
    """Bytes held at most while iterating."""
    tracemalloc.start()
    for _ in batches:
        pass
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


def test_memory_does_not_grow_with_the_number_of_images(tmp_path: Path) -> None:
    Image.new("RGB", (64, 64), COLOUR).save(tmp_path / "000.png")
    for number in range(1, 160):
        os.link(tmp_path / "000.png", tmp_path / f"{number:03}.png")
    found = scan_folder(tmp_path)
    one = 64 * 64 * 3
    assert len(found.files) == 160 and peak_memory(found.batches(8)) < 40 * one


def test_the_hash_is_of_names_and_bytes_wherever_the_folder_lies(tmp_path: Path) -> None:
    hashes = []
    for folder, name, colour in (("a", "x", 1), ("b", "x", 1), ("c", "y", 1), ("d", "x", 2)):
        (tmp_path / folder).mkdir()
        Image.new("L", (2, 2), colour).save(tmp_path / folder / f"{name}.png")
        hashes.append(scan_folder(tmp_path / folder).sha256)
    assert hashes[0] == hashes[1] and len(set(hashes)) == 3


def test_pairs_go_by_name_and_what_has_no_counterpart_is_an_error(tmp_path: Path) -> None:
    for folder, names in (("a", ("1.png", "2.png", "3.png")), ("b", ("2.jpg", "3.jpg", "4.jpg")), ("c", ("9.png",))):
        (tmp_path / folder).mkdir()
        for name in names:
            Image.new("RGB", (2, 2)).save(tmp_path / folder / name)
    a, b, c = (scan_folder(tmp_path / folder) for folder in "abc")
    with pytest.raises(
        ValueError, match=r"2 images pair by name; 1 only in .*\(1\), 1 only in .*\(4\); .*pairs=intersect"
    ):
        pair_by_name(a, b)
    assert pair_by_name(a, b, pairs="intersect") == (("2", "3"), ("1",), ("4",))
    assert pair_by_name(a, a) == (("1", "2", "3"), (), ())
    with pytest.raises(ValueError, match="0 images pair by name"):
        pair_by_name(a, c, pairs="intersect")
    with pytest.raises(ValueError, match="all or intersect, got 'union'"):
        pair_by_name(a, b, pairs="union")


def test_a_folder_without_images_is_an_error_that_names_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("nothing")
    with pytest.raises(ValueError, match=r"no usable image.*1 not an image \(notes\.txt\)"):
        scan_folder(tmp_path)
    with pytest.raises(ValueError, match="no folder of images"):
        scan_folder(tmp_path / "absent")


def test_a_file_spoilt_between_scan_and_use_is_named(tmp_path: Path) -> None:
    Image.new("RGB", (2, 2)).save(tmp_path / "x.png")
    found = scan_folder(tmp_path)
    (tmp_path / "x.png").write_bytes(b"")
    with pytest.raises(RefusedFileError, match=r"x\.png' cannot be used: empty"):
        list(found.batches())
    with pytest.raises(RefusedFileError, match="corrupt"):
        decode(b"\x89PNG\r\n\x1a\n", tmp_path / "x.png")


def test_a_name_that_is_no_utf8_is_read_and_told_readably(tmp_path: Path) -> None:
    for name in (b"f\xfcr.png", "für.png".encode()):
        Image.new("L", (6, 4), 9).save(tmp_path / "x.png")
        os.rename(os.fsencode(tmp_path / "x.png"), os.fsencode(tmp_path) + b"/" + name)
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.txt")).write_text("x")
    found = scan_folder(tmp_path)
    assert list(found.files) == ["f\\xfcr", "für"] and found.refused == {"not an image": ("\\xff.txt",)}
    assert len(list(found.batches(1))) == 2
    assert "f\\xfcr.png" in json.dumps(found.report(), ensure_ascii=False).encode().decode().replace("\\\\", "\\")


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
