"""Images of a run: which pairs are shown, how they travel inside one file, and their contact sheet."""

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib
from PIL import Image, ImageDraw, ImageFont

from difflens.report.figures import EDITED, INK, UNTOUCHED
from difflens.report.run_folder import Edit

SMALL_SIDE = 64
"""Images up to this side are shown with visible pixels."""
LOSSLESS_BYTES = 40_000
"""Larger files are embedded reduced and as JPEG, so that the report stays small."""
LARGEST_CELL = 128
GAP, FRAME, CAPTION, HEADING = 4, 3, 16, 24
"""Pixels of the contact sheet: white between images, the frame of a pair, the line under it, the line above all."""


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
        # Pillow opens lazily: a file that was cut off fails only here.
        image.load()
    except OSError:
        return None
    kind = Image.MIME.get(image.format or "", "image/png")
    if max(image.size) > longest or len(data) > LOSSLESS_BYTES:
        image.thumbnail((longest, longest), Image.Resampling.LANCZOS)
        stream = io.BytesIO()
        # JPEG knows no transparency and no palette.
        image.convert("RGB").save(stream, format="JPEG", quality=88)
        data, kind = stream.getvalue(), "image/jpeg"
    uri = f"data:{kind};base64,{base64.b64encode(data).decode()}"
    # Compressed pixels are not the model's own and are better smoothed.
    return Picture(uri, *image.size, pixelated=min(image.size) <= 2 * SMALL_SIDE and kind != "image/jpeg")


def pairs_of(images: Path, edits: Mapping[int, Edit], *, method: str) -> list[Pair]:
    """All pairs by id, which is their file names' number."""
    # A file whose name is no number, such as an overview, belongs to no pair.
    before, after = (
        {int(path.stem): path for path in sorted((images / name).glob("*.png")) if path.stem.isdecimal()}
        for name in ("original", method)
    )
    return [Pair(i, before[i], after[i], edits.get(i)) for i in sorted(before.keys() & after.keys())]


def select_pairs(
    images: Path, edits: Mapping[int, Edit], *, method: str, edited: int = 24, untouched: int = 12
) -> list[Pair]:
    """Some edited pairs, then some untouched ones, each evenly spaced by id: of every prompt, and nobody picked them."""
    pairs = pairs_of(images, edits, method=method)
    changed, same = ([pair for pair in pairs if (pair.edit is None) is kept] for kept in (False, True))
    return _spaced(changed, edited) + _spaced(same, untouched)


def _spaced(pairs: Sequence[Pair], count: int) -> list[Pair]:
    """So many of them at even distances; all of them if there are fewer."""
    return [pairs[i * len(pairs) // count] for i in range(count)] if len(pairs) > count else [*pairs]


def cell_size(size: tuple[int, int]) -> tuple[int, int]:
    """Shown size of images: small ones by a whole factor, so that every pixel becomes an equal square."""
    longest = max(size)
    factor = LARGEST_CELL / longest if longest > LARGEST_CELL else max(1, SMALL_SIDE // longest)
    return round(size[0] * factor), round(size[1] * factor)


def draw_grid(pairs: Sequence[Pair], *, method: str, columns: int = 6) -> Image.Image:
    """The contact sheet of at least one pair; edited ones are framed in colour and captioned with their classes."""
    with Image.open(pairs[0].before) as first:
        width, height = cell_size(first.size)
    columns, inset = min(columns, len(pairs)), FRAME + GAP
    # Every cell has room for the thick frame, so that edited and untouched pairs stand in line.
    across, down = 2 * width + GAP + 2 * inset, height + 2 * inset + CAPTION
    sheet = Image.new("RGB", (columns * across, HEADING + -(-len(pairs) // columns) * down), "white")
    # Pillow's own font lacks the arrow; matplotlib ships one that has it.
    font = ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"), 11)
    draw = ImageDraw.Draw(sheet)
    draw.text((GAP, 5), f"each pair: original | {method}; thick frame: changed", fill=INK, font=font)
    for place, pair in enumerate(pairs):
        left, top = place % columns * across + inset, HEADING + place // columns * down + inset
        frame = (left - FRAME, top - FRAME, left + 2 * width + GAP + FRAME - 1, top + height + FRAME - 1)
        draw.rectangle(frame, outline=EDITED if pair.edit else UNTOUCHED, width=FRAME if pair.edit else 1)
        for path, x in ((pair.before, left), (pair.after, left + width + GAP)):
            sheet.paste(_cell(path, (width, height)), (x, top))
        words = f"{pair.id}: " + (f"{pair.edit.before} → {pair.edit.after}" if pair.edit else "untouched")
        draw.text((left, top + height + FRAME + 2), _fitting(words, across - 2 * GAP, font), fill=INK, font=font)
    return sheet


def _cell(path: Path, size: tuple[int, int]) -> Image.Image:
    with Image.open(path) as image:
        smooth = image.width > size[0] or image.height > size[1]
        # Enlarged without smoothing: what is shown is what the model drew.
        return image.convert("RGB").resize(size, Image.Resampling.LANCZOS if smooth else Image.Resampling.NEAREST)


def _fitting(words: str, width: int, font: ImageFont.FreeTypeFont) -> str:
    if font.getlength(words) <= width:
        return words
    while words and font.getlength(f"{words}…") > width:
        words = words[:-1]
    return f"{words}…"
