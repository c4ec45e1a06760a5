"""How much the pixels of edited images change in a part of the picture that no edit of the attribute should touch."""

from pathlib import Path

import torch
from jaxtyping import Bool, Float
from PIL import Image
from torch import Tensor
from torchmetrics import Metric

LEVELS = 255
"""Levels of a channel of an image with 8 bits."""


class PixelChange(Metric):
    """Mean |change| of the edited images' pixels, in levels of 255, over a part of the picture.

    Args:
        where: which pixels count: bool [H, W], or an image file, white where they do; brought to the images' size.

    Raises:
        ValueError: no pixel counts.

    >>> metric = PixelChange(torch.tensor([[True, False]]))
    >>> black, grey = torch.zeros(1, 3, 1, 2), torch.full((1, 3, 1, 2), 0.2)
    >>> metric.update(grey, originals=black, edited=torch.tensor([True]))
    >>> round(float(metric.compute()))
    51
    """

    full_state_update = False
    where: Tensor
    total: Tensor
    images: Tensor

    def __init__(self, where: Bool[Tensor, "height width"] | str | Path) -> None:
        super().__init__()
        mask = where if isinstance(where, Tensor) else _white(Path(where))
        if not bool(mask.any()):
            raise ValueError("PixelChange was given a mask in which no pixel counts.")
        self.register_buffer("where", mask.bool())
        self.add_state("total", torch.tensor(0.0, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("images", torch.tensor(0), dist_reduce_fx="sum")

    def update(
        self,
        images: Float[Tensor, "images 3 height width"],
        originals: Float[Tensor, "images 3 height width"],
        edited: Bool[Tensor, "images"],
    ) -> None:
        """Take images in [0, 1] and the same ids without mitigation."""
        # By nearest neighbours, the default: a smoothed mask would reach into pixels that do not count.
        mask = torch.nn.functional.interpolate(self.where[None, None].float(), images.shape[-2:])[0, 0] > 0
        change = (images - originals)[edited.to(images.device)].abs()[..., mask.to(images.device)]
        self.total += LEVELS * change.double().flatten(1).mean(1).sum().to(self.total.device)
        self.images += len(change)

    def compute(self) -> Tensor:
        """The mean; NaN where no image was edited."""
        return self.total / self.images


def _white(file: Path) -> Tensor:
    with Image.open(file) as image:
        grey = image.convert("L")
        # A copy that may be written to: torch warns of any other buffer.
        return (torch.frombuffer(bytearray(grey.tobytes()), dtype=torch.uint8) > 127).view(grey.height, grey.width)
