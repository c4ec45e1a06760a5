"""Images of a run: which pairs a report shows, and how they travel inside one file."""

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from difflens.report.run_folder import Edit

SMALL_SIDE = 64
"""Images up to this side are shown with visible pixels."""
LOSSLESS_BYTES = 40_000
"""Larger files are embedded reduced and as JPEG, so that the report stays small."""


class Picture(NamedTuple):
    """An image as a data URI with its size in pixels; `pixelated` if it is to be enlarged without smoothing."""

    uri: str
    width: int
    height: int
    pixelated: bool


class Pair(NamedTuple):
    """The images of one id without and with the mitigation; no edit means that it was left untouched."""

    id: int
    before: Path
    after: Path
    edit: Edit | None


def embed(path: Path, *, longest: int) -> Picture | None:
    """An image file as a data URI, reduced to a longest side if it is large; None if there is no such image."""
    try:
        data = path.read_bytes()
        image: Image.Image = Image.open(io.BytesIO(data))
        image.load()
    except OSError:
        return None
    kind = Image.MIME.get(image.format or "", "image/png")
    if max(image.size) > longest or len(data) > LOSSLESS_BYTES:
        image.thumbnail((longest, longest), Image.Resampling.LANCZOS)
        stream = io.BytesIO()
        image.convert("RGB").save(stream, format="JPEG", quality=88)
        data, kind = stream.getvalue(), "image/jpeg"
    uri = f"data:{kind};base64,{base64.b64encode(data).decode()}"
    return Picture(uri, *image.size, pixelated=min(image.size) <= 2 * SMALL_SIDE and kind != "image/jpeg")


def images_by_id(folder: Path) -> dict[int, Path]:
    """The images of a folder by id, which is their file name's number."""
    return {int(path.stem): path for path in sorted(folder.glob("*.png")) if path.stem.isdecimal()}


def select_pairs(
    images: Path, edits: Mapping[int, Edit], *, method: str, edited: int = 24, untouched: int = 12
) -> list[Pair]:
    """Some edited pairs, then some untouched ones, each evenly spaced by id: of every prompt, and nobody picked them."""
    before, after = images_by_id(images / "original"), images_by_id(images / method)
    pairs = [Pair(i, before[i], after[i], edits.get(i)) for i in sorted(before.keys() & after.keys())]
    changed, same = ([pair for pair in pairs if (pair.edit is None) is kept] for kept in (False, True))
    return _spaced(changed, edited) + _spaced(same, untouched)


def _spaced(pairs: Sequence[Pair], count: int) -> list[Pair]:
    """So many of them at even distances; all of them if there are fewer."""
    return [pairs[i * len(pairs) // count] for i in range(count)] if len(pairs) > count else [*pairs]
