import lightning
import pytest
import torch

from difflens.models.unconditional import UnconditionalModel
from difflens.training.steering_module import MicroBatches, generate, in_order
from difflens.types import GenerationPlan


def trainer() -> lightning.Trainer:
    return lightning.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False)


def test_images_come_in_the_order_of_the_plan(model: UnconditionalModel) -> None:
    ids = torch.tensor([7, 3, 9, 1, 0, 12])
    images = generate(trainer(), model, GenerationPlan(0, ids))
    assert images.dtype == torch.uint8 and images.shape == (6, 3, 8, 8)
    again = generate(trainer(), model, GenerationPlan(0, ids.sort().values))
    assert torch.equal(again[ids.argsort().argsort()], images)


def test_an_item_is_a_whole_micro_batch(model: UnconditionalModel) -> None:
    targets = torch.arange(10)
    items = list(MicroBatches(GenerationPlan(0, torch.arange(10) + 5, targets), 4))
    assert [item.image_ids.tolist() for item in items] == [[5, 6, 7, 8], [9, 10, 11, 12], [13, 14]]
    assert items[2].targets is not None and items[2].targets.tolist() == [8, 9]


def test_a_micro_batch_made_by_two_ranks_counts_once() -> None:
    one = (torch.tensor([0, 1]), torch.tensor([0, 255], dtype=torch.uint8)[:, None, None, None].expand(2, 3, 2, 2))
    two = (torch.tensor([2, 0]), torch.tensor([51, 0], dtype=torch.uint8)[:, None, None, None].expand(2, 3, 2, 2))
    images = in_order(torch.tensor([2, 1, 0]), [one, two, one])
    assert images[:, 0, 0, 0].tolist() == [51, 255, 0]


def test_a_repeated_id_is_refused_and_an_empty_plan_is_not(model: UnconditionalModel) -> None:
    with pytest.raises(ValueError, match="repeat"):
        generate(trainer(), model, GenerationPlan(0, torch.tensor([1, 1])))
    assert len(generate(trainer(), model, GenerationPlan(0, torch.zeros(0, dtype=torch.int64)))) == 0
