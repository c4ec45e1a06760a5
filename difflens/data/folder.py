"""A folder of images as somebody left it: each file is read, converted or refused by name; and its features, kept."""

import hashlib
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image, ImageOps, UnidentifiedImageError
from safetensors.torch import load_file, save_file
from torch import Tensor

from difflens.judges.protocol import FeatureExtractor, ReferenceStatistics
from difflens.judges.weights import free
from difflens.store.artifacts import ArtifactStore

ORIENTATION = 0x0112
"""The EXIF tag that says how a camera was held; 1 is upright."""

PLAIN = ("RGB", "RGBA", "RGBX", "RGBa", "L", "LA", "La", "1", "P", "PA", "CMYK", "YCbCr", "HSV")
"""Pillow's modes of 8 bits or fewer per channel that it converts to RGB."""

NOTES = {"L": "grayscale", "1": "grayscale", "LA": "grayscale", "P": "palette", "PA": "palette"}

LARGEST_IMAGE = 64 * 2**20
"""Pixels of an image that is still read: 8192 × 8192."""

LARGER = f"more than {LARGEST_IMAGE // 2**20} megapixels"

LARGEST_BATCH = 2**22
"""Pixels of a batch that is more than one image: 64 of 256 × 256."""


class RefusedFileError(ValueError):
    """A file that is no usable image; `reason` is one of few words, so that reasons can be counted."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{str(path)!r} cannot be used: {reason}.")
        self.reason = reason


class Decoded(NamedTuple):
    """An image as 8-bit RGB, and what had to be converted for that."""

    pixels: UInt8[np.ndarray, "height width 3"]
    conversions: tuple[str, ...]


class Batch(NamedTuple):
    """Images of one size: their names, and pixels [N, 3, H, W]."""

    names: tuple[str, ...]
    pixels: UInt8[np.ndarray, "images 3 height width"]


@dataclass(frozen=True)
class ImageFolder:
    """The images of a folder and its subfolders.

    Args:
        path: the folder.
        files: name → file, in the order of the names; a name is the path inside the folder without its suffix.
        converted: what was converted → names.
        refused: why a file was refused → files inside the folder, suffix included.
        sha256: of all names and the bytes of all images.
    """

    path: Path
    files: Mapping[str, Path]
    converted: Mapping[str, tuple[str, ...]]
    refused: Mapping[str, tuple[str, ...]]
    sha256: str

    def batches(self, size: int = 64, names: Sequence[str] | None = None) -> Iterator[Batch]:
        """The images, or those of `names`, in order; a batch ends early where the next image is large or of another size.

        No more than one batch is held, so that memory does not grow with the number of images.
        """
        waiting: list[tuple[str, np.ndarray]] = []
        for name in self.files if names is None else names:
            # Read again, not kept from the scan: a file that was spoilt meanwhile is refused here, by its name.
            pixels = decode(read_file(self.files[name]), self.files[name]).pixels
            # The size counts three channels.
            limit = min(size, LARGEST_BATCH * 3 // pixels.size)
            if waiting and (len(waiting) >= limit or waiting[0][1].shape != pixels.shape):
                yield _stacked(waiting)
                waiting = []
            waiting.append((name, pixels))
        if waiting:
            yield _stacked(waiting)

    def report(self) -> dict[str, Any]:
        """Counts and names of everything in the folder, for JSON."""
        parts = {"converted": self.converted, "refused": self.refused}
        listed = {
            part: {why: {"count": len(names), "names": list(names)} for why, names in found.items()}
            for part, found in parts.items()
        }
        return {"folder": readable(str(self.path)), "images": len(self.files), "sha256": self.sha256, **listed}

    def describe(self) -> str:
        """The same on one line, with the first names of each kind."""
        parts = [f"{len(self.files)} images in '{readable(str(self.path))}'"]
        for part, found in (("converted", self.converted), ("refused", self.refused)):
            kinds = [f"{len(names)} {why} ({some(names)})" for why, names in found.items()]
            parts += [f"{part}: {', '.join(kinds)}"] if kinds else []
        return "; ".join(parts)


def scan_folder(folder: str | Path, *, seen: Callable[[], None] = lambda: None) -> ImageFolder:
    """Read every file of a folder once, so that everything wrong with it is known before the first image is used.

    Of files with the same name and different suffixes the first counts and the others are refused. `seen` is called after
    each.

    Raises:
        ValueError: there is no such folder, or no image in it.
    """
    path = Path(folder).expanduser()
    if not path.is_dir():
        raise ValueError(f"no folder of images at '{readable(str(path))}'; name one that exists.")
    files: dict[str, Path] = {}
    converted: dict[str, list[str]] = {}
    refused: dict[str, list[str]] = {}
    digest = hashlib.sha256()
    # Sorted, since the hash must not depend on the order in which a file system lists. Links stay in, even to folders
    # and to nothing, so that they are refused by name.
    for file in sorted(file for file in path.rglob("*") if file.is_symlink() or not file.is_dir()):
        seen()
        inside = file.relative_to(path)
        told, name = readable(inside.as_posix()), readable(inside.with_suffix("").as_posix())
        try:
            content = read_file(file)
            conversions = decode(content, file).conversions
            # After decoding, so that a damaged file takes the name from no sound one.
            if name in files:
                raise RefusedFileError(file, "same name as another image")
        except RefusedFileError as error:
            refused.setdefault(error.reason, []).append(told)
            continue
        files[name] = file
        # No name holds a zero byte: it keeps name and hash apart.
        digest.update(f"{told}\0{hashlib.sha256(content).hexdigest()}\n".encode())
        for conversion in conversions:
            converted.setdefault(conversion, []).append(told)
    done, spared = ({why: tuple(names) for why, names in sorted(groups.items())} for groups in (converted, refused))
    found = ImageFolder(path, dict(sorted(files.items())), done, spared, digest.hexdigest())
    if not files:
        raise ValueError(f"no usable image: {found.describe()}.")
    return found


def readable(name: str) -> str:
    r"""A file name with bytes that are no UTF-8 written out, such as `f\xfcr`: what can be printed and kept in JSON."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def read_file(path: Path) -> bytes:
    """The bytes of a file.

    Raises:
        RefusedFileError: it is empty, unreadable, or a pipe, a broken link or a link to a folder.
    """
    # Asked first: opening a pipe would wait until somebody writes into it.
    if not path.is_file():
        raise RefusedFileError(path, "not a file")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise RefusedFileError(path, "unreadable") from error
    if not content:
        raise RefusedFileError(path, "empty")
    return content


