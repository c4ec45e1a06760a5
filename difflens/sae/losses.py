"""Training losses of a sparse autoencoder and the loss its reconstructions recover, as pure functions."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from difflens.sae.decode import SparseCodes, decode


def token_variance(x: Float[Tensor, "tokens dim"]) -> Float[Tensor, ""]:
    """E‖x − x̄‖², the variance of the tokens summed over dimensions."""
    return (x - x.mean(0)).square().sum(1).mean()


def reconstruction_loss(
    x: Float[Tensor, "tokens dim"], x_hat: Float[Tensor, "tokens dim"], variance: Float[Tensor, "*tokens"]
) -> Float[Tensor, ""]:
    """Mean over tokens of ‖x − x̂‖² / V: the fraction of variance unexplained where V is the tokens' variance.

    Args:
        x: tokens.
        x_hat: their reconstructions.
        variance: V = E‖x − μ‖², one for all or one per token.
    """
    return ((x - x_hat).square().sum(1) / variance).mean()


def auxk_loss(
    error: Float[Tensor, "tokens dim"],
    activations: Float[Tensor, "tokens width"],
    decoder: Float[Tensor, "width dim"],
    *,
    dead: Bool[Tensor, "width"],
    k_aux: int,
) -> Float[Tensor, ""]:
    """AuxK: how badly the `k_aux` strongest dead latents explain what the living ones left over.

    `min(n_dead / k_aux, 1) · Σ‖ê − e‖² / Σ‖e − ē‖²` with `ê = Σ ReLU(a_i) W_dec[i]`, no bias; 0 without dead latents
    or residual (Gao et al. 2024, section A.2).

    Args:
        error: x − x̂; no gradient flows into it.
        activations: pre-activations `a` of all latents, through which the gradient reaches the dead encoder rows.
        decoder: W_dec.
        dead: which latents are dead.
        k_aux: dead latents used per token.
    """
    error = error.detach()
    latents = dead.nonzero().flatten()
    spread = (error - error.mean(0)).square().sum()
    if not len(latents) or not spread > 0:
        return error.new_zeros(())
    values, slots = activations[:, latents].topk(min(k_aux, len(latents)), dim=1, sorted=False)
    explained = decode(SparseCodes(values.relu(), latents[slots]), decoder)
    return torch.nan_to_num(min(len(latents) / k_aux, 1) * (explained - error).square().sum() / spread)


def denoising_loss_recovered(
    *, original: Float[Tensor, "steps"], reconstructed: Float[Tensor, "*saes steps"], ablated: Float[Tensor, "steps"]
) -> Float[Tensor, "*saes steps"]:
    """`(L_ablated − L_sae) / (L_ablated − L_original)` per step: 1 if x̂ serves the denoiser as well as x.

    Args:
        original: denoising loss per step of the untouched model.
        reconstructed: with the site replaced by the SAE's reconstruction; one row per SAE, if several.
        ablated: with the site ablated (replaced by its mean, or zero).
    """
    return (ablated - reconstructed) / (ablated - original)
