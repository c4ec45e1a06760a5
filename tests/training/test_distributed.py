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

from difflens.attribution.scorers import IntegratedGradients
from difflens.data.sampled import Shards
from difflens.models.model import DiffusionModel
from difflens.probes.linear import LinearProbe
from difflens.sae.topk import TopKAutoencoder
from difflens.training.attribution_module import AttributionModule, LabelledMaps
from difflens.training.sae_module import SaeModule
from difflens.training.steering_module import generate, sample
from difflens.vocabulary import Attribute, GenerationPlan, PerImage, Site

UPDATES, BATCH = 30, 64


class Shift:
    """Adds the target to the bottleneck of every step."""

    site, update = Site(), "asymmetric"

    def active(self, step: int, steps: int) -> bool:
        return True

    def __call__(self, h: Tensor, step: int, images: PerImage) -> Tensor:
        return h + images.target[:, None, None, None]


class Stream(IterableDataset[list[Tensor]]):
    """The same batches of tokens and steps on every rank."""

    def __init__(self, tokens: Tensor, steps: Tensor) -> None:
        self.tokens, self.steps = tokens, steps

    def __iter__(self) -> Iterator[list[Tensor]]:
        return (list(pair) for pair in zip(self.tokens.split(BATCH), self.steps.split(BATCH), strict=True))


def sweep(sae: TopKAutoencoder, trainer: lightning.Trainer, *, steps: int) -> dict[str, Any]:
    """What an attribution of random maps finds at every step, its last item without any if there are more ranks."""
    generator = torch.Generator().manual_seed(2)
    probe = LinearProbe(steps, 2, 8 * 4)
    probe.weight.normal_(generator=generator)
    maps, labels = torch.randn(steps, 12, 8, 2, 2, generator=generator), torch.tensor([0, 1, 1] * 4)
    items = [
        [LabelledMaps(maps[step, i : i + 5], labels[i : i + 5], step) for i in (0, 5, 10)] for step in range(steps)
    ]
    items += [[]] * (trainer.world_size - steps)
    module = AttributionModule(sae, probe, Attribute("gender", ("female", "male")), IntegratedGradients())
    trainer.predict(module, DataLoader(items, batch_size=None), return_predictions=False)  # type: ignore[arg-type]
    found = module.result()
    sums = {"scores": module.score_sum, "activations": module.activation_sum, "images": module.images}
    return {**{name: values.clone() for name, values in sums.items()}, "gap": found.completeness_gap}


def results(model: DiffusionModel, folder: Path, *, devices: int) -> dict[str, Any]:
    """Edited images of three micro-batches, the last one not full; what attributions find and what an SAE learns."""
    quiet: dict[str, Any] = {
        name: False for name in ("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing")
    }
    quiet |= {"accelerator": "cpu", "devices": devices}
    ids = torch.arange(10)
    plan = GenerationPlan(1, ids, ids % 2)
    images = generate(lightning.Trainer(**quiet), model, plan, edit=Shift())
    shards = Shards(folder / "shards", Site())
    sample(lightning.Trainer(**quiet), model, plan, shards, edit=Shift(), record=Site())
    single = generate(lightning.Trainer(**quiet), model, plan.part(0, 3), edit=Shift())
    torch.manual_seed(1)
    sae = TopKAutoencoder(8, expansion=4, k=2).eval()
    swept = [sweep(sae, lightning.Trainer(**quiet, inference_mode=False), steps=steps) for steps in (3, 1)]
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
    made = {"images": images, "stored": shards.images(ids), "single": single, "swept": swept}
    return {**made, "fvu": fvu, "fired": fired, "decoder": module.fold_scale().decoder.detach().clone()}


def one_of_two(rank: int, port: int, folder: Path, model: DiffusionModel) -> None:
    """A process as Lightning's launcher would have started it."""
    os.environ |= {"LOCAL_RANK": str(rank), "NODE_RANK": "0", "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.save(results(model, folder / "two", devices=2), folder / f"{rank}.pt")


@pytest.mark.filterwarnings("ignore")
def test_two_processes_give_the_images_and_the_training_of_one(model: DiffusionModel, tmp_path: Path) -> None:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = int(found.getsockname()[1])
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    processes = [context.Process(target=one_of_two, args=(rank, port, tmp_path, model)) for rank in range(2)]
    for process in processes:
        process.start()
    alone = results(model, tmp_path / "one", devices=1)
    try:
        for process in processes:
            process.join(300)
            assert process.exitcode == 0
    finally:
        for process in processes:
            process.kill()
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    for name in ("images", "stored", "single"):
        assert torch.equal(first[name], alone[name]) and torch.equal(second[name], alone[name])
    assert torch.equal(alone["stored"], alone["images"])
    one, two = (sorted((tmp_path / count / "shards").iterdir()) for count in ("one", "two"))
    assert [(path.name, path.read_bytes()) for path in one] == [(path.name, path.read_bytes()) for path in two]
    for both in (first, second):
        torch.testing.assert_close(both["swept"], alone["swept"], rtol=1e-9, atol=0)
    torch.testing.assert_close(first["decoder"], second["decoder"], rtol=0, atol=0)
    torch.testing.assert_close(first["decoder"], alone["decoder"], rtol=0, atol=0.02)
    assert torch.equal(first["fired"], second["fired"])
    assert float(first["fvu"]) == pytest.approx(float(alone["fvu"]), rel=0.02)
