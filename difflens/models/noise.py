"""Noise that belongs to one image: streams derived by hashing, so that no two images or seeds overlap."""

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor


def image_generator(base_seed: int, image_id: int) -> torch.Generator:
    """The random stream of one image, a function of (base seed, image id) alone; lives on the CPU on every machine."""
    digest = hashlib.sha256(f"{base_seed}:{image_id}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def normal(generators: Sequence[torch.Generator], shape: Sequence[int], *, device: torch.device) -> Tensor:
    """Standard normal noise [len(generators), *shape] (float32), each row drawn from its own stream."""
    rows = [torch.randn(tuple(shape), generator=generator) for generator in generators]
    return torch.stack(rows).to(device)
