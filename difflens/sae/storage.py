"""A saved SAE: `sae.safetensors`, for raw activations, and `spec.json`: what it is and what made it."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save

from difflens.sae.base import SparseAutoencoder
from difflens.store.targets import saved_class

WEIGHTS, SPEC = "sae.safetensors", "spec.json"


def save_sae(sae: SparseAutoencoder, folder: Path, *, spec: Mapping[str, Any]) -> None:
    """Write an SAE whose input scale is folded in, with `spec`: where its training tokens came from.

    Args:
        sae: the SAE.
        folder: created if missing.
        spec: plain JSON values; the key `autoencoder` is this function's own.

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
