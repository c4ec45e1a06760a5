"""Generation with or without an edit as a LightningModule, so that it spreads over devices through `Trainer.predict`."""

from collections.abc import Sequence

import lightning
import torch
from jaxtyping import Int
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from difflens.models.base import DiffusionModel, Edit, Generated
from difflens.types import GenerationPlan

Numbered = list[tuple[Tensor, Tensor]]
"""Batches of ids [n] and images, uint8 [n, 3, H, W]."""


class SteeringModule(lightning.LightningModule):
    """`Trainer.predict` over micro-batches of a plan; the images carry their ids, so the order does not matter."""

    def __init__(self, model: DiffusionModel, edit: Edit | None = None) -> None:
        super().__init__()
        self.model, self.edit = model, edit

    def transfer_batch_to_device(
        self, batch: GenerationPlan, device: torch.device, dataloader_idx: int
    ) -> GenerationPlan:
        """A plan stays where it is; the model moves its noise itself."""
        return batch

    def predict_step(self, batch: GenerationPlan, batch_idx: int) -> Generated:
        """Sample one micro-batch."""
        (generated,) = self.model.sample(batch, edit=self.edit)
        return generated


class MicroBatches(Dataset[GenerationPlan]):
    """A plan cut into micro-batches: one item is one whole micro-batch, so that no rank ever splits one.

    Where there are fewer than `at_least`, the number of ranks, the first come again: Lightning wants work for every rank.
    """

    def __init__(self, plan: GenerationPlan, size: int, *, at_least: int = 1) -> None:
        self.plan, self.size, self.at_least = plan, size, at_least
        self.distinct = -(-len(plan.image_ids) // size)

    def __len__(self) -> int:
        return max(self.distinct, self.at_least)

    def __getitem__(self, index: int) -> GenerationPlan:
        if index >= len(self):
            raise IndexError(index)
        start = index % self.distinct * self.size
        return self.plan.part(start, start + self.size)


def generate(
    trainer: lightning.Trainer, model: DiffusionModel, plan: GenerationPlan, *, edit: Edit | None = None
) -> Tensor:
    """The plan's images, uint8 [N, 3, H, W], in the order of its ids.

    Raises:
        ValueError: the plan repeats an id.
    """
    if len(plan.image_ids.unique()) != len(plan.image_ids):
        raise ValueError("a generation plan must not repeat an image id.")
    if not len(plan.image_ids):
        return torch.empty(0, dtype=torch.uint8)
    loader = DataLoader(MicroBatches(plan, model.micro_batch, at_least=trainer.world_size), batch_size=None)
    batches: Sequence[Generated] = trainer.predict(SteeringModule(model, edit), loader) or []  # type: ignore[assignment]
    made = [(batch.image_ids, (batch.images * 255).round().byte()) for batch in batches]
    return in_order(plan.image_ids, _of_all_ranks(made) if trainer.world_size > 1 else made)


def _of_all_ranks(made: Numbered) -> Numbered:
    """What every rank made, on every rank."""
    parts: list[Numbered] = [[] for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather_object(parts, made)
    return [batch for part in parts for batch in part]


def in_order(image_ids: Int[Tensor, "images"], made: Numbered) -> Tensor:
    """Images of the batches by id; a micro-batch that two ranks both made counts once."""
    position = {int(image_id): row for row, image_id in enumerate(torch.cat([ids for ids, _ in made]))}
    images = torch.cat([images for _, images in made])
    return images[[position[int(image_id)] for image_id in image_ids]]
