"""A renderer of drawn faces whose factors are known exactly.

Every factor has a place of its own in the picture, so that it stays visible under every value of the others: gender is the
hair beside the face, age the hairline, forehead and cheeks, race (a skin-tone group, named like the paper's classes) the
skin, glasses the eyes, smile the mouth; a profession adds an outfit around them. The faces are proxies drawn to
calibrate methods; they are no statement about people.
"""

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import Tensor

SIZE = 32
"""Height and width of a rendered face in pixels."""

Colour = tuple[int, int, int]
"""RGB, 0 to 255."""
Shape = Callable[[Tensor, Tensor], Tensor]
"""Signed distance in pixels from coordinates [N, H, W] with their origin in the middle of the picture."""


def coverage(distance: Tensor) -> Tensor:
    """Share of each pixel inside a shape, in [0, 1], from its signed distance in pixels (negative inside)."""
    # Exact where an edge runs along the grid, elsewhere a soft edge of one pixel.
    return (0.5 - distance).clamp(0.0, 1.0)


def ellipse(x: Tensor, y: Tensor, radius_x: float, radius_y: float) -> Tensor:
    """Signed distance (first-order) to an ellipse centred at the origin of `x`, `y`."""
    scaled = ((x / radius_x) ** 2 + (y / radius_y) ** 2).sqrt()
    # (s - 1)/|∇s|, s being the scaled radius, whose gradient has the length `gradient`/s.
    gradient = ((x / radius_x**2) ** 2 + (y / radius_y**2) ** 2).sqrt()
    return scaled * (scaled - 1.0) / gradient.clamp_min(1e-6)


def box(x: Tensor, y: Tensor, half_width: float, half_height: float, corner: float = 0.0) -> Tensor:
    """Signed distance to a box with rounded corners, centred at the origin of `x`, `y`."""
    dx, dy = x.abs() - (half_width - corner), y.abs() - (half_height - corner)
    outside = (dx.clamp_min(0) ** 2 + dy.clamp_min(0) ** 2).sqrt()
    return outside + torch.stack([dx, dy]).amax(0).clamp_max(0.0) - corner


def ring(x: Tensor, y: Tensor, radius: float, thickness: float) -> Tensor:
    """Signed distance to a circle's outline of the given thickness."""
    return ((x**2 + y**2).sqrt() - radius).abs() - thickness / 2


def paint(canvas: Tensor, mask: Tensor, colour: Tensor | Colour) -> Tensor:
    """Paint one colour, or one for each image [N, 3] in [0, 1], over `canvas` [N, 3, H, W] where `mask` [N, H, W] says."""
    alpha = mask[:, None]
    return canvas * (1 - alpha) + _rgb(colour, canvas)[:, :, None, None] * alpha


def _rgb(colour: Tensor | Colour, canvas: Tensor) -> Tensor:
    return colour if isinstance(colour, Tensor) else torch.tensor([colour], dtype=canvas.dtype).to(canvas.device) / 255


class Part(NamedTuple):
    """A shape painted in one colour."""

    colour: Colour
    shape: Shape


class Outfit(NamedTuple):
    """What one profession wears: the colour of the uniform, what is sewn onto it, and the parts of the headgear."""

    uniform: Colour
    details: tuple[Part, ...]
    headgear: tuple[Part, ...]


_WHITE, _GOLD, _DARK = (250, 252, 252), (255, 214, 40), (20, 22, 34)
_RED, _CHARCOAL, _LIME = (222, 24, 28), (44, 40, 46), (214, 255, 40)
_TEAL, _VIOLET, _MAGENTA, _SKY = (0, 158, 140), (92, 20, 150), (196, 30, 190), (40, 170, 246)
_NAVY, _ORANGE, _YELLOW, _CREAM = (14, 28, 110), (255, 112, 0), (255, 206, 0), (255, 244, 214)
_PINK, _STRAW, _GREEN, _LEAF = (255, 110, 170), (222, 170, 84), (16, 124, 40), (120, 200, 60)
_STEEL, _AMBER = (150, 176, 190), (232, 164, 0)


