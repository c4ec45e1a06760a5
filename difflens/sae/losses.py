"""Training losses of a sparse autoencoder as pure functions, and what they are told and give back."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from difflens.sae.codes import SparseCodes, decode


def _none_dead(codes: SparseCodes) -> Bool[Tensor, "width"]:
    return codes.indices.new_zeros(0, dtype=torch.bool)


@dataclass(frozen=True)
class Objective:
    """What a training loss is told beside its tokens.

    Attributes:
        variance: V, what divides the squared error, one for all or one per token; the batch's own if None.
        observe: told the codes of a batch, gives the latents that are dead after it [width]; none are by default.
        aux_coefficient: weight α of AuxK, 0 for none.
        k_aux: dead latents used by AuxK per token, half the token dimension if None.
    """

    variance: Float[Tensor, "*tokens"] | None = None
    observe: Callable[[SparseCodes], Bool[Tensor, "width"]] = _none_dead
    aux_coefficient: float = 1 / 32
    k_aux: int | None = None


class TrainingLoss(NamedTuple):
    """The loss of a batch, what it was computed from, and its parts by name (detached, to be logged)."""

    total: Float[Tensor, ""]
    x_hat: Float[Tensor, "tokens dim"]
    codes: SparseCodes
    activations: Float[Tensor, "tokens width"]
    parts: Mapping[str, Tensor]


def token_variance(x: Float[Tensor, "tokens dim"]) -> Float[Tensor, ""]:
    """E‖x − x̄‖², the variance of the tokens summed over dimensions."""
    # Centred before squaring: E‖x‖² − ‖x̄‖² cancels where tokens lie far from the origin.
    return (x - x.mean(0)).square().sum(1).mean()


def reconstruction_loss(
    x: Float[Tensor, "tokens dim"], x_hat: Float[Tensor, "tokens dim"], variance: Float[Tensor, "*tokens"]
) -> Float[Tensor, ""]:
    """Mean over tokens of ‖x − x̂‖² / V: the fraction of variance unexplained where V = E‖x − μ‖², one or one per token."""
    return ((x - x_hat).square().sum(1) / variance).mean()


def strongest(activations: Float[Tensor, "tokens some"], k: int) -> SparseCodes:
    """The `k` largest positive activations of each token, in no particular order."""
    # There may be fewer latents than k where only the dead ones are asked; the largest may be negative.
    values, indices = activations.topk(min(k, activations.shape[1]), dim=1, sorted=False)
    return SparseCodes(values.relu(), indices)


def auxk_loss(
    error: Float[Tensor, "tokens dim"], codes: SparseCodes, decoder: Float[Tensor, "dead dim"], *, k_aux: int
) -> Float[Tensor, ""]:
    """AuxK: how badly the `k_aux` strongest dead latents explain what the living ones left over.

    `min(n_dead / k_aux, 1) · Σ‖ê − e‖² / Σ‖e − ē‖²` with `ê = Σ ReLU(a_i) W_dec[i]`, no bias; 0 without residual (Gao et
    al. 2024, section A.2). No gradient flows into the error e = x − x̂; codes and decoder rows are those of the dead
    latents.
    """
    error = error.detach()
    spread = (error - error.mean(0)).square().sum()
    # Asked this way round, so that NaN counts as no residual too.
    if not spread > 0:
        return error.new_zeros(())
    explained = decode(codes, decoder)
    return torch.nan_to_num(min(len(decoder) / k_aux, 1) * (explained - error).square().sum() / spread)
