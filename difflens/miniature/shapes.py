"""Anti-aliased signed-distance shapes on a pixel grid, vectorised over a batch of images."""

from torch import Tensor, stack


def coverage(distance: Tensor) -> Tensor:
    """Share of each pixel inside a shape, in [0, 1], from its signed distance in pixels (negative inside)."""
    return (0.5 - distance).clamp(0.0, 1.0)


def ellipse(x: Tensor, y: Tensor, radius_x: float, radius_y: float) -> Tensor:
    """Signed distance (first-order) to an ellipse centred at the origin of `x`, `y`."""
    scaled = ((x / radius_x) ** 2 + (y / radius_y) ** 2).sqrt()
    gradient = ((x / radius_x**2) ** 2 + (y / radius_y**2) ** 2).sqrt()
    return scaled * (scaled - 1.0) / gradient.clamp_min(1e-6)


def box(x: Tensor, y: Tensor, half_width: float, half_height: float, corner: float = 0.0) -> Tensor:
    """Signed distance to a box with rounded corners, centred at the origin of `x`, `y`."""
    dx, dy = x.abs() - (half_width - corner), y.abs() - (half_height - corner)
    outside = (dx.clamp_min(0) ** 2 + dy.clamp_min(0) ** 2).sqrt()
    return outside + stack([dx, dy]).amax(0).clamp_max(0.0) - corner


def ring(x: Tensor, y: Tensor, radius: float, thickness: float) -> Tensor:
    """Signed distance to a circle's outline of the given thickness."""
    return ((x**2 + y**2).sqrt() - radius).abs() - thickness / 2


def paint(canvas: Tensor, mask: Tensor, colour: Tensor) -> Tensor:
    """Paint `colour` [N, 3] over `canvas` [N, 3, H, W] where `mask` [N, H, W] says, in [0, 1]."""
    alpha = mask[:, None]
    return canvas * (1 - alpha) + colour[:, :, None, None] * alpha