def decode(content: bytes, path: Path) -> Decoded:
    """An image file as 8-bit RGB: upright, its first frame, transparency on white, 16 bits divided by 257.

    Raises:
        RefusedFileError: it is no image, damaged, or of a mode that has no 8-bit RGB.
    """
    try:
        with Image.open(io.BytesIO(content)) as image:
            if image.width * image.height > LARGEST_IMAGE:
                # Before a pixel is unpacked: a file of 20 kB may hold gigabytes.
                raise RefusedFileError(path, LARGER)
            return _rgb(image, path)
    except UnidentifiedImageError as error:
        # Pillow says the same of a note and of a damaged picture: the suffix tells which was meant.
        known = path.suffix.lower() in Image.registered_extensions()
        raise RefusedFileError(path, "corrupt" if known else "not an image") from error
    except RefusedFileError:
        raise
    except Image.DecompressionBombError as error:
        raise RefusedFileError(path, LARGER) from error
    except Exception as error:
        # Pillow's readers raise whatever their parsers stumble over.
        raise RefusedFileError(path, "corrupt") from error


def _rgb(image: Image.Image, path: Path) -> Decoded:
    # 16-bit RGB has the mode RGB too: only the tile tells, and decoding empties it. Frames and orientation are
    # asked for first as well, since `exif_transpose` forgets both.
    deep = ";16" in image.mode or ";16" in str(getattr(image, "tile", ""))
    conversions = {
        "first of several frames": getattr(image, "n_frames", 1) > 1,
        "rotated by EXIF": image.getexif().get(ORIENTATION, 1) in range(2, 9),
        "16 bits": deep,
    }
    image = ImageOps.exif_transpose(image)
    # 65535 / 257 = 255. Pillow's own conversion cuts off all that is above 255.
    if image.mode.startswith("I;16"):
        image = Image.fromarray(np.round(np.asarray(image) / 257).astype(np.uint8))
    if image.mode not in PLAIN:
        raise RefusedFileError(path, f"mode {image.mode}, which has no 8-bit RGB")
    transparent = image.has_transparency_data
    conversions |= {NOTES.get(image.mode, image.mode): image.mode not in ("RGB", "RGBA"), "transparency": transparent}
    if transparent:
        # Without this, `convert` would show whatever colours lie under transparent pixels.
        over = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", over.size, "white"), over)
    return Decoded(np.asarray(image.convert("RGB")), tuple(what for what, done in conversions.items() if done))


