"""What a model sampled is kept in shards, and comes back by step, by image, or as mixed tokens."""

from collections import Counter
from itertools import islice
from pathlib import Path

import pytest
import torch
from torch import Tensor

from difflens.data.activations import ActivationStore, as_tokens, expected_bytes, split_by_image
from difflens.data.mixing import SAMPLE_BYTES, OnlineTokens, StoredTokens, TokenBatch, buffer_sizes, mixed_batches
from difflens.data.sampled import Shards, as_bytes, in_order
from difflens.models.base import Generated
from difflens.models.model import DiffusionModel
from difflens.vocabulary import GenerationPlan, Site

PLAN = GenerationPlan(1, torch.arange(10))


@pytest.fixture
def store(model: DiffusionModel, tmp_path: Path) -> ActivationStore:
    shards = Shards(tmp_path, Site())
    for number, batch in enumerate(model.sample(PLAN, record=Site())):
        shards.keep(number, batch)
    return ActivationStore(tmp_path)


def test_the_store_gives_back_what_the_model_recorded(model: DiffusionModel, store: ActivationStore) -> None:
    batches = list(model.sample(PLAN, record=Site()))
    recorded = torch.cat([batch.activations for batch in batches if batch.activations is not None])
    assert store.image_ids.tolist() == list(range(10))
    for step in range(5):
        assert torch.equal(store.at_step(step), recorded[:, step])
    images = torch.cat([batch.images for batch in batches])
    assert torch.equal(store.images, (images * 255).round().byte())
    size = sum(store.at_step(step).nbytes for step in range(5))
    assert size == expected_bytes(model, Site(), 10)


def test_an_empty_folder_names_the_task_that_fills_it(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="task=activations"):
        ActivationStore(tmp_path)


def test_tokens_are_the_vectors_at_each_position() -> None:
    maps = torch.arange(2 * 3 * 2 * 2).reshape(2, 3, 2, 2).float()
    tokens = as_tokens(maps)
    assert tokens.shape == (8, 3)
    assert torch.equal(tokens[5], maps[1, :, 0, 1])


def test_the_split_is_by_image_and_complete() -> None:
    training, validation = split_by_image(100, 0.1, seed=3)
    assert len(validation) == 10
    assert sorted([*training, *validation]) == list(range(100))
    assert (training, validation) == split_by_image(100, 0.1, seed=3)


class Numbered:
    """Chunks of 40 tokens that carry their chunk's number."""

    def chunks(self, *, seed: int):  # type: ignore[no-untyped-def]
        number = 0
        while True:
            yield TokenBatch(torch.full((40, 2), float(number)), torch.full((40,), number % 7))
            number += 1


def test_batches_mix_many_chunks_and_lose_no_token() -> None:
    batches = list(mixed_batches(Numbered(), batch=50, batches=60, capacity=1000, seed=0))
    assert min(len(batch.tokens[:, 0].unique()) for batch in batches) > 10
    counts = Counter(int(number) for batch in batches for number in batch.tokens[:, 0])
    assert max(counts.values()) <= 40
    assert sum(count == 40 for count in counts.values()) > 10
    for batch in batches:
        assert torch.equal(batch.tokens[:, 0].long() % 7, batch.steps)


def test_the_order_of_a_buffer_is_one_random_permutation_of_its_chunks() -> None:
    batches = list(mixed_batches(Numbered(), batch=50, batches=3, capacity=200, seed=4))
    chunks = list(islice(Numbered().chunks(seed=4), 5))
    order = torch.randperm(200, generator=torch.Generator().manual_seed(4))
    whole = torch.cat([chunk.tokens for chunk in chunks])[order]
    assert torch.equal(torch.cat([batch.tokens for batch in batches[:2]]), whole[:100])
    assert torch.equal(batches[0].steps, torch.cat([chunk.steps for chunk in chunks])[order][:50])


def test_the_sample_for_statistics_is_bounded_by_bytes() -> None:
    small = buffer_sizes(262_144, batch=4096, dim=512)
    assert (small.sample, small.sample_bytes) == (131_072, 2**28)
    large = buffer_sizes(262_144, batch=4096, dim=81_920)
    assert large.sample == 1638 and large.sample_bytes <= SAMPLE_BYTES
    assert large.buffer == 262_144 * 81_920 * 2 and large.refilling == 2.5 * large.buffer
    assert buffer_sizes(100, batch=4096, dim=8).capacity == 8192
    assert "262,144 of them (40.0 GiB; 100.0 GiB while it is refilled)" in large.describe()


