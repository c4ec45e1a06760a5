"""Token batches mixed across images and steps, from shards on disk or from a model that is sampling."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from difflens.data.activations import ActivationStore, as_tokens
from difflens.models.base import DiffusionModel
from difflens.types import GenerationPlan, Site

Tokenise = Callable[[Tensor], Tensor]


class TokenBatch(NamedTuple):
    """Tokens [B, D] (float32) and the denoising step each was recorded at [B]."""

    tokens: Float[Tensor, "batch channels"]
    steps: Int[Tensor, "batch"]


@runtime_checkable
class TokenSource(Protocol):
    """Where an SAE's training tokens come from."""

    def chunks(self, *, seed: int) -> Iterator[TokenBatch]:
        """Endless chunks of tokens, each from a few images at one step, in random order."""
        ...


class StoredTokens:
    """Tokens of the chosen images of a store on disk; a chunk is one shard at one step.

    Args:
        store: the activations.
        positions: which of its images.
        tokenise: maps [n, D, H, W] → tokens; one per position unless the SAE cuts them otherwise.
    """

    def __init__(self, store: ActivationStore, positions: list[int], *, tokenise: Tokenise = as_tokens) -> None:
        self.tokenise = tokenise
        chosen = torch.zeros(len(store), dtype=torch.bool)
        chosen[positions] = True
        self.store = store
        self._rows = [rows.nonzero()[:, 0] for rows in chosen.split(store.sizes)]

    def chunks(self, *, seed: int) -> Iterator[TokenBatch]:
        """See `TokenSource.chunks`; every epoch visits each (shard, step) once."""
        generator = torch.Generator().manual_seed(seed)
        while True:
            for index in torch.randperm(len(self._rows) * self.store.steps, generator=generator).tolist():
                shard, step = divmod(index, self.store.steps)
                if len(self._rows[shard]):
                    tokens = self.tokenise(self.store.shard_at(shard, step)[self._rows[shard]])
                    yield TokenBatch(tokens, torch.full((len(tokens),), step))


class OnlineTokens:
    """Tokens of images sampled on the fly, for models whose activations would not fit on disk."""

    def __init__(
        self,
        model: DiffusionModel,
        site: Site,
        *,
        base_seed: int,
        first_id: int = 0,
        prompts: Sequence[str] | None = None,
        tokenise: Tokenise = as_tokens,
    ) -> None:
        self.model, self.site, self.base_seed, self.first_id = model, site, base_seed, first_id
        self.prompts, self.tokenise = prompts, tokenise

    def chunks(self, *, seed: int) -> Iterator[TokenBatch]:
        """See `TokenSource.chunks`; every micro-batch holds images never seen before."""
        generator = torch.Generator().manual_seed(seed)
        first = self.first_id
        while True:
            ids = torch.arange(first, first + self.model.micro_batch)
            first += self.model.micro_batch
            texts = None if self.prompts is None else tuple(self.prompts[i % len(self.prompts)] for i in ids.tolist())
            for batch in self.model.sample(GenerationPlan(self.base_seed, ids, None, texts), record=self.site):
                assert batch.activations is not None
                for step in torch.randperm(self.model.steps, generator=generator).tolist():
                    tokens = self.tokenise(batch.activations[:, step])
                    yield TokenBatch(tokens, torch.full((len(tokens),), step))


def mixed_batches(source: TokenSource, *, batch: int, batches: int, capacity: int, seed: int) -> Iterator[TokenBatch]:
    """Batches of `batch` tokens drawn at random from a buffer of at least `capacity` tokens, refilled when half empty.

    The stream is a function of (source, seed) alone, so that a resumed training sees what an uninterrupted one sees.

    Raises:
        ValueError: the buffer is smaller than two batches.
    """
    if capacity < 2 * batch:
        raise ValueError(f"the mixing buffer must hold two batches of {batch} tokens or more, got {capacity}.")
    generator = torch.Generator().manual_seed(seed)
    chunks = source.chunks(seed=seed)
    tokens, steps = torch.empty(0), torch.empty(0, dtype=torch.int64)
    used = 0
    for _ in range(batches):
        if used + batch > max(len(tokens) - capacity // 2, 0):
            kept, size = [TokenBatch(tokens[used:], steps[used:])] if used < len(tokens) else [], len(tokens) - used
            while size < capacity:
                kept.append(next(chunks))
                size += len(kept[-1].tokens)
            order = torch.randperm(size, generator=generator)
            tokens = torch.cat([chunk.tokens for chunk in kept])[order]
            steps = torch.cat([chunk.steps for chunk in kept])[order]
            used = 0
        yield TokenBatch(tokens[used : used + batch].float(), steps[used : used + batch])
        used += batch
