from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import lightning
import pytest
import torch
from tiny_pipeline import Shift

from difflens.data.activations import ActivationStore
from difflens.data.sampled import Shards
from difflens.models.base import Batch
from difflens.models.model import DiffusionModel
from difflens.training.steering_module import generate, micro_batches, sample
from difflens.vocabulary import GenerationPlan, Site


def trainer() -> lightning.Trainer:
    return lightning.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False)


def test_images_come_in_the_order_of_the_plan(model: DiffusionModel) -> None:
    ids = torch.tensor([7, 3, 9, 1, 0, 12])
    images = generate(trainer(), model, GenerationPlan(0, ids))
    assert images.dtype == torch.uint8 and images.shape == (6, 3, 8, 8)
    again = generate(trainer(), model, GenerationPlan(0, ids.sort().values))
    assert torch.equal(again[ids.argsort().argsort()], images)


def test_an_item_is_a_whole_micro_batch() -> None:
    plan = GenerationPlan(0, torch.arange(10) + 5, torch.arange(10))
    items = micro_batches(plan, 4, at_least=1)
    assert [item.number for item in items] == [0, 1, 2] and items[2].plan.targets.tolist() == [8, 9]
    assert [item.plan.image_ids.tolist() for item in items] == [[5, 6, 7, 8], [9, 10, 11, 12], [13, 14]]
    assert [len(item.plan.image_ids) for item in micro_batches(plan, 8, at_least=4)] == [8, 2, 0, 0]


def test_what_is_there_is_not_sampled_again(model: DiffusionModel, tmp_path: Path) -> None:
    plan, shards = GenerationPlan(1, torch.arange(10)), Shards(tmp_path, Site())
    sample(trainer(), model, plan, shards, record=Site())
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert torch.equal(shards.images(plan.image_ids), generate(trainer(), model, plan))
    assert ActivationStore(tmp_path).sizes == [4, 4, 2]
    (tmp_path / "shard-00001.safetensors").unlink()
    made, whole = [], model.sample
    model.sample = lambda part, **named: made.append(part.image_ids.tolist()) or whole(part, **named)  # type: ignore[method-assign]
    sample(trainer(), model, plan, shards, record=Site())
    assert made == [[4, 5, 6, 7]]
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_repeated_id_is_refused_and_an_empty_plan_is_not(model: DiffusionModel) -> None:
    with pytest.raises(ValueError, match="repeat"):
        generate(trainer(), model, GenerationPlan(0, torch.tensor([1, 1])))
    assert len(generate(trainer(), model, GenerationPlan(0, torch.zeros(0, dtype=torch.int64)))) == 0


def test_the_cost_of_a_micro_batch_is_counted(model: DiffusionModel, tmp_path: Path) -> None:
    plan = GenerationPlan(1, torch.arange(6), torch.zeros(6, dtype=torch.int64))
    plain, edited, none = (Shards(tmp_path / name) for name in ("plain", "edited", "none"))
    sample(trainer(), model, plan, plain)
    sample(trainer(), model, plan, edited, edit=Shift(1.0, update="asymmetric"))
    assert none.flops is None and plain.flops and edited.flops
    assert 1.1 < edited.flops / plain.flops < 2
    assert torch.equal(plain.images(plan.image_ids), generate(trainer(), model, plan))


class FirstTwice:
    """Draws the first micro-batch of every plan again."""

    uneven = True

    @contextmanager
    def attach(self, model: DiffusionModel, batch: Batch) -> Iterator[None]:
        if int(batch.images.target[0]):
            model.make(batch)
        yield


def test_the_cost_is_that_of_all_micro_batches_where_they_differ(model: DiffusionModel, tmp_path: Path) -> None:
    plan = GenerationPlan(1, torch.arange(16), (torch.arange(16) < 4).long())
    plain, again = (Shards(tmp_path / name) for name in ("plain", "again"))
    sample(trainer(), model, plan, plain)
    sample(trainer(), model, plan, again, edit=FirstTwice())
    assert plain.flops and again.flops
    assert again.flops / plain.flops == pytest.approx(1.25)
