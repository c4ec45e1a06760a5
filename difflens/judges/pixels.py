"""Images as the published judges and extractors want them: 8-bit RGB, prepared by Pillow."""

from collections.abc import Callable, Iterator, Sequence

import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from difflens.judges.faces import FaceCropper

AT_ONCE = 2**24
"""Pixels that are held as floats at once: 200 MB, or 256 images of 256 × 256."""


def float_pieces(images: UInt8[Tensor, "images channels height width"]) -> Iterator[Tensor]:
    """Images as floats in [0, 1], in order, some at once."""
    size = max(1, AT_ONCE // max(1, images.shape[-2] * images.shape[-1]))
    return (piece.float() / 255 for piece in images.split(size))


def as_photographs(images: Float[Tensor, "images channels height width"]) -> list[Image.Image]:
    """Images [N, 3, H, W] in [0, 1] as 8-bit RGB, rounded to the values that saving them would write.

    Raises:
        ValueError: they have other than three channels, or values that are not finite or outside [0, 1].
    """
    if images.shape[1] != 3:
        raise ValueError(f"photographs are RGB images [N, 3, H, W], got {list(images.shape)}.")
    low, high = (float(value) for value in images.aminmax()) if images.numel() else (0.0, 0.0)
    # A comparison with NaN is false. Denoisers may overshoot by a rounding error, never by a grey level.
    if not (low > -1e-3 and high < 1 + 1e-3):
        raise ValueError(f"images must lie in [0, 1], got values from {low:g} to {high:g}; divide 8-bit images by 255.")
    pixels = (images.detach().float().clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    return [Image.fromarray(image) for image in pixels]


def read_faces(
    images: Float[Tensor, "images channels height width"],
    faces: FaceCropper,
    network: Callable[[Sequence[Image.Image]], Tensor],
    *,
    width: int,
    batch: int,
) -> Float[Tensor, "images outputs"]:
    """What a network answers to the images' faces [N, width] (float32, the images' device); NaN where there is none."""
    rows = torch.full((len(images), width), torch.nan, device=images.device)
    for start in range(0, len(images), batch):
        crops = [faces(photograph) for photograph in as_photographs(images[start : start + batch])]
        found = [i for i, crop in enumerate(crops) if crop is not None]
        if found:
            rows[[start + i for i in found]] = network([crop for crop in crops if crop is not None]).float().to(rows)
    return rows
