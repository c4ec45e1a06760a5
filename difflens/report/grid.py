"""images/grid.png: pairs of the same seed side by side, without and with the mitigation."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
from PIL import Image, ImageDraw, ImageFont

from difflens.report.images import SMALL_SIDE, Pair
from difflens.report.palette import EDITED, INK, UNTOUCHED

LARGEST_CELL = 128


@dataclass(frozen=True)
class Layout:
    """Where pairs stand, in pixels: a heading, then rows of pairs, each framed and with a caption below.

    Attributes:
        cell: width and height of one image.
        columns: number of pairs in a row.
        gap: white around a frame, and between the two images of a pair.
        frame: width of the frame around a pair.
        caption: height of the line under a pair.
        heading: height of the line above all.
    """

    cell: tuple[int, int]
    columns: int
    gap: int = 4
    frame: int = 3
    caption: int = 16
    heading: int = 24

    @property
    def pitch(self) -> tuple[int, int]:
        """Distance from one pair to the next, across and down."""
        width = 2 * self.cell[0] + self.gap + 2 * (self.frame + self.gap)
        return width, self.cell[1] + 2 * (self.frame + self.gap) + self.caption

    def corner(self, index: int) -> tuple[int, int]:
        """Upper left corner of the first image of a pair."""
        row, column = divmod(index, self.columns)
        inset = self.frame + self.gap
        return column * self.pitch[0] + inset, self.heading + row * self.pitch[1] + inset

    def canvas(self, pairs: int) -> tuple[int, int]:
        """Size of the whole image."""
        return self.columns * self.pitch[0], self.heading + -(-pairs // self.columns) * self.pitch[1]


def cell_size(size: tuple[int, int]) -> tuple[int, int]:
    """Shown size of images: small ones by a whole factor, so that every pixel becomes an equal square."""
    width, height = size
    if max(size) > LARGEST_CELL:
        factor = LARGEST_CELL / max(size)
        return round(width * factor), round(height * factor)
    enlargement = max(1, SMALL_SIDE // max(size))
    return width * enlargement, height * enlargement


def draw_grid(pairs: Sequence[Pair], *, method: str, columns: int = 6) -> Image.Image:
    """The grid of at least one pair; edited ones are framed in colour and captioned with their classes."""
    with Image.open(pairs[0].before) as first:
        layout = Layout(cell_size(first.size), min(columns, len(pairs)))
    canvas = Image.new("RGB", layout.canvas(len(pairs)), "white")
    draw, font = ImageDraw.Draw(canvas), _font(11)
    draw.text((layout.gap, 5), f"each pair: original | {method}; thick frame: changed", fill=INK, font=font)
    for index, pair in enumerate(pairs):
        left, top = layout.corner(index)
        _frame(draw, layout, (left, top), edited=pair.edit is not None)
        canvas.paste(_cell(pair.before, layout.cell), (left, top))
        canvas.paste(_cell(pair.after, layout.cell), (left + layout.cell[0] + layout.gap, top))
        words = f"{pair.edit.before} → {pair.edit.after}" if pair.edit else "untouched"
        words = _fitting(f"{pair.id}: {words}", layout.pitch[0] - 2 * layout.gap, font)
        draw.text((left, top + layout.cell[1] + layout.frame + 2), words, fill=INK, font=font)
    return canvas


def _frame(draw: ImageDraw.ImageDraw, layout: Layout, corner: tuple[int, int], *, edited: bool) -> None:
    left, top = corner
    width, (across, down) = layout.frame, (2 * layout.cell[0] + layout.gap, layout.cell[1])
    box = (left - width, top - width, left + across + width - 1, top + down + width - 1)
    draw.rectangle(box, outline=EDITED if edited else UNTOUCHED, width=width if edited else 1)


def _cell(path: Path, size: tuple[int, int]) -> Image.Image:
    with Image.open(path) as image:
        smooth = image.width > size[0] or image.height > size[1]
        return image.convert("RGB").resize(size, Image.Resampling.LANCZOS if smooth else Image.Resampling.NEAREST)


def _font(size: int) -> ImageFont.FreeTypeFont:
    # Pillow's own font lacks the arrow; matplotlib ships one that has it.
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"), size)


def _fitting(words: str, width: int, font: ImageFont.FreeTypeFont) -> str:
    if font.getlength(words) <= width:
        return words
    while words and font.getlength(f"{words}…") > width:
        words = words[:-1]
    return f"{words}…"