def _dome(top: float, width: float, height: float, brim: float) -> Shape:
    """The part of an ellipse above the line y = `brim`."""
    return lambda x, y: torch.maximum(ellipse(x, y + top, width, height), y - brim)


# Outfits are large and strongly coloured, so that a diffusion model settles the profession at noisier steps than gender, age
# or race: guidance towards a profession then finds it decided, and does not exaggerate what else goes with it. Headgear
# ends above the forehead and uniforms leave a wedge of the shirt free, so that every other factor stays visible.
_FIREFIGHTER = Outfit(
    _CHARCOAL,
    (Part(_LIME, lambda x, y: box(x.abs() - 10.8, y - 14.0, 4.6, 1.0)),),
    (
        Part(_RED, _dome(7.6, 11.0, 8.4, -8.2)),
        Part(_RED, lambda x, y: box(x, y + 9.2, 13.8, 1.2, corner=1.0)),
        Part(_GOLD, lambda x, y: box(x, y + 12.0, 2.2, 2.4, corner=1.0)),
    ),
)
_DOCTOR = Outfit(
    _WHITE,
    (
        Part(_DARK, lambda x, y: box(x.abs() - 8.2, y - 13.2, 0.6, 3.6)),
        Part(_DARK, lambda x, y: ellipse(x - 8.2, y - 15.0, 1.6, 1.6)),
    ),
    (
        Part(_TEAL, _dome(8.0, 10.8, 7.4, -8.0)),
        Part(_WHITE, lambda x, y: ellipse(x, y + 11.4, 2.5, 2.5)),
        Part(_STEEL, lambda x, y: ellipse(x, y + 11.4, 1.1, 1.1)),
    ),
)
_RECEPTIONIST = Outfit(
    _MAGENTA,
    (Part(_GOLD, lambda x, y: box(x - 10.0, y - 13.8, 2.4, 1.1)),),
    (
        Part(_MAGENTA, lambda x, y: box(x, y + 11.6, 9.6, 4.0, corner=1.2)),
        Part(_VIOLET, lambda x, y: box(x, y + 14.6, 7.6, 0.9, corner=0.6)),
        Part(_GOLD, lambda x, y: box(x, y + 8.9, 10.0, 0.9)),
    ),
)
_NURSE = Outfit(
    _SKY,
    (Part(_WHITE, lambda x, y: box(x.abs() - 11.8, y - 15.2, 2.2, 1.2)),),
    (
        Part(_WHITE, lambda x, y: box(x + 0.28 * (y + 11.6) * x.sign(), y + 11.6, 10.0, 3.6, corner=1.0)),
        Part(_RED, lambda x, y: torch.minimum(box(x, y + 11.8, 0.9, 2.5), box(x, y + 11.8, 2.5, 0.9))),
    ),
)
_PILOT = Outfit(
    _NAVY,
    (Part(_GOLD, lambda x, y: box(x.abs() - 11.2, y - 12.6 - 0.3 * (x.abs() - 11.2), 2.2, 0.8)),),
    (
        Part(_NAVY, lambda x, y: ellipse(x, y + 12.0, 13.4, 4.2)),
        Part(_GOLD, lambda x, y: box(x, y + 9.9, 9.8, 0.9)),
        Part(_DARK, lambda x, y: box(x, y + 8.6, 9.8, 0.8, corner=0.6)),
        Part(_GOLD, lambda x, y: ellipse(x, y + 12.6, 1.7, 1.5)),
    ),
)
_BUILDER = Outfit(
    _ORANGE,
    (Part(_LIME, lambda x, y: box(x.abs() - 9.6, y - 14.0, 1.1, 4.0)),),
    (
        Part(_YELLOW, _dome(8.0, 10.0, 7.6, -8.2)),
        Part(_AMBER, lambda x, y: box(x, y + 12.4, 1.3, 3.4, corner=0.8)),
        Part(_YELLOW, lambda x, y: box(x, y + 8.8, 11.4, 0.9, corner=0.8)),
    ),
)
_BAKER = Outfit(
    _PINK,
    (Part(_CREAM, lambda x, y: box(x.abs() - 9.0, y - 14.0, 1.5, 4.0)),),
    (
        Part(_CREAM, lambda x, y: ellipse(x.abs() - 6.4, y + 12.4, 6.0, 4.0)),
        Part(_CREAM, lambda x, y: ellipse(x, y + 12.8, 5.6, 3.6)),
        Part(_PINK, lambda x, y: box(x, y + 9.3, 9.2, 1.3)),
    ),
)
_GARDENER = Outfit(
    _GREEN,
    (Part(_LEAF, lambda x, y: box(x.abs() - 8.6, y - 13.0, 1.3, 4.0)),),
    (
        Part(_STRAW, lambda x, y: box(x, y + 12.0, 8.4, 4.2, corner=2.4)),
        Part(_GREEN, lambda x, y: box(x, y + 11.0, 8.6, 1.0)),
        Part(_STRAW, lambda x, y: box(x, y + 9.2, 14.8, 1.2, corner=1.0)),
    ),
)
_OUTFITS = (_FIREFIGHTER, _DOCTOR, _RECEPTIONIST, _NURSE, _PILOT, _BUILDER, _BAKER, _GARDENER)

