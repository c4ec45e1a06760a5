"""Learning rates of a run whose length is known."""

import math


def sae_learning_rate(width: int) -> float:
    """`2e-4 · √(2¹⁴ / M)` for `M` latents (Gao et al. 2024, section A.3)."""
    return 2e-4 * math.sqrt(2**14 / width)


def trapezoid(update: int, updates: int, *, warmup: int, decay: float) -> float:
    """Factor of the learning rate: linear rise over `warmup` updates, linear fall to 0 over the last `decay` share."""
    rise = (update + 1) / warmup if warmup else 1.0
    fall = (updates - update) / (decay * updates) if decay else 1.0
    return max(0.0, min(1.0, rise, fall))
