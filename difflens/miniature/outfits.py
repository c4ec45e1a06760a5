"""What professions wear: a uniform over the shoulders and headgear above the hairline.

Outfits are large and strongly coloured, so that a diffusion model settles the profession at noisier steps than gender, age
or race: guidance towards a profession then finds it decided, and does not exaggerate what else goes with it. Headgear
ends above the forehead and uniforms leave a wedge of the shirt free, so that every other factor stays visible.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import Tensor

from difflens.miniature.shapes import box, coverage, ellipse, paint

Shape = Callable[[Tensor, Tensor], Tensor]
"""Signed distance in pixels from coordinates [N, H, W] with their origin in the middle of the picture."""


class Part(NamedTuple):
    """A shape painted in one colour (RGB, 0 to 255)."""

    colour: tuple[int, int, int]
    shape: Shape


class Outfit(NamedTuple):
    """What one profession wears: the colour of the uniform, what is sewn onto it, and the parts of the headgear."""

    uniform: tuple[int, int, int]
    details: tuple[Part, ...]
    headgear: tuple[Part, ...]


_WHITE, _GOLD, _DARK = (250, 252, 252), (255, 214, 40), (20, 22, 34)
_RED, _CHARCOAL, _LIME = (222, 24, 28), (44, 40, 46), (214, 255, 40)
_TEAL, _VIOLET, _MAGENTA, _SKY = (0, 158, 140), (92, 20, 150), (196, 30, 190), (40, 170, 246)
_NAVY, _ORANGE, _YELLOW, _CREAM = (14, 28, 110), (255, 112, 0), (255, 206, 0), (255, 244, 214)
_PINK, _STRAW, _GREEN, _LEAF = (255, 110, 170), (222, 170, 84), (16, 124, 40), (120, 200, 60)


def _half(shape: Shape, below: float) -> Shape:
    """The part of a shape above the line y = `below`."""
    return lambda x, y: torch.maximum(shape(x, y), y - below)


OUTFITS: Mapping[str, Outfit] = MappingProxyType(
    {
        "firefighter": Outfit(
            _CHARCOAL,
            (Part(_LIME, lambda x, y: box(x.abs() - 10.8, y - 14.0, 4.6, 1.0)),),
            (
                Part(_RED, _half(lambda x, y: ellipse(x, y + 7.6, 11.0, 8.4), -8.2)),
                Part(_RED, lambda x, y: box(x, y + 9.2, 13.8, 1.2, corner=1.0)),
                Part(_GOLD, lambda x, y: box(x, y + 12.0, 2.2, 2.4, corner=1.0)),
            ),
        ),
        "doctor": Outfit(
            _WHITE,
            (
                Part(_DARK, lambda x, y: box(x.abs() - 8.2, y - 13.2, 0.6, 3.6)),
                Part(_DARK, lambda x, y: ellipse(x - 8.2, y - 15.0, 1.6, 1.6)),
            ),
            (
                Part(_TEAL, _half(lambda x, y: ellipse(x, y + 8.0, 10.8, 7.4), -8.0)),
                Part(_WHITE, lambda x, y: ellipse(x, y + 11.4, 2.5, 2.5)),
                Part((150, 176, 190), lambda x, y: ellipse(x, y + 11.4, 1.1, 1.1)),
            ),
        ),
        "receptionist": Outfit(
            _MAGENTA,
            (Part(_GOLD, lambda x, y: box(x - 10.0, y - 13.8, 2.4, 1.1)),),
            (
                Part(_MAGENTA, lambda x, y: box(x, y + 11.6, 9.6, 4.0, corner=1.2)),
                Part(_VIOLET, lambda x, y: box(x, y + 14.6, 7.6, 0.9, corner=0.6)),
                Part(_GOLD, lambda x, y: box(x, y + 8.9, 10.0, 0.9)),
            ),
        ),
        "nurse": Outfit(
            _SKY,
            (Part(_WHITE, lambda x, y: box(x.abs() - 11.8, y - 15.2, 2.2, 1.2)),),
            (
                Part(_WHITE, lambda x, y: box(x + 0.28 * (y + 11.6) * x.sign(), y + 11.6, 10.0, 3.6, corner=1.0)),
                Part(_RED, lambda x, y: torch.minimum(box(x, y + 11.8, 0.9, 2.5), box(x, y + 11.8, 2.5, 0.9))),
            ),
        ),
        "pilot": Outfit(
            _NAVY,
            (Part(_GOLD, lambda x, y: box(x.abs() - 11.2, y - 12.6 - 0.3 * (x.abs() - 11.2), 2.2, 0.8)),),
            (
                Part(_NAVY, lambda x, y: ellipse(x, y + 12.0, 13.4, 4.2)),
                Part(_GOLD, lambda x, y: box(x, y + 9.9, 9.8, 0.9)),
                Part(_DARK, lambda x, y: box(x, y + 8.6, 9.8, 0.8, corner=0.6)),
                Part(_GOLD, lambda x, y: ellipse(x, y + 12.6, 1.7, 1.5)),
            ),
        ),
        "builder": Outfit(
            _ORANGE,
            (Part(_LIME, lambda x, y: box(x.abs() - 9.6, y - 14.0, 1.1, 4.0)),),
            (
                Part(_YELLOW, _half(lambda x, y: ellipse(x, y + 8.0, 10.0, 7.6), -8.2)),
                Part((232, 164, 0), lambda x, y: box(x, y + 12.4, 1.3, 3.4, corner=0.8)),
                Part(_YELLOW, lambda x, y: box(x, y + 8.8, 11.4, 0.9, corner=0.8)),
            ),
        ),
        "baker": Outfit(
            _PINK,
            (Part(_CREAM, lambda x, y: box(x.abs() - 9.0, y - 14.0, 1.5, 4.0)),),
            (
                Part(_CREAM, lambda x, y: ellipse(x.abs() - 6.4, y + 12.4, 6.0, 4.0)),
                Part(_CREAM, lambda x, y: ellipse(x, y + 12.8, 5.6, 3.6)),
                Part(_PINK, lambda x, y: box(x, y + 9.3, 9.2, 1.3)),
            ),
        ),
        "gardener": Outfit(
            _GREEN,
            (Part(_LEAF, lambda x, y: box(x.abs() - 8.6, y - 13.0, 1.3, 4.0)),),
            (
                Part(_STRAW, lambda x, y: box(x, y + 12.0, 8.4, 4.2, corner=2.4)),
                Part(_GREEN, lambda x, y: box(x, y + 11.0, 8.6, 1.0)),
                Part(_STRAW, lambda x, y: box(x, y + 9.2, 14.8, 1.2, corner=1.0)),
            ),
        ),
    }
)
"""Profession → what it wears."""

PROFESSIONS = ("none", *OUTFITS)
"""Values of the factor `profession`."""


def put_on_uniform(canvas: Tensor, x: Tensor, y: Tensor, profession: Tensor, shirt: Tensor) -> Tensor:
    """Draw uniforms over the shoulders and the hair that falls on them, with the `shirt` [N, 3] in the neckline.

    Args:
        canvas: what is drawn so far [N, 3, H, W].
        x: horizontal coordinates of its pixels [N, H, W], in pixels from the middle.
        y: vertical coordinates, downwards.
        profession: index into `PROFESSIONS` [N].
        shirt: colours [N, 3] in [0, 1].
    """

    def draw(outfit: Outfit, canvas: Tensor, x: Tensor, y: Tensor, rows: Tensor) -> Tensor:
        shoulders = coverage(ellipse(x, y - 18.4, 16.5, 9.5))
        canvas = paint(canvas, shoulders, _colour(outfit.uniform, canvas))
        for part in outfit.details:
            canvas = paint(canvas, shoulders * coverage(part.shape(x, y)), _colour(part.colour, canvas))
        neckline = x.abs() - 7.0 + 0.8 * (y - 10.0)
        canvas = paint(canvas, shoulders * coverage(neckline - 0.8), _colour(outfit.uniform, canvas) * 0.7)
        return paint(canvas, shoulders * coverage(neckline), shirt[rows])

    return _for_each_outfit(draw, canvas, x, y, profession)


def put_on_headgear(canvas: Tensor, x: Tensor, y: Tensor, profession: Tensor) -> Tensor:
    """Draw headgear above the hairline; arguments as in `put_on_uniform`."""

    def draw(outfit: Outfit, canvas: Tensor, x: Tensor, y: Tensor, rows: Tensor) -> Tensor:
        for part in outfit.headgear:
            canvas = paint(canvas, coverage(part.shape(x, y)), _colour(part.colour, canvas))
        return canvas

    return _for_each_outfit(draw, canvas, x, y, profession)


def _for_each_outfit(
    draw: Callable[[Outfit, Tensor, Tensor, Tensor, Tensor], Tensor],
    canvas: Tensor,
    x: Tensor,
    y: Tensor,
    profession: Tensor,
) -> Tensor:
    canvas = canvas.clone()
    for index, outfit in enumerate(OUTFITS.values(), start=1):
        rows = (profession == index).nonzero()[:, 0]
        if len(rows):
            canvas[rows] = draw(outfit, canvas[rows], x[rows], y[rows], rows)
    return canvas


def _colour(rgb: tuple[int, int, int], canvas: Tensor) -> Tensor:
    return (torch.tensor(rgb, dtype=canvas.dtype, device=canvas.device) / 255).expand(len(canvas), 3)