PROFESSIONS = ("none", "firefighter", "doctor", "receptionist", "nurse", "pilot", "builder", "baker", "gardener")
"""Values of the factor `profession`: no outfit, or the one at the same place of the list above."""

FACTORS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "gender": ("female", "male"),
        "age": ("young", "adult", "old"),
        "race": ("White", "Black", "Asian", "Indian"),
        "glasses": ("without", "with"),
        "smile": ("neutral", "smiling"),
        "background": ("blue", "green", "purple", "grey"),
        "shirt": ("red", "navy", "yellow", "white"),
        "hair": ("black", "ginger", "blond"),
        "pose": ("left", "front", "right"),
    }
)
"""Every factor of a face and its ordered values; a face is one index per factor."""

WORKPLACE_FACTORS: Mapping[str, tuple[str, ...]] = MappingProxyType({**FACTORS, "profession": PROFESSIONS})
"""The factors of a face that may wear an outfit; without an index of `profession` it wears none."""

# Far apart: with one tone too close to its neighbour, a prototype's shares of race stayed off by more than a tenth.
_SKIN = ((250, 218, 202), (92, 54, 40), (226, 186, 112), (172, 112, 66))
_HAIR = ((28, 26, 38), (196, 66, 28), (252, 232, 120))
_BACKGROUND = ((112, 166, 226), (136, 202, 140), (176, 144, 220), (206, 208, 212))
_SHIRT = ((200, 48, 58), (36, 52, 132), (238, 196, 40), (246, 246, 246))
_BLUSH, _LIP, _TEETH, _PUPIL, _LENS = (238, 96, 112), (150, 40, 48), (255, 255, 255), (22, 20, 26), (214, 240, 255)


def validate(factors: Mapping[str, Tensor]) -> int:
    """Return the number of faces described by `factors`.

    Raises:
        ValueError: a factor is missing or unknown, has another length, or holds an index outside its values.
    """
    if set(factors) - {"profession"} != set(FACTORS):
        raise ValueError(f"factors must be {sorted(FACTORS)}, if need be 'profession', got {sorted(factors)}.")
    lengths = {name: len(index) for name, index in factors.items()}
    if len(set(lengths.values())) != 1:
        raise ValueError(f"every factor needs one index per face, got lengths {lengths}.")
    for name, index in factors.items():
        values = WORKPLACE_FACTORS[name]
        # No face at all has no smallest index.
        if len(index) and not (int(index.min()) >= 0 and int(index.max()) < len(values)):
            raise ValueError(f"factor {name!r} takes an index from 0 to {len(values) - 1} ({values}).")
    return next(iter(lengths.values()))