def test_the_stream_can_be_entered_in_the_middle(store: ActivationStore) -> None:
    settings = {"batch": 16, "batches": 12, "capacity": 64, "seed": 5}
    source = StoredTokens(store, [0, 1, 2, 5, 9])
    whole = list(mixed_batches(source, **settings))
    for a, b in zip(whole[7:], islice(mixed_batches(source, **settings), 7, None), strict=True):
        assert torch.equal(a.tokens, b.tokens) and torch.equal(a.steps, b.steps)


def test_stored_tokens_come_from_the_chosen_images_only(store: ActivationStore) -> None:
    chosen = [1, 8]
    allowed = {tuple(token) for step in range(5) for token in as_tokens(store.at_step(step)[chosen]).tolist()}
    epoch = list(islice(StoredTokens(store, chosen).chunks(seed=0), 10))
    assert {tuple(token) for chunk in epoch for token in chunk.tokens.tolist()} == allowed


def test_online_tokens_are_new_images_of_the_same_model(model: DiffusionModel, store: ActivationStore) -> None:
    chunks = list(islice(OnlineTokens(model, Site(), base_seed=1).chunks(seed=0), 5))
    assert sorted(int(chunk.steps[0]) for chunk in chunks) == [0, 1, 2, 3, 4]
    for chunk in chunks:
        assert torch.equal(chunk.tokens, as_tokens(store.shard_at(0, int(chunk.steps[0]))))


def test_a_buffer_smaller_than_two_batches_is_refused() -> None:
    with pytest.raises(ValueError, match="two batches"):
        next(mixed_batches(Numbered(), batch=50, batches=1, capacity=99, seed=0))


def batch(*ids: int, activation: float = 0.0) -> Generated:
    """Images as grey as their ids say."""
    grey = torch.tensor(ids)[:, None, None, None] / 255
    return Generated(torch.tensor(ids), grey.expand(-1, 3, 2, 2), torch.full((len(ids), 1, 1, 1, 1), activation))


def greys(images: Tensor) -> list[int]:
    assert images.dtype == torch.uint8 and images.shape[1:] == (3, 2, 2)
    return images[:, 0, 0, 0].tolist()


def test_images_come_back_in_any_order_and_in_place_of_others(tmp_path: Path) -> None:
    shards = Shards(tmp_path)
    shards.keep(1, batch(4))
    shards.keep(0, batch(9, 2))
    assert [shards.holds(number) for number in range(3)] == [True, True, False]
    assert greys(shards.images(torch.tensor([2, 4, 9]))) == [2, 4, 9]
    older = torch.full((5, 3, 2, 2), 100, dtype=torch.uint8)
    assert greys(shards.replaced(older, torch.tensor([1, 2, 3, 4, 9]))) == [100, 2, 100, 4, 9]
    assert greys(older) == [100] * 5


def test_no_shards_are_no_images(tmp_path: Path) -> None:
    shards, older = Shards(tmp_path / "none"), as_bytes(batch(1, 2).images)
    assert len(shards.images(torch.zeros(0, dtype=torch.int64))) == 0
    assert torch.equal(shards.replaced(older, torch.tensor([1, 2])), older)


def test_a_damaged_shard_is_not_held(tmp_path: Path) -> None:
    shards = Shards(tmp_path)
    shards.keep(0, batch(1))
    path = tmp_path / "shard-00000.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert not shards.holds(0)


def test_images_that_were_not_sampled_are_missed() -> None:
    with pytest.raises(AssertionError, match="1 of 2 images"):
        in_order(torch.tensor([1, 2]), [(torch.tensor([2]), as_bytes(batch(2).images))])


def test_activations_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    shards = Shards(tmp_path, Site())
    with pytest.raises(ValueError, match="'mid_block' are not finite"):
        shards.keep(0, batch(1, activation=float("nan")))
    assert not shards.holds(0)
