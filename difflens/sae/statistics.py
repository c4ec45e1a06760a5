"""What is known of the tokens before an SAE is trained on them: finite, how large, how varied."""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from difflens.sae.losses import token_variance


class TokenStatistics(NamedTuple):
    """Statistics of a sample of tokens, float64."""

    mean: Float[Tensor, "dim"]
    scale: float
    """`√D / E‖x − μ‖`: times this, centred tokens have a mean norm of √D."""
    variance: Float[Tensor, ""]
    """`E‖x − μ‖²`."""
    variance_per_step: Float[Tensor, "steps"]
    """The same within each step, around the step's own mean; 0 for a step without varying tokens."""


def require_finite(x: Float[Tensor, "tokens dim"], site: str) -> None:
    """Refuse tokens that hold NaN or infinity.

    Raises:
        ValueError: naming the site and the number of such tokens.
    """
    broken = int((~x.isfinite().all(1)).sum())
    if broken:
        raise ValueError(
            f"{broken} of {len(x)} tokens of {site} hold NaN or infinity; "
            "generate the activations again, in a wider dtype if they are float16."
        )


@torch.no_grad()
def token_statistics(
    x: Float[Tensor, "tokens dim"], step: Int[Tensor, "tokens"], *, steps: int, site: str
) -> TokenStatistics:
    """Mean, input scale and variances of a sample of tokens.

    Args:
        x: tokens.
        step: the denoising step of each.
        steps: number of denoising steps.
        site: named in error messages.

    Raises:
        ValueError: the tokens are not finite, or all equal.
    """
    require_finite(x, site)
    exact = x.double()
    deviation = exact - exact.mean(0)
    if not deviation.any():
        raise ValueError(f"all {len(x)} tokens of {site} are equal; is this the right site?")
    per_step = exact.new_zeros(steps)
    for index in range(steps):
        if (step == index).any():
            per_step[index] = token_variance(exact[step == index])
    scale = math.sqrt(x.shape[1]) / float(deviation.norm(dim=1).mean())
    return TokenStatistics(exact.mean(0), scale, deviation.square().sum(1).mean(), per_step)
