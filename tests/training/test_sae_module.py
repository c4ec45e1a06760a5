"""Training an SAE: the planted dictionary, dead latents, unit rows, scale, resume."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from scipy.linalg import hadamard
from torch import Tensor
from torch.nn.functional import normalize

from difflens.sae.base import SparseAutoencoder
from difflens.sae.batch_topk import BatchTopKAutoencoder
from difflens.sae.jumprelu import JumpReLUAutoencoder
from difflens.sae.matryoshka import MatryoshkaAutoencoder
from difflens.sae.topk import TopKAutoencoder
from difflens.training.sae_module import SaeModule, sae_learning_rate, trapezoid

pytestmark = pytest.mark.filterwarnings("ignore")

ATOMS = torch.cat([torch.eye(16), torch.tensor(hadamard(16)) / 4])
"""32 unit vectors of R^16, no two of which have a cosine above 1/4."""


def planted(tokens: int) -> tuple[Tensor, Tensor]:
    """Tokens that are sums of three atoms, far from the origin and not of unit size; steps at random."""
    active = torch.rand(tokens, 32).argsort(1)[:, :3]
    codes = torch.zeros(tokens, 32).scatter(1, active, 1 + torch.rand(tokens, 3))
    return 20 * (codes @ ATOMS) + 30, torch.randint(5, (tokens,))


def module_of(sae: SparseAutoencoder, data: tuple[Tensor, Tensor], **settings: Any) -> SaeModule:
    module = SaeModule(sae, steps=5, **{"tokens": 25_600, "batch": 256, **settings})
    module.calibrate_input(*data)
    return module


def fit(module: SaeModule, data: tuple[Tensor, Tensor], **settings: Any) -> L.Trainer:
    """Train on the data in its order, once."""
    resume = settings.pop("resume", None)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    trainer = L.Trainer(**{**quiet, "max_epochs": 1, "enable_checkpointing": False, **settings})
    trainer.fit(module, _Batches(data, module.hparams["batch"]), ckpt_path=resume)
    return trainer


@pytest.mark.parametrize("kind", [TopKAutoencoder, BatchTopKAutoencoder, MatryoshkaAutoencoder, JumpReLUAutoencoder])
def test_a_planted_dictionary_is_recovered(kind: type[SparseAutoencoder]) -> None:
    torch.manual_seed(0)
    data = planted(256 * 280)
    sae = kind(16, expansion=4, k=3)  # type: ignore[call-arg]
    module = module_of(sae, data, tokens=len(data[0]), lr=2e-2)
    fit(module, data)
    torch.testing.assert_close(sae.decoder.norm(dim=1), torch.ones(64))
    saved = module.fold_scale().eval()
    best = (ATOMS @ normalize(saved.decoder, dim=1).T).max(1).values
    assert (best > 0.95).sum() >= 30, best
    x, _ = planted(4096)
    fvu = (x - saved.reconstruct(x)).square().sum() / (x - x.mean(0)).square().sum()
    assert fvu < (0.15 if kind is MatryoshkaAutoencoder else 0.1)  # whose first latents serve every prefix
    l0 = (saved.encode(x).values > 0).sum(1).float().mean()
    assert abs(float(l0) - 3) < 0.5, l0


def test_calibration_scales_centred_tokens_and_folding_undoes_it() -> None:
    torch.manual_seed(1)
    x, step = torch.randn(2000, 8) * torch.arange(1, 9) + 100, torch.randint(5, (2000,))
    sae = TopKAutoencoder(8, expansion=4, k=4)
    module = module_of(sae, (x, step))
    scaled = x * module.input_scale
    assert float((scaled - scaled.mean(0)).norm(dim=1).mean()) == pytest.approx(math.sqrt(8), rel=1e-4)
    torch.testing.assert_close(sae.b_dec, scaled.mean(0))
    scale, x_hat = float(module.input_scale), sae.reconstruct(scaled)
    loss = module.training_step((x, step), 0)
    torch.testing.assert_close(module.fold_scale().reconstruct(x), x_hat / scale)
    torch.testing.assert_close(module.training_step((x, step), 0), loss, rtol=1e-4, atol=1e-6)


def test_the_loss_is_the_fraction_of_variance_unexplained_whatever_divides_it() -> None:
    torch.manual_seed(2)
    x, step = torch.randn(1000, 8) + 3, torch.arange(1000) % 5
    x *= 1 + step[:, None]
    sae = TopKAutoencoder(8, expansion=4, k=2)
    scale = module_of(sae, (x, step)).input_scale
    error = (x - sae.reconstruct(x * scale) / scale).square().sum(1)
    spread = [(x[step == index] - x[step == index].mean(0)).square().sum(1).mean() for index in range(5)]
    pooled = error.mean() / (x - x.mean(0)).square().sum(1).mean()
    expected = {"dataset": pooled, "batch": pooled, "step": (error / torch.stack(spread)[step]).mean()}
    for variance, value in expected.items():
        module = module_of(sae, (x, step), variance=variance)
        torch.testing.assert_close(module.training_step((x, step), 0), value, rtol=1e-4, atol=0)


def test_auxk_revives_dead_latents() -> None:
    torch.manual_seed(3)
    data = planted(128 * 120)
    shares = {}
    for coefficient in (0.0, 1 / 32):
        torch.manual_seed(4)
        sae = TopKAutoencoder(16, expansion=4, k=2)
        module = module_of(sae, data, batch=128, tokens=len(data[0]), aux_coefficient=coefficient, lr=2e-3)
        sae.b_enc.data[:32] = -2.0  # too weak to be among the k largest, yet positive on some token
        fit(module, data)
        shares[coefficient] = float(module.dead[:32].double().mean())
    assert shares[0.0] > 0.6 and shares[1 / 32] < 0.2, shares


def test_fire_counters_count_tokens() -> None:
    torch.manual_seed(6)
    data = planted(100)
    sae = TopKAutoencoder(16, expansion=2, k=3)
    module = module_of(sae, data, tokens=4000)
    sae.b_enc.data[7] = -100
    for batches in (1, 2):
        module.training_step(data, 0)
        assert module.tokens_since_fired[7] == 100 * batches
        assert bool(module.dead[7]) == (batches == 2)


class _Batches:
    """Batches in their order, from the position it was stopped at: a checkpoint of Lightning's asks for no more."""

    def __init__(self, data: tuple[Tensor, Tensor], batch: int) -> None:
        self.batches, self.position = list(zip(*(part.split(batch) for part in data), strict=True)), 0

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        while self.position < len(self.batches):
            self.position += 1
            yield self.batches[self.position - 1]

    def state_dict(self) -> dict[str, int]:
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.position = state["position"]


