"""Token batches mixed across images and steps, from shards on disk or from a model that is sampling."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from difflens.data.activations import ActivationStore, as_tokens
from difflens.models.model import DiffusionModel
from difflens.vocabulary import GenerationPlan, Site

Tokenise = Callable[[Tensor], Tensor]

SAMPLE_BYTES = 2**29
"""What the sample that statistics are taken from may hold in float32; in float64 they take up to seven times as much."""

REFILL = 2.5
"""How many times its own size a buffer takes while it is refilled: the old one, what is new, and both mixed."""


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

    `tokenise` cuts maps [n, D, H, W] into tokens: one per position unless the SAE cuts them otherwise.
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
            # Shards and steps in one order: an SAE must train on tokens mixed across both (METHOD section 1).
            for index in torch.randperm(len(self._rows) * self.store.steps, generator=generator).tolist():
                shard, step = divmod(index, self.store.steps)
                # A shard may hold validation images alone.
                if len(self._rows[shard]):
                    tokens = self.tokenise(self.store.shard_at(shard, step)[self._rows[shard]])
                    yield TokenBatch(tokens, torch.full((len(tokens),), step))


class BufferSizes(NamedTuple):
    """What mixing takes of main memory.

    Attributes:
        capacity: tokens in the buffer.
        buffer: their bytes, in half precision as models record them.
        refilling: bytes while it is refilled.
        sample: tokens whose statistics are taken before the training.
        sample_bytes: theirs in float32.
    """

    capacity: int
    buffer: int
    refilling: int
    sample: int
    sample_bytes: int

    def describe(self) -> str:
        """In words, for a log."""
        return (
            f"the mixing buffer holds {self.capacity:,} tokens, {in_gb(self.buffer)}, and takes {in_gb(self.refilling)} "
            f"while it is refilled; statistics are those of {self.sample:,} tokens, {in_gb(self.sample_bytes)}"
        )


def buffer_sizes(tokens: int, *, batch: int, dim: int) -> BufferSizes:
    """The sizes of a buffer of so many tokens of `dim` values, at least two batches.

    The sample for statistics is half a buffer, but no more than `SAMPLE_BYTES` hold.
    """
    capacity = max(tokens, 2 * batch)
    # At most half: `mixed_batches`, which draws the sample, asks for room for two batches.
    buffer, sample = 2 * dim * capacity, max(1, min(capacity // 2, SAMPLE_BYTES // (4 * dim)))
    return BufferSizes(capacity, buffer, round(REFILL * buffer), sample, 4 * dim * sample)


def in_gb(size: int) -> str:
    """Bytes in GB."""
    return f"{size / 1e9:,.1f} GB"


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
                # In random order: a refill that ends within a micro-batch then favours no part of the trajectory.
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
        # Not below half: batches drawn from a nearly empty buffer would be of few images and steps.
        if used + batch > max(len(tokens) - capacity // 2, 0):
            # What is left is mixed in again, so that no token is lost.
            kept, size = [TokenBatch(tokens[used:], steps[used:])] if used < len(tokens) else [], len(tokens) - used
            while size < capacity:
                kept.append(next(chunks))
                size += len(kept[-1].tokens)
            tokens, steps = _in_order(kept, torch.randperm(size, generator=generator))
            used = 0
        # Widened batch by batch: the buffer keeps the half precision of the recording, and half the memory.
        yield TokenBatch(tokens[used : used + batch].float(), steps[used : used + batch])
        used += batch


def _in_order(chunks: list[TokenBatch], order: Tensor) -> TokenBatch:
    """All tokens of the chunks in this order, without a copy in the old one."""
    # Where each row goes: `torch.cat(chunks)[order]` would hold all tokens once more.
    places = torch.empty_like(order)
    places[order] = torch.arange(len(order))
    tokens = chunks[0].tokens.new_empty(len(order), chunks[0].tokens.shape[1])
    steps = torch.empty_like(order)
    for chunk, rows in zip(chunks, places.split([len(chunk.tokens) for chunk in chunks]), strict=True):
        tokens[rows], steps[rows] = chunk.tokens, chunk.steps
    return TokenBatch(tokens, steps)