def render(factors: Mapping[str, Tensor]) -> Tensor:
    """Draw faces: factor indices (int64 [N] each) to RGB images [N, 3, 32, 32] in [0, 1]; deterministic.

    Raises:
        ValueError: see `validate`.
    """
    n = validate(factors)
    grid = torch.arange(SIZE, device=factors["gender"].device, dtype=torch.float32) + 0.5
    turn = (factors["pose"].float() - 1)[:, None, None]
    y = grid[None, :, None].expand(n, SIZE, SIZE) - 16
    x = grid[None, None, :].expand(n, SIZE, SIZE) - 16 - 0.7 * turn
    canvas = _palette(_BACKGROUND, factors["background"])[:, :, None, None].expand(n, 3, SIZE, SIZE)
    canvas = _draw_body(canvas, x, y, factors)
    canvas = _draw_age(canvas, x, y, factors)
    # What lies in front moves further than the head does, as in a face that turns.
    canvas = _draw_features(canvas, x - 1.3 * turn, y, factors)
    # Last, so that hair of any length and a hairline of any age lie beneath it.
    for outfit, rows in _worn(factors):
        canvas = canvas.index_copy(0, rows, _put_on_headgear(canvas[rows], x[rows], y[rows], outfit))
    return canvas.clamp(0, 1)


def surroundings() -> Tensor:
    """Where no face shows, whatever its gender, age, race, glasses, smile and pose: bool [32, 32]."""
    counts = [len(FACTORS[name]) for name in FACTORS]
    faces = dict(zip(FACTORS, torch.unravel_index(torch.arange(math.prod(counts)), counts), strict=True))
    # One background, shirt and hair colour are enough: only these fill the surroundings themselves.
    chosen = (faces["background"] == 0) & (faces["shirt"] == 0) & (faces["hair"] == 0)
    images = render({name: index[chosen] for name, index in faces.items()})
    return (images == images[:1]).all(0).all(0)


def _palette(colours: tuple[Colour, ...], chosen: Tensor) -> Tensor:
    return torch.tensor(colours, dtype=torch.float32, device=chosen.device)[chosen] / 255


def _draw_body(canvas: Tensor, x: Tensor, y: Tensor, factors: Mapping[str, Tensor]) -> Tensor:
    """Shirt, neck, head and the hair around it: long beside the face for `female`, ears and no hair there for `male`."""
    skin, hair = _palette(_SKIN, factors["race"]), _palette(_HAIR, factors["hair"])
    shirt = _palette(_SHIRT, factors["shirt"])
    long_hair = (factors["gender"] == 0).float()[:, None, None]
    canvas = paint(canvas, coverage(ellipse(x, y - 20.5, 14.0, 9.5)), shirt)
    canvas = paint(canvas, coverage(box(x, y - 3.0, 11.2, 12.0, corner=5.0)) * long_hair, hair)
    # Over the hair that falls on the shoulders, and beneath the neck and the face.
    for outfit, rows in _worn(factors):
        canvas = canvas.index_copy(0, rows, _put_on_uniform(canvas[rows], x[rows], y[rows], outfit, shirt[rows]))
    canvas = paint(canvas, coverage(box(x, y - 9.5, 3.2, 3.8)), skin * 0.85)
    ears = coverage(ellipse(x.abs() - 8.3, y - 1.5, 1.8, 2.3)) * (1 - long_hair)
    canvas = paint(canvas, ears, skin * 0.9)
    cap = coverage(ellipse(x, y + 1.5, 9.2, 10.8)) * coverage(y + 1.0)
    canvas = paint(canvas, cap, hair)
    return paint(canvas, coverage(ellipse(x, y - 1.0, 7.8, 9.3)), skin)


