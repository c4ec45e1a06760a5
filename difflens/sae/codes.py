"""Sparse codes: how they are held, decoded, and made with a gradient as sparse as they are."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

SPARSE_BELOW = 0.1
"""Share of active latents under which gathering rows beats a dense product (CPU, forward and backward, M = 1024: the
sparse way is 4x faster at 1/32, level at 1/8)."""


class SparseCodes(NamedTuple):
    """Codes of N tokens, the active latents only; a slot whose value is 0 is inactive, whatever its index.

    TopK codes have k slots, threshold codes as many as the fullest token needs.
    """

    values: Float[Tensor, "tokens slots"]
    indices: Int[Tensor, "tokens slots"]

    @staticmethod
    def where(kept: Bool[Tensor, "tokens width"], values: Float[Tensor, "tokens width"]) -> "SparseCodes":
        """The `values` at which `kept` is true."""
        token, latent = kept.nonzero(as_tuple=True)
        count = torch.bincount(token, minlength=len(kept))
        slots = max(1, int(count.max())) if len(kept) else 1
        # `nonzero` goes token by token, so a latent's slot is its place within its token's run.
        slot = torch.arange(len(token), device=kept.device) - (count.cumsum(0) - count)[token]
        indices = latent.new_zeros(len(kept), slots).index_put((token, slot), latent)
        filled = torch.arange(slots, device=kept.device) < count[:, None]
        # Gathered from `values`, so that gradients reach them; unused slots have index 0 and value 0.
        return SparseCodes(values.gather(1, indices) * filled, indices)

    def dense(self, width: int) -> Float[Tensor, "tokens width"]:
        """The same codes with one column per latent."""
        # Added, not set: unused slots all say index 0, and would wipe out that latent.
        return self.values.new_zeros(len(self.values), width).scatter_add(1, self.indices, self.values)

    def are_sparse(self, width: int) -> bool:
        """Whether gathering the rows of the active latents is faster than a product with all rows."""
        return self.indices.shape[1] < SPARSE_BELOW * width


def decode_sparse(codes: SparseCodes, decoder: Float[Tensor, "width dim"]) -> Float[Tensor, "tokens dim"]:
    """Σ_i z_i W_dec[i] by gathering the rows of the active latents; no bias."""
    # One fused kernel: gathered by indexing, the rows [N, k, D] would have to exist first.
    return F.embedding_bag(codes.indices, decoder, per_sample_weights=codes.values.to(decoder.dtype), mode="sum")


def decode_dense(codes: SparseCodes, decoder: Float[Tensor, "width dim"]) -> Float[Tensor, "tokens dim"]:
    """Σ_i z_i W_dec[i] as a matrix product; no bias."""
    return codes.dense(len(decoder)).to(decoder.dtype) @ decoder


def decode(codes: SparseCodes, decoder: Float[Tensor, "width dim"]) -> Float[Tensor, "tokens dim"]:
    """Σ_i z_i W_dec[i], no bias, by whichever way is faster for this share of slots."""
    return decode_sparse(codes, decoder) if codes.are_sparse(len(decoder)) else decode_dense(codes, decoder)


def collect(codes: SparseCodes, x: Float[Tensor, "tokens dim"], width: int) -> Float[Tensor, "width dim"]:
    """Σ_n z_n,i x_n for every latent i: the transpose of `decode`, again by the faster way."""
    if not codes.are_sparse(width):
        return codes.dense(width).T @ x
    latents, slots = codes.indices.flatten(), codes.indices.shape[1]
    order = latents.argsort(stable=True)
    count = torch.bincount(latents, minlength=width)
    # Each latent's tokens become one bag: every row is written once, with no conflict and in a fixed order.
    weights = codes.values.flatten()[order]
    return F.embedding_bag(order // slots, x, count.cumsum(0) - count, per_sample_weights=weights, mode="sum")


Select = Callable[[Float[Tensor, "tokens width"]], SparseCodes]


class _EncodeSparsely(torch.autograd.Function):
    """Codes whose values are the pre-activations chosen, or 0; backward looks at the rows of the active latents only."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, select: Select, known: Tensor | None) -> Any:
        activations = F.linear(x, weight, bias) if known is None else known
        values, indices = select(activations)
        ctx.save_for_backward(x, weight, values > 0, indices)
        ctx.mark_non_differentiable(indices, activations)
        # Or torch would make a dense gradient of zeros [N, M] for the pre-activations.
        ctx.set_materialize_grads(False)
        return values, indices, activations if known is None else None

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor | None, *_: object) -> Any:
        if gradient is None:
            return (None,) * 5
        x, weight, active, indices = ctx.saved_tensors
        # A slot that holds 0 was cut by ReLU or is unused: no gradient goes through it.
        codes, width = SparseCodes(gradient.to(weight.dtype) * active, indices), len(weight)
        of_x = decode(codes, weight) if ctx.needs_input_grad[0] else None
        of_bias = weight.new_zeros(width).index_add_(0, indices.flatten(), codes.values.flatten())
        return of_x, collect(codes, x.to(weight.dtype), width), of_bias, None, None


def encode_sparsely(
    x: Float[Tensor, "tokens dim"],
    weight: Float[Tensor, "width dim"],
    bias: Float[Tensor, "width"],
    select: Select,
    known: Float[Tensor, "tokens width"] | None = None,
) -> tuple[SparseCodes, Float[Tensor, "tokens width"]]:
    """`select(x Wᵀ + b)` and the pre-activations, with the gradient of the dense product at a fraction of its cost.

    With k of M latents active only k rows of W per token receive any gradient: 2·N·k·D operations instead of 2·N·M·D.
    Each value that `select` gives must be the pre-activation itself, or 0. Pre-activations that are `known` already carry
    no gradient.
    """
    values, indices, activations = _EncodeSparsely.apply(x, weight, bias, select, known)
    return SparseCodes(values, indices), activations if known is None else known
