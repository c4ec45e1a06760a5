"""Two gloo processes on the CPU do what one does: the same images bit for bit, the same training."""

import multiprocessing
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from program import PRELOADED
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from difflens.models.unconditional import UnconditionalModel
from difflens.sae.topk import TopKAutoencoder
from difflens.training.sae_module import SaeModule
from difflens.training.steering_module import generate
from difflens.types import GenerationPlan, Site

UPDATES, BATCH = 30, 64


class Shift:
    """Adds the target to the bottleneck of every step."""

    site, update = Site(), "asymmetric"

    def active(self, step: int, steps: int) -> bool:
        return True

    def __call__(self, h: Tensor, step: int, targets: Tensor) -> Tensor:
        return h + targets[:, None, None, None]


class Stream(IterableDataset[list[Tensor]]):
    """The same batches of tokens and steps on every rank."""

    def __init__(self, tokens: Tensor, steps: Tensor) -> None:
        self.tokens, self.steps = tokens, steps

    def __iter__(self) -> Iterator[list[Tensor]]:
        return (list(pair) for pair in zip(self.tokens.split(BATCH), self.steps.split(BATCH), strict=True))


def results(model: UnconditionalModel, *, devices: int) -> dict[str, Any]:
    """Edited images of a plan of three micro-batches, the last one not full, and what an SAE learns."""
    quiet: dict[str, Any] = {
        name: False for name in ("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing")
    }
    quiet |= {"accelerator": "cpu", "devices": devices}
    ids = torch.arange(10)
    images = generate(lightning.Trainer(**quiet), model, GenerationPlan(1, ids, ids % 2), edit=Shift())
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(UPDATES * BATCH, 8, generator=generator) @ torch.randn(8, 8, generator=generator)
    stream = Stream(tokens, torch.randint(5, (len(tokens),), generator=generator))
    torch.manual_seed(0)
    # A latent counts as dead after 96 tokens, so that the auxiliary loss takes part.
    module = SaeModule(TopKAutoencoder(8, expansion=4, k=2), steps=5, tokens=len(tokens), batch=BATCH, lr=1e-2)
    module.calibrate_input(tokens, stream.steps)
    trainer = lightning.Trainer(**quiet, max_steps=UPDATES)
    trainer.fit(module, DataLoader(stream, batch_size=None))
    fired = module.tokens_since_fired.clone()
    fvu = trainer.callback_metrics["train/fvu"].clone()
    return {"images": images, "fvu": fvu, "fired": fired, "decoder": module.fold_scale().decoder.detach().clone()}


def one_of_two(rank: int, port: int, folder: Path, model: UnconditionalModel) -> None:
    """A process as Lightning's launcher would have started it."""
    os.environ |= {"LOCAL_RANK": str(rank), "NODE_RANK": "0", "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.save(results(model, devices=2), folder / f"{rank}.pt")


@pytest.mark.filterwarnings("ignore")
def test_two_processes_give_the_images_and_the_training_of_one(model: UnconditionalModel, tmp_path: Path) -> None:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = int(found.getsockname()[1])
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    processes = [context.Process(target=one_of_two, args=(rank, port, tmp_path, model)) for rank in range(2)]
    for process in processes:
        process.start()
    alone = results(model, devices=1)
    try:
        for process in processes:
            process.join(300)
            assert process.exitcode == 0
    finally:
        for process in processes:
            process.kill()
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert torch.equal(first["images"], alone["images"]) and torch.equal(second["images"], alone["images"])
    torch.testing.assert_close(first["decoder"], second["decoder"], rtol=0, atol=0)
    torch.testing.assert_close(first["decoder"], alone["decoder"], rtol=0, atol=0.02)
    assert torch.equal(first["fired"], second["fired"])
    assert float(first["fvu"]) == pytest.approx(float(alone["fvu"]), rel=0.02)
