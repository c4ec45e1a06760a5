"""Streaming figures equal the global formula, whatever the batches."""

import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from difflens.sae.codes import SparseCodes
from difflens.sae.health import DENSITY_EDGES, HealthMeter, SaeHealth


@pytest.fixture
def tokens() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x, x_hat, dense codes, step: steps differ in mean and size, tokens come sorted by step."""
    torch.manual_seed(0)
    step = torch.arange(600) // 200
    x = torch.randn(600, 5) * (1 + step[:, None]) + 40 * step[:, None]
    codes = torch.rand(600, 12).relu() * (torch.rand(600, 12) < 0.3)
    codes[:, 4] = 0
    return x, x + 0.5 * torch.randn(600, 5), codes, step


def measure(tokens: Sequence[Tensor], sizes: Sequence[int], steps: int = 4) -> SaeHealth:
    meter = HealthMeter(steps, 5, 12)
    for x, x_hat, dense, step in zip(*(part.split(list(sizes)) for part in tokens), strict=True):
        meter.update(x, x_hat, SparseCodes(*dense.topk(7, dim=1)), step)
    return meter.compute()


def fvu(x: Tensor, x_hat: Tensor) -> float:
    x, x_hat = x.double(), x_hat.double()
    return float((x - x_hat).square().sum() / (x - x.mean(0)).square().sum())


def test_fvu_is_the_global_one_and_not_the_mean_over_batches(tokens: tuple[Tensor, ...]) -> None:
    x, x_hat, _, step = tokens
    health = measure(tokens, [100] * 6)
    assert health.fvu == pytest.approx(fvu(x, x_hat), rel=1e-10)
    for index in range(3):
        assert health.fvu_per_step[index] == pytest.approx(fvu(x[step == index], x_hat[step == index]), rel=1e-8)
    assert math.isnan(health.fvu_per_step[3])
    per_batch = [fvu(a, b) for a, b in zip(x.split(100), x_hat.split(100), strict=True)]
    assert sum(per_batch) / 6 > 10 * health.fvu


def test_nothing_depends_on_the_batch_split(tokens: tuple[Tensor, ...]) -> None:
    whole, split = measure(tokens, [600], steps=3), measure(tokens, [1, 7, 250, 342], steps=3)
    assert split.fvu == pytest.approx(whole.fvu, rel=1e-12)
    assert split.fvu_per_step == pytest.approx(whole.fvu_per_step, rel=1e-10)
    assert (split.tokens, split.l0, split.dead_share) == (whole.tokens, whole.l0, whole.dead_share)
    assert split.density_histogram == whole.density_histogram


def test_sparsity_figures(tokens: tuple[Tensor, ...]) -> None:
    kept = torch.zeros(600, 12).scatter(1, tokens[2].topk(7, dim=1).indices, 1.0) * (tokens[2] > 0)
    health = measure(tokens, [600])
    assert health.l0 == pytest.approx(float(kept.sum()) / 600)
    assert health.dead_share == pytest.approx(1 / 12)
    assert sum(health.density_histogram) == 11
    edges = torch.tensor(DENSITY_EDGES)
    for density in kept.mean(0)[kept.any(0)]:
        bin_index = int((edges <= density.log10()).sum()) - 1
        assert health.density_histogram[bin_index] > 0


def test_an_empty_meter_says_so_and_reset_empties_it(tokens: tuple[Tensor, ...]) -> None:
    meter = HealthMeter(3, 5, 12)
    x, x_hat, dense, step = tokens
    meter.update(x, x_hat, SparseCodes(*dense.topk(7, dim=1)), step)
    meter.reset()
    with pytest.raises(ValueError, match="no token was measured"):
        meter.compute()
