"""Shards of a long stage: each is complete on disk or not there, so that an interrupted stage goes on from them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from difflens.store.files import TEMPORARY, publish, sha256_of, write_text

if TYPE_CHECKING:
    from torch import Tensor

SUFFIX = ".safetensors"


def shard_path(folder: Path, name: str) -> Path:
    """Where a shard lies."""
    return folder / f"{name}{SUFFIX}"


def hash_path(shard: Path) -> Path:
    """Where a shard's SHA-256 lies; it is written last, so its presence says that the shard is complete."""
    return shard.with_name(f"{shard.name}.sha256")


def write_shard(
    folder: Path, name: str, tensors: Mapping[str, Tensor], *, metadata: Mapping[str, str] | None = None
) -> Path:
    """Write tensors as `<name>.safetensors` and its SHA-256 next to it; a crash leaves no shard that looks finished."""
    from safetensors.torch import save_file

    shard = shard_path(folder, name)
    shard.parent.mkdir(parents=True, exist_ok=True)
    hash_path(shard).unlink(missing_ok=True)
    temporary = shard.with_name(f".{shard.name}{TEMPORARY}")
    try:
        dense = {key: value.detach().contiguous() for key, value in tensors.items()}
        save_file(dense, temporary, metadata=dict(metadata or {}))
        digest = sha256_of(temporary)
        publish(temporary, shard)
    finally:
        temporary.unlink(missing_ok=True)
    write_text(hash_path(shard), digest + "\n")
    return shard


def read_shard(folder: Path, name: str) -> dict[str, Tensor]:
    """The tensors of one shard."""
    from safetensors.torch import load_file

    return load_file(shard_path(folder, name))


def is_finished(folder: Path, name: str) -> bool:
    """Whether a shard is complete and its bytes are those that were written."""
    shard = shard_path(folder, name)
    if not shard.is_file() or not hash_path(shard).is_file():
        return False
    return hash_path(shard).read_text().strip() == sha256_of(shard)


def finished_shards(folder: Path) -> list[str]:
    """Names of the complete shards of a folder, sorted; damaged and half-written ones are left out."""
    names = sorted(path.name.removesuffix(SUFFIX) for path in folder.glob(f"[!.]*{SUFFIX}"))
    return [name for name in names if is_finished(folder, name)]
