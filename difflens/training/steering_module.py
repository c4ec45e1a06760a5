"""Sampling with or without an edit as a LightningModule, so that it spreads over devices through `Trainer.predict`."""

from contextlib import nullcontext
from typing import NamedTuple

import lightning
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode

from difflens.data.sampled import Shards, as_bytes, in_order
from difflens.models.base import Attachable, Edit, Generated
from difflens.models.model import DiffusionModel
from difflens.vocabulary import GenerationPlan, Site

Numbered = list[tuple[Tensor, Tensor]]
"""Batches of ids [n] and images, uint8 [n, 3, H, W]."""


class MicroBatch(NamedTuple):
    """The piece of a plan that is sampled at once, and which one it is."""

    number: int
    plan: GenerationPlan


class InMemory:
    """Keeps the images alone, with 8 bits, where `Shards` keep them on disk."""

    def __init__(self) -> None:
        self.made: Numbered = []

    def holds(self, number: int) -> bool:
        """Nothing was sampled before."""
        return False

    def keep(self, number: int, batch: Generated) -> None:
        """Append its images."""
        self.made.append((batch.image_ids, as_bytes(batch.images)))


class SteeringModule(lightning.LightningModule):
    """`Trainer.predict` over micro-batches of a plan; the images carry their ids, so the order does not matter."""

    def __init__(
        self,
        model: DiffusionModel,
        keeper: Shards | InMemory,
        *,
        edit: Attachable | Edit | None = None,
        record: Site | None = None,
    ) -> None:
        super().__init__()
        self.model, self.keeper, self.edit, self.record = model, keeper, edit, record

    def transfer_batch_to_device(self, batch: MicroBatch, device: torch.device, dataloader_idx: int) -> MicroBatch:
        """A plan stays where it is; the model moves its noise itself."""
        return batch

    def predict_step(self, batch: MicroBatch, batch_idx: int) -> None:
        """Sample one micro-batch and hand it over, unless that was done before."""
        if len(batch.plan.image_ids) and not self.keeper.holds(batch.number):
            # All micro-batches are of one size: the first one's cost is everyone's, unless it depends on the images.
            counted = batch.number == 0 or getattr(self.edit, "uneven", False)
            with FlopCounterMode(display=False) if counted else nullcontext() as counter:
                (generated,) = self.model.sample(batch.plan, record=self.record, method=self.edit)
            flops = None if counter is None else counter.get_total_flops()
            self.keeper.keep(batch.number, generated._replace(flops=flops))


def micro_batches(plan: GenerationPlan, size: int, *, at_least: int) -> list[MicroBatch]:
    """A plan cut into micro-batches, of which no rank ever splits one.

    Where there are fewer than `at_least`, the number of ranks, empty ones follow: Lightning wants an item for every rank.
    """
    count = max(-(-len(plan.image_ids) // size), at_least)
    return [MicroBatch(index, plan.part(index * size, (index + 1) * size)) for index in range(count)]


def sample(
    trainer: lightning.Trainer,
    model: DiffusionModel,
    plan: GenerationPlan,
    keeper: Shards | InMemory,
    *,
    edit: Attachable | Edit | None = None,
    record: Site | None = None,
) -> None:
    """Have the trainer's ranks sample what the keeper does not hold of a plan; returns when all of them are done.

    Raises:
        ValueError: the plan repeats an id.
    """
    # Images are put into order by their ids: one that came twice would overwrite itself.
    if len(plan.image_ids.unique()) != len(plan.image_ids):
        raise ValueError("a generation plan must not repeat an image id.")
    if not len(plan.image_ids):
        return
    items = micro_batches(plan, model.micro_batch, at_least=trainer.world_size)
    # An item is a whole micro-batch: nothing is to be collated.
    loader: DataLoader[MicroBatch] = DataLoader(items, batch_size=None)  # type: ignore[arg-type]
    module = SteeringModule(model, keeper, edit=edit, record=record)
    # The keeper has the images; Lightning would hold all of them once more until the end.
    trainer.predict(module, loader, return_predictions=False)
    # The caller reads next what other ranks may still be writing.
    trainer.strategy.barrier()


def generate(
    trainer: lightning.Trainer, model: DiffusionModel, plan: GenerationPlan, *, edit: Attachable | Edit | None = None
) -> Tensor:
    """The plan's images in memory, uint8 [N, 3, H, W], in the order of its ids (ValueError: the plan repeats an id)."""
    memory = InMemory()
    sample(trainer, model, plan, memory, edit=edit)
    # Of an empty plan nothing was sampled, so that there may be no group of processes to ask.
    if trainer.world_size == 1 or not len(plan.image_ids):
        return in_order(plan.image_ids, memory.made)
    parts: list[Numbered] = [[] for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather_object(parts, memory.made)
    return in_order(plan.image_ids, [batch for part in parts for batch in part])
