from pathlib import Path

import pytest
import torch
from torch import Tensor

from difflens.data.sampled import Shards, as_bytes, in_order
from difflens.models.base import Generated
from difflens.vocabulary import Site


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
