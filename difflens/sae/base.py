"""The sparse autoencoder: affine encoder, sparse activation function, decoder rows; its view of maps; save and load."""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from safetensors.torch import load, save
from torch import Tensor, nn

from difflens.sae.codes import SparseCodes, decode, encode_sparsely
from difflens.sae.losses import Objective, TrainingLoss, auxk_loss, reconstruction_loss, strongest, token_variance
from difflens.store.targets import saved_class

__all__ = ["SparseAutoencoder", "SparseCodes", "Token"]

Token = Literal["position", "map"]


class SparseAutoencoder(nn.Module, ABC):
    """`a = W_enc (x − b_dec) + b_enc`, `z = select(a)`, `x̂ = Σ z_i W_dec[i] + b_dec`.

    Encoder and decoder start as the same random unit directions (Gao et al. 2024, section A.1).

    Args:
        dim: channels of the site.
        expansion: latents per channel: width = expansion x `dim`.
        k: active latents per token.
        centre: subtract `b_dec` before encoding; the paper's release does not.
        token: `position`, each spatial position is a token; `map`, the whole map is one (the paper's SD 1.5 SAE).
        positions: H·W of the site's map; needed by `token="map"` alone.

    Raises:
        ValueError: no latent, `k` outside 1..width, an unknown `token`, or `token="map"` without `positions`.
    """

    def __init__(
        self,
        dim: int,
        *,
        expansion: int | float,
        k: int,
        centre: bool = True,
        token: str = "position",
        positions: int | None = None,
    ) -> None:
        super().__init__()
        self.width = round(expansion * dim)
        if self.width < 1:
            raise ValueError(f"expansion={expansion} of {dim} channels leaves no latent; raise sae.expansion.")
        if not 1 <= k <= self.width:
            raise ValueError(f"k={k} must lie in 1..{self.width}, the width; lower sae.k or raise sae.expansion.")
        if token not in get_args(Token):
            raise ValueError(f"token={token!r} is unknown; use one of {get_args(Token)}.")
        if token == "map" and not positions:
            raise ValueError("token='map' needs positions=H·W of the site's map.")
        self.channels, self.expansion, self.k = dim, expansion, k
        self.centre, self.token, self.positions = centre, token, positions
        self.dim = dim * positions if token == "map" and positions else dim
        directions = F.normalize(torch.randn(self.width, self.dim), dim=1)
        # Equal at birth and free from then on: without the copy both parameters would be one piece of memory.
        self.w_enc = nn.Parameter(directions.clone())
        self.b_enc = nn.Parameter(torch.zeros(self.width))
        self.w_dec = nn.Parameter(directions)
        self.b_dec = nn.Parameter(torch.zeros(self.dim))

    trains: ClassVar[bool] = True
    """Whether anything is learnt beside the mean of the activations, `b_dec`."""

    only_selects: ClassVar[bool] = False
    """Whether each value that `select` gives is the pre-activation itself or 0, so that its gradient can be sparse too."""

    @abstractmethod
    def select(self, activations: Float[Tensor, "tokens width"]) -> SparseCodes:
        """The sparse activation function: which pre-activations become codes."""

    def settings(self) -> dict[str, object]:
        """The constructor's arguments, from which an equal SAE can be built."""
        return {
            "dim": self.channels,
            "expansion": self.expansion,
            "k": self.k,
            "centre": self.centre,
            "token": self.token,
            "positions": self.positions,
        }

    @property
    def decoder(self) -> Float[Tensor, "width dim"]:
        """One row per latent: the direction it writes."""
        return self.w_dec

    def centred(self, x: Float[Tensor, "tokens dim"]) -> Float[Tensor, "tokens dim"]:
        """What the encoder's rows see of a token: `x − b_dec`, or `x` if not centred."""
        # Activations are recorded, and on some devices sampled, in half precision.
        x = x.to(self.w_enc.dtype)
        return x - self.b_dec if self.centre else x

    def pre_activations(self, x: Float[Tensor, "tokens dim"]) -> Float[Tensor, "tokens width"]:
        """`a = W_enc (x − b_dec) + b_enc`, without `b_dec` if not centred."""
        return F.linear(self.centred(x), self.w_enc, self.b_enc)

    def encode(self, x: Float[Tensor, "tokens dim"]) -> SparseCodes:
        """Active latents of each token."""
        return self.encode_fully(x)[0]

    def encode_fully(self, x: Float[Tensor, "tokens dim"]) -> tuple[SparseCodes, Float[Tensor, "tokens width"]]:
        """Codes, and the pre-activations of all latents: without gradient where that of the codes is sparse."""
        if self._sparse_gradient(x):
            return encode_sparsely(self.centred(x), self.w_enc, self.b_enc, self.select)
        activations = self.pre_activations(x)
        return self.select(activations), activations

    def _sparse_gradient(self, x: Tensor) -> bool:
        # On a GPU the dense product is so fast that gathering rows gains nothing.
        return self.only_selects and torch.is_grad_enabled() and x.device.type == "cpu"

    def encode_dense(self, x: Float[Tensor, "tokens dim"]) -> Float[Tensor, "tokens width"]:
        """Codes of each token, one column per latent."""
        return self.encode(x).dense(self.width)

    def decode(self, codes: SparseCodes) -> Float[Tensor, "tokens dim"]:
        """`x̂ = Σ z_i W_dec[i] + b_dec`."""
        return decode(codes, self.w_dec) + self.b_dec

    def reconstruct(self, x: Float[Tensor, "tokens dim"]) -> Float[Tensor, "tokens dim"]:
        """x̂ of each token."""
        return self.decode(self.encode(x))

    def forward(self, x: Float[Tensor, "tokens dim"]) -> Float[Tensor, "tokens dim"]:
        """x̂ of each token."""
        return self.reconstruct(x)

    def loss(self, x: Float[Tensor, "tokens dim"], objective: Objective = Objective()) -> TrainingLoss:  # noqa: B008
        """What training minimises: `Σ‖x − x̂‖² / V + α · L_aux`; a class may bring its own."""
        codes, activations = self.encode_fully(x)
        variance = token_variance(x) if objective.variance is None else objective.variance
        error, x_hat = self.reconstruction_loss(x, codes, variance)
        dead = objective.observe(codes)
        auxiliary = self.auxiliary_loss(x, x - x_hat, activations, dead, objective)
        total = error + objective.aux_coefficient * auxiliary
        return TrainingLoss(total, x_hat, codes, activations, {"auxiliary": auxiliary.detach()})

    def reconstruction_loss(
        self, x: Float[Tensor, "tokens dim"], codes: SparseCodes, variance: Tensor
    ) -> tuple[Float[Tensor, ""], Float[Tensor, "tokens dim"]]:
        """`Σ‖x − x̂‖² / V`, and x̂."""
        x_hat = self.decode(codes)
        return reconstruction_loss(x, x_hat, variance), x_hat

    def auxiliary_loss(
        self, x: Tensor, error: Tensor, activations: Tensor, dead: Bool[Tensor, "width"], objective: Objective
    ) -> Float[Tensor, ""]:
        """AuxK of these tokens, see `auxk_loss`; its gradient is that of the `k_aux` strongest dead latents."""
        latents, k_aux = dead.nonzero().flatten(), objective.k_aux or max(1, self.dim // 2)
        if not objective.aux_coefficient or not len(latents):
            return error.new_zeros(())
        select, ours = partial(strongest, k=k_aux), activations.index_select(1, latents)
        if self._sparse_gradient(x):
            # What is known carries no gradient; dead rows are to get one, by a call on them alone.
            rows, bias = self.w_enc.index_select(0, latents), self.b_enc.index_select(0, latents)
            codes, _ = encode_sparsely(self.centred(x), rows, bias, select, known=ours)
        else:
            codes = select(ours)
        return auxk_loss(error, codes, self.w_dec.index_select(0, latents), k_aux=k_aux)

    def update_statistics(self, codes: SparseCodes) -> None:
        """Learn from one training batch what is not learnt by gradient; nothing by default."""

    @torch.no_grad()
    def fold_input_scale(self, scale: float) -> None:
        """Turn an SAE of `scale · x` into the same SAE of `x`, whose codes and output are smaller by `scale`.

        Only biases (and thresholds) are divided: ReLU and TopK are positively homogeneous.
        """
        self.b_enc.div_(scale)
        self.b_dec.div_(scale)

    @torch.no_grad()
    def remove_parallel_gradient(self) -> None:
        """Drop the part of each unit-norm decoder row's gradient along the row, which renormalisation would undo."""
        gradient = self.w_dec.grad
        if gradient is not None:
            along = torch.einsum("md,md->m", gradient, self.w_dec)
            gradient.addcmul_(self.w_dec, along[:, None], value=-1)

    @torch.no_grad()
    def normalise_decoder(self) -> None:
        """Give every decoder row unit norm."""
        self.w_dec.div_(self.w_dec.norm(dim=1, keepdim=True).clamp_min_(1e-12))

    def tokens_of_map(self, h: Float[Tensor, "images channels height width"]) -> Float[Tensor, "tokens dim"]:
        """The map's tokens: image-major, then row-major over positions; one per image for `token="map"`.

        Raises:
            ValueError: the map's channels or positions are not those of this SAE.
        """
        positions = h.shape[2] * h.shape[3]
        if h.shape[1] != self.channels or (self.token == "map" and positions != self.positions):
            raise ValueError(
                f"this SAE reads {self.channels} channels at {self.positions or 'any number of'} positions, got a map "
                f"of {h.shape[1]} channels at {positions}; use the SAE of this site."
            )
        return h.flatten(1) if self.token == "map" else h.permute(0, 2, 3, 1).flatten(0, 2)

    def map_of_tokens(self, tokens: Float[Tensor, "tokens dim"], like: Tensor) -> Tensor:
        """Tokens back as a map of the shape of `like` [n, channels, H, W]: the inverse of `tokens_of_map`."""
        images, channels, height, width = like.shape
        if self.token == "map":
            return tokens.reshape(like.shape)
        return tokens.reshape(images, height, width, channels).permute(0, 3, 1, 2)

    def codes_of_map(self, h: Tensor) -> Tensor:
        """Dense codes of maps [n, channels, H, W]: [n, width, H, W], or [n, width, 1, 1] for `token="map"`."""
        return self._codes_as_map(self.encode_dense(self.tokens_of_map(h)), h)

    def codes_of_latents(self, h: Tensor, latents: Tensor) -> Tensor:
        """`codes_of_map(h)[:, latents]` without its full-width map: [n, L, H, W]; `latents` [L] must be distinct."""
        assert len(set(latents.tolist())) == len(latents), latents
        codes = self.encode(self.tokens_of_map(h))
        # All other latents share one more column, which is cut off.
        slot = torch.full((self.width,), len(latents), device=h.device)
        slot[latents] = torch.arange(len(latents), device=h.device)
        chosen = SparseCodes(codes.values, slot[codes.indices]).dense(len(latents) + 1)
        return self._codes_as_map(chosen[:, : len(latents)], h)

    def _codes_as_map(self, codes: Tensor, like: Tensor) -> Tensor:
        height, width = (1, 1) if self.token == "map" else like.shape[2:]
        return codes.reshape(len(like), height, width, codes.shape[1]).permute(0, 3, 1, 2)

    def reconstruct_map(self, h: Tensor) -> Tensor:
        """x̂ of maps [n, channels, H, W], in the dtype of `h`."""
        return self.map_of_tokens(self.reconstruct(self.tokens_of_map(h)), h).to(h.dtype)

    def add_to_map(self, h: Tensor, delta: Tensor, latents: Tensor | None = None) -> Tensor:
        """`h + W_decᵀ Δz` without bias; an image whose Δz is zero everywhere comes back bit-exactly.

        Args:
            h: maps [n, channels, H, W].
            delta: Δz [n, L, H, W], or [n, L, 1, 1] for `token="map"`.
            latents: which latents [L] the channels of `delta` are; all of them, in order, if None.
        """
        rows = self.w_dec if latents is None else self.w_dec[latents]
        assert delta.shape[:2] == (len(h), len(rows)), (delta.shape, h.shape, rows.shape)
        # In the SAE's precision, rounded to that of h once.
        written = delta.to(rows.dtype).permute(0, 2, 3, 1).flatten(0, 2) @ rows
        edited = (h.to(rows.dtype) + self.map_of_tokens(written, h)).to(h.dtype)
        # Adding zero would already lose the sign of -0.0, so untouched images are passed through.
        touched = (delta != 0).flatten(1).any(1)
        return torch.where(touched[:, None, None, None], edited, h)


WEIGHTS, SPEC = "sae.safetensors", "spec.json"
"""The weights, for raw activations; and what the SAE is and what made it."""


def save_sae(sae: SparseAutoencoder, folder: Path, *, spec: Mapping[str, Any]) -> None:
    """Write an SAE whose input scale is folded in, with `spec`: where its training tokens came from, plain JSON values.

    Raises:
        ValueError: the folder already holds an SAE.
    """
    assert "autoencoder" not in spec, spec
    if (folder / WEIGHTS).exists():
        raise ValueError(f"{folder} already holds an SAE; choose another folder or delete this one.")
    folder.mkdir(parents=True, exist_ok=True)
    # As bytes, so that the hash is that of what is written: safetensors notices no flipped bit, and its `save_file`
    # makes files that their owner alone can read.
    weights = save({name: tensor.detach().cpu().contiguous() for name, tensor in sae.state_dict().items()})
    described = {
        "class": f"{type(sae).__module__}.{type(sae).__qualname__}",
        "settings": sae.settings(),
        "sha256": hashlib.sha256(weights).hexdigest(),
    }
    # The weights come last: where they are, everything is.
    _write(folder / SPEC, json.dumps({"autoencoder": described, **spec}, indent=2).encode())
    _write(folder / WEIGHTS, weights)


def load_sae(folder: Path) -> SparseAutoencoder:
    """The SAE of a folder, bit-identical to the one saved, on the CPU and in evaluation mode.

    Raises:
        ValueError: the folder holds no SAE, its weights are not those written or not finite, or its class is of a package
            that is not let in.
    """
    if not (folder / WEIGHTS).is_file() or not (folder / SPEC).is_file():
        raise ValueError(f"{folder} holds no SAE ({WEIGHTS} and {SPEC}); train one with task=sae.")
    described = read_spec(folder)["autoencoder"]
    # Read once: what is hashed is what is loaded.
    weights = (folder / WEIGHTS).read_bytes()
    if hashlib.sha256(weights).hexdigest() != described["sha256"]:
        raise ValueError(f"{folder / WEIGHTS} differs from what was written (sha256); copy or train it again.")
    kind: type[SparseAutoencoder] = saved_class(described["class"], SparseAutoencoder)  # type: ignore[type-abstract]
    with torch.device("meta"):  # no random numbers are drawn for weights that are replaced at once
        sae = kind(**described["settings"])
    tensors = load(weights)
    broken = [name for name, tensor in tensors.items() if not tensor.isfinite().all()]
    if broken:
        raise ValueError(f"{folder / WEIGHTS} holds NaN or infinity in {', '.join(broken)}; train the SAE again.")
    # Assigned, since tensors on the meta device have nothing to copy into.
    sae.load_state_dict(tensors, assign=True)
    return sae.eval()


def read_spec(folder: Path) -> dict[str, Any]:
    """What was written with the SAE of a folder."""
    spec: dict[str, Any] = json.loads((folder / SPEC).read_text())
    return spec


def _write(path: Path, content: bytes) -> None:
    """Write a file that is either whole or absent."""
    part = path.with_name(path.name + ".part")
    part.write_bytes(content)
    part.replace(path)