class _Saved(Callback):
    """Remembers the decoder's norms at the moment when checkpoint callbacks may save."""

    worst = 0.0

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        norms = pl_module.sae.decoder.norm(dim=1)
        self.worst = max(self.worst, float((norms - 1).abs().max()))


@pytest.mark.parametrize("kind", [TopKAutoencoder, BatchTopKAutoencoder])
def test_resuming_equals_the_uninterrupted_run(kind: type[SparseAutoencoder], tmp_path: Path) -> None:
    torch.manual_seed(7)
    data = planted(64 * 12)

    def fresh(seed: int) -> SaeModule:
        torch.manual_seed(seed)
        sae = kind(16, expansion=4, k=3)  # type: ignore[call-arg]
        return module_of(sae, data, tokens=len(data[0]), batch=64, aux_coefficient=1.0)

    whole, watcher = fresh(8), _Saved()
    saver = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=5, save_top_k=-1)
    fit(whole, data, callbacks=[watcher, saver], enable_checkpointing=True)
    assert watcher.worst < 1e-6
    resumed = fresh(9)
    trainer = fit(resumed, data, resume=str(tmp_path / "step=5.ckpt"))
    assert trainer.global_step == 12
    assert whole.dead.any()
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(resumed.state_dict()[name], value, rtol=0, atol=0, msg=name)
    checkpoint = torch.load(tmp_path / "step=5.ckpt", weights_only=True)
    assert {"tokens_since_fired", "input_scale", "health.squared_error"} <= set(checkpoint["state_dict"])
    assert all(isinstance(value, int | float | str | None) for value in checkpoint["hyper_parameters"].values())


def test_bad_tokens_name_their_site() -> None:
    data = planted(64)
    module = module_of(TopKAutoencoder(16, expansion=2, k=3), data, site="mid_block output")
    broken = data[0].clone()
    broken[3, 5] = math.nan
    with pytest.raises(ValueError, match="1 of 64 tokens of mid_block output hold NaN") as error:
        module.training_step((broken, data[1]), 0)
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="all 64 tokens of mid_block output are equal"):
        module.calibrate_input(torch.ones(64, 16), data[1])


def test_variance_per_step_needs_every_step() -> None:
    data = planted(64)
    with pytest.raises(ValueError, match=r"lacks steps \[3, 4\]"):
        module_of(TopKAutoencoder(16, expansion=2, k=3), (data[0], data[1] % 3), variance="step")
    with pytest.raises(ValueError, match="'epoch' is unknown"):
        module_of(TopKAutoencoder(16, expansion=2, k=3), data, variance="epoch")


def test_learning_rates() -> None:
    assert sae_learning_rate(2**14) == 2e-4
    assert sae_learning_rate(2**10) == pytest.approx(8e-4)
    factors = [trapezoid(update, 100, warmup=10, decay=0.2) for update in range(101)]
    assert factors[:10] == pytest.approx([(update + 1) / 10 for update in range(10)])
    assert set(factors[9:81]) == {1.0}
    assert factors[90] == pytest.approx(0.5) and factors[100] == 0
