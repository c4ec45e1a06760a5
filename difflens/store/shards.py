"""Shards of a long stage: each is complete on disk or not there, so that an interrupted stage goes on from them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from difflens.store.files import FILES, TEMPORARY, publish, sha256_of, write_text

if TYPE_CHECKING:
    from torch import Tensor

SUFFIX = ".safetensors"


def hash_path(shard: Path) -> Path:
    """Where a shard's SHA-256 lies; it is written last, so its presence says that the shard is complete."""
    return shard.with_name(f"{shard.name}.sha256")


def write_shard(folder: Path, name: str, tensors: Mapping[str, Tensor]) -> Path:
    """Write tensors as `<name>.safetensors` and its SHA-256 next to it; a crash leaves no shard that looks finished."""
    # Imported by need: the store is also used where torch is not.
    from safetensors.torch import save_file

    shard = folder / f"{name}{SUFFIX}"
    shard.parent.mkdir(parents=True, exist_ok=True)
    # The sign of completeness goes first and comes last, so that no crash leaves it beside other bytes.
    hash_path(shard).unlink(missing_ok=True)
    temporary = shard.with_name(f".{shard.name}{TEMPORARY}")
    try:
        # safetensors refuses views, such as transposed tensors.
        save_file({key: value.detach().contiguous() for key, value in tensors.items()}, temporary)
        digest = sha256_of(temporary)
        publish(temporary, shard)
    finally:
        temporary.unlink(missing_ok=True)
    write_text(hash_path(shard), digest + "\n")
    return shard


def read_shard(folder: Path, name: str) -> dict[str, Tensor]:
    """The tensors of one shard."""
    from safetensors.torch import load_file

    return load_file(folder / f"{name}{SUFFIX}")


def is_finished(folder: Path, name: str) -> bool:
    """Whether a shard is complete and its bytes are those that were written."""
    shard = folder / f"{name}{SUFFIX}"
    if not shard.is_file() or not hash_path(shard).is_file():
        return False
    # Hashed again, for safetensors loads a flipped bit without a word.
    return hash_path(shard).read_bytes().strip() == sha256_of(shard).encode()


def shards_of(folder: Path) -> list[Path]:
    """The shards of a folder in the order of their names: of a finished artifact those that it lists and no stray file."""
    listed = folder / FILES
    there = json.loads(listed.read_bytes()) if listed.is_file() else [path.name for path in folder.glob("*")]
    return sorted(folder / name for name in there if name.startswith("shard-") and name.endswith(SUFFIX))