def _draw_age(canvas: Tensor, x: Tensor, y: Tensor, factors: Mapping[str, Tensor]) -> Tensor:
    """Young: a fringe and rosy cheeks; adult: a hairline; old: a high forehead with wrinkles and lines beside the mouth."""
    skin, hair = _palette(_SKIN, factors["race"]), _palette(_HAIR, factors["hair"])
    young, adult, old = ((factors["age"] == value).float()[:, None, None] for value in range(3))
    scalp = coverage(ellipse(x, y - 1.0, 8.3, 9.8))
    fringe = scalp * (coverage(y + 3.4) * young + coverage(y + 6.2) * adult)
    canvas = paint(canvas, fringe, hair)
    cheeks = coverage(ellipse(x.abs() - 5.0, y - 4.6, 1.9, 1.5)) * young
    canvas = paint(canvas, cheeks * 0.75, _BLUSH)
    wrinkles = coverage(box(x, y + 6.3, 3.6, 0.5)) + coverage(box(x, y + 4.3, 4.2, 0.5))
    jowls = coverage(box(x.abs() - 5.3 + 0.35 * (y - 6.0), y - 6.0, 0.5, 2.2))
    # Shapes overlap, and a sum of their shares may exceed a whole pixel.
    return paint(canvas, (wrinkles + jowls).clamp_max(1) * old * 0.9, skin * 0.5)


def _draw_features(canvas: Tensor, x: Tensor, y: Tensor, factors: Mapping[str, Tensor]) -> Tensor:
    """Eyes, nose, glasses and mouth."""
    skin = _palette(_SKIN, factors["race"])
    glasses, smile = ((factors[name] == 1).float()[:, None, None] for name in ("glasses", "smile"))
    # |x| mirrors the picture, so that both eyes are drawn at once.
    eye_x, eye_y = x.abs() - 3.3, y + 0.3
    canvas = paint(canvas, coverage(ellipse(eye_x, eye_y, 2.5, 2.5)) * 0.6 * glasses, _LENS)
    canvas = paint(canvas, coverage(ellipse(eye_x, eye_y, 1.6, 1.2)), _TEETH)
    canvas = paint(canvas, coverage(ellipse(eye_x, eye_y, 0.9, 1.1)), _PUPIL)
    frame = coverage(ring(eye_x, eye_y, 2.7, 0.9)) + coverage(box(x, eye_y, 0.8, 0.45))
    canvas = paint(canvas, frame.clamp_max(1) * glasses, _PUPIL)
    canvas = paint(canvas, coverage(ellipse(x, y - 3.0, 0.9, 1.2)), skin * 0.72)
    canvas = paint(canvas, coverage(box(x, y - 6.4, 2.3, 0.55)) * (1 - smile), _LIP)
    grin = coverage(ellipse(x, y - 5.2, 4.2, 3.2)) * coverage(5.2 - y)
    teeth = coverage(ellipse(x, y - 5.6, 3.1, 1.6)) * coverage(5.7 - y)
    canvas = paint(canvas, grin * smile, _LIP)
    return paint(canvas, teeth * smile, _TEETH)


def _worn(factors: Mapping[str, Tensor]) -> list[tuple[Outfit, Tensor]]:
    """The outfits that some face wears, and which faces do."""
    if "profession" not in factors:
        return []
    rows = [(factors["profession"] == index).nonzero()[:, 0] for index in range(1, len(PROFESSIONS))]
    return [(outfit, found) for outfit, found in zip(_OUTFITS, rows, strict=True) if len(found)]


def _put_on_uniform(canvas: Tensor, x: Tensor, y: Tensor, outfit: Outfit, shirt: Tensor) -> Tensor:
    """A uniform over the shoulders and the hair that falls on them, with the `shirt` [N, 3] in the neckline."""
    shoulders = coverage(ellipse(x, y - 18.4, 16.5, 9.5))
    canvas = paint(canvas, shoulders, outfit.uniform)
    for colour, shape in outfit.details:
        # Within the uniform alone: details are sewn on, and neither neck nor background may show them.
        canvas = paint(canvas, shoulders * coverage(shape(x, y)), colour)
    neckline = x.abs() - 7.0 + 0.8 * (y - 10.0)
    canvas = paint(canvas, shoulders * coverage(neckline - 0.8), _rgb(outfit.uniform, canvas) * 0.7)
    return paint(canvas, shoulders * coverage(neckline), shirt)


def _put_on_headgear(canvas: Tensor, x: Tensor, y: Tensor, outfit: Outfit) -> Tensor:
    for colour, shape in outfit.headgear:
        canvas = paint(canvas, coverage(shape(x, y)), colour)
    return canvas
