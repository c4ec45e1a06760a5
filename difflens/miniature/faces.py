"""A renderer of drawn faces whose factors are known exactly.

Every factor has a place of its own in the picture, so that it stays visible under every value of the others: gender is the
hair beside the face, age the hairline, forehead and cheeks, race (a skin-tone group, named like the paper's classes) the
skin, glasses the eyes, smile the mouth; a profession adds an outfit around them. The faces are proxies drawn to
calibrate methods; they are no statement about people.
"""

from collections.abc import Mapping
from types import MappingProxyType

import torch
from torch import Tensor

from difflens.miniature.outfits import PROFESSIONS, put_on_headgear, put_on_uniform
from difflens.miniature.shapes import box, coverage, ellipse, paint, ring

SIZE = 32
"""Height and width of a rendered face in pixels."""

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

_SKIN = ((250, 218, 202), (92, 54, 40), (226, 186, 112), (172, 112, 66))
_HAIR = ((28, 26, 38), (196, 66, 28), (252, 232, 120))
_BACKGROUND = ((112, 166, 226), (136, 202, 140), (176, 144, 220), (206, 208, 212))
_SHIRT = ((200, 48, 58), (36, 52, 132), (238, 196, 40), (246, 246, 246))
_BLUSH, _LIP, _TEETH, _DARK, _LENS = (238, 96, 112), (150, 40, 48), (255, 255, 255), (22, 20, 26), (214, 240, 255)


def _palette(colours: tuple[tuple[int, int, int], ...], like: Tensor) -> Tensor:
    return torch.tensor(colours, dtype=torch.float32, device=like.device)[like] / 255


def _colour(rgb: tuple[int, int, int], n: int, device: torch.device) -> Tensor:
    return (torch.tensor(rgb, dtype=torch.float32, device=device) / 255).expand(n, 3)


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
        if len(index) and not (int(index.min()) >= 0 and int(index.max()) < len(values)):
            raise ValueError(f"factor {name!r} takes an index from 0 to {len(values) - 1} ({values}).")
    return next(iter(lengths.values()))


def render(factors: Mapping[str, Tensor]) -> Tensor:
    """Draw faces: factor indices (int64 [N] each) to RGB images [N, 3, 32, 32] in [0, 1]; deterministic.

    Raises:
        ValueError: see `validate`.
    """
    n = validate(factors)
    device = factors["gender"].device
    grid = torch.arange(SIZE, device=device, dtype=torch.float32) + 0.5
    turn = (factors["pose"].float() - 1)[:, None, None]
    y = grid[None, :, None].expand(n, SIZE, SIZE) - 16
    x = grid[None, None, :].expand(n, SIZE, SIZE) - 16 - 0.7 * turn
    canvas = _palette(_BACKGROUND, factors["background"])[:, :, None, None].expand(n, 3, SIZE, SIZE)
    canvas = _draw_body(canvas, x, y, factors)
    canvas = _draw_age(canvas, x, y, factors)
    canvas = _draw_features(canvas, x - 1.3 * turn, y, factors)
    if "profession" in factors:
        canvas = put_on_headgear(canvas, x, y, factors["profession"])
    return canvas.clamp(0, 1)


def _draw_body(canvas: Tensor, x: Tensor, y: Tensor, factors: Mapping[str, Tensor]) -> Tensor:
    """Shirt, neck, head and the hair around it: long beside the face for `female`, ears and no hair there for `male`."""
    skin, hair = _palette(_SKIN, factors["race"]), _palette(_HAIR, factors["hair"])
    long_hair = (factors["gender"] == 0).float()[:, None, None]
    shirt = _palette(_SHIRT, factors["shirt"])
    canvas = paint(canvas, coverage(ellipse(x, y - 20.5, 14.0, 9.5)), shirt)
    curtain = coverage(box(x, y - 3.0, 11.2, 12.0, corner=5.0)) * long_hair
    canvas = paint(canvas, curtain, hair)
    if "profession" in factors:
        canvas = put_on_uniform(canvas, x, y, factors["profession"], shirt)
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
    canvas = paint(canvas, cheeks * 0.75, _colour(_BLUSH, len(x), x.device))
    wrinkles = coverage(box(x, y + 6.3, 3.6, 0.5)) + coverage(box(x, y + 4.3, 4.2, 0.5))
    jowls = coverage(box(x.abs() - 5.3 + 0.35 * (y - 6.0), y - 6.0, 0.5, 2.2))
    return paint(canvas, (wrinkles + jowls).clamp_max(1) * old * 0.9, skin * 0.5)


def _draw_features(canvas: Tensor, x: Tensor, y: Tensor, factors: Mapping[str, Tensor]) -> Tensor:
    """Eyes, nose, glasses and mouth."""
    n, device = len(x), x.device
    skin = _palette(_SKIN, factors["race"])
    glasses, smile = ((factors[name] == 1).float()[:, None, None] for name in ("glasses", "smile"))
    dark = _colour(_DARK, n, device)
    eye_x, eye_y = x.abs() - 3.3, y + 0.3
    canvas = paint(canvas, coverage(ellipse(eye_x, eye_y, 2.5, 2.5)) * 0.6 * glasses, _colour(_LENS, n, device))
    canvas = paint(canvas, coverage(ellipse(eye_x, eye_y, 1.6, 1.2)), _colour(_TEETH, n, device))
    canvas = paint(canvas, coverage(ellipse(eye_x, eye_y, 0.9, 1.1)), dark)
    frame = coverage(ring(eye_x, eye_y, 2.7, 0.9)) + coverage(box(x, eye_y, 0.8, 0.45))
    canvas = paint(canvas, frame.clamp_max(1) * glasses, dark)
    canvas = paint(canvas, coverage(ellipse(x, y - 3.0, 0.9, 1.2)), skin * 0.72)
    neutral = coverage(box(x, y - 6.4, 2.3, 0.55))
    canvas = paint(canvas, neutral * (1 - smile), _colour(_LIP, n, device))
    grin = coverage(ellipse(x, y - 5.2, 4.2, 3.2)) * coverage(5.2 - y)
    teeth = coverage(ellipse(x, y - 5.6, 3.1, 1.6)) * coverage(5.7 - y)
    canvas = paint(canvas, grin * smile, _colour(_LIP, n, device))
    return paint(canvas, teeth * smile, _colour(_TEETH, n, device))