class Pairs(NamedTuple):
    """Names that two folders share, and those that only one of them has."""

    names: tuple[str, ...]
    only_first: tuple[str, ...]
    only_second: tuple[str, ...]


def pair_by_name(first: ImageFolder, second: ImageFolder, *, pairs: str = "all") -> Pairs:
    """The images of two folders that have the same name.

    Under `pairs="all"` each image needs a counterpart; under `intersect` those without one are left out, and told.

    Raises:
        ValueError: an image has no counterpart under `all`, no image has one, or `pairs` is unknown.
    """
    if pairs not in ("all", "intersect"):
        raise ValueError(f"pairs must be all or intersect, got {pairs!r}.")
    # By name, never by position: a single missing file would shift all pairs after it.
    names = tuple(name for name in first.files if name in second.files)
    lonely = tuple(
        tuple(name for name in a.files if name not in b.files) for a, b in ((first, second), (second, first))
    )
    if not names or (pairs == "all" and any(lonely)):
        remedy = "give counterparts the same name" + (", or set pairs=intersect" if names else "")
        raise ValueError(
            f"{len(names)} images pair by name; {len(lonely[0])} only in {str(first.path)!r} ({some(lonely[0])}), "
            f"{len(lonely[1])} only in {str(second.path)!r} ({some(lonely[1])}); {remedy}."
        )
    return Pairs(names, *lonely)


def some(names: Sequence[str]) -> str:
    """The first five names."""
    return ", ".join([*names[:5], *(["…"] if len(names) > 5 else [])])


def _stacked(images: list[tuple[str, np.ndarray]]) -> Batch:
    names, pixels = zip(*images, strict=True)
    return Batch(tuple(names), np.ascontiguousarray(np.stack(pixels).transpose(0, 3, 1, 2)))


class Reference(NamedTuple):
    """Features [n, dim] in the order of the images' names, and their statistics."""

    features: Float[Tensor, "images dim"]
    statistics: ReferenceStatistics


def collect_reference(
    images: ImageFolder, extractor: FeatureExtractor, *, store: ArtifactStore, batch: int = 64
) -> Reference:
    """The folder's reference for an extractor: read from the store if the same images went through the same network.

    Raises:
        ValueError: there is only one image.
        ArtifactError: what the store holds is damaged.
    """
    made = {"name": extractor.name, "resize": extractor.resize, "fingerprint": extractor.fingerprint}  # type: ignore[attr-defined]
    # What decides the features: the images' bytes and the network's weights, not where either of them lies.
    spec = {"images": images.sha256, "n": len(images.files), "extractor": made}

    def make(folder: Path) -> None:
        # A batch at a time: the images of a folder are never all in memory.
        parts = (torch.from_numpy(part.pixels).float() / 255 for part in images.batches(batch))
        save_file({"features": torch.cat([extractor(part).cpu() for part in parts])}, folder / "features.safetensors")
        # Nothing is asked of it any more, and memory may have room for one network at a time.
        free(extractor)

    artifact, _ = store.get_or_create("reference", spec, make)
    features = load_file(artifact.folder / "features.safetensors")["features"]
    statistics = ReferenceStatistics.from_features(features, extractor=extractor.name, resize=extractor.resize)
    return Reference(features, statistics)
