"""Attribution through any probe by autograd: the closed form where there is one, captum where there is none."""

import pytest
import torch
from captum.attr import IntegratedGradients as CaptumIntegratedGradients

from difflens.attribution.autograd import AutogradHead
from difflens.attribution.base import AffineHead
from difflens.attribution.integrated_gradients import (
    GradientTimesActivation,
    IntegratedGradients,
    OfficialIntegratedGradients,
)
from difflens.probes.mlp import MlpProbe

LABELS = torch.tensor([0, 1, 2, 2, 0])


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


DECODER, BIAS, CODES = draw(20, 6), draw(6, seed=1), draw(5, 20, 2, 2, seed=2).relu()


@pytest.fixture
def affine() -> AffineHead:
    return AffineHead(DECODER, BIAS, 0.5 * draw(3, 6, 2, 2, seed=3), draw(3, seed=4))


def by_autograd(head: AffineHead) -> AutogradHead:
    return AutogradHead(DECODER, BIAS, lambda maps: maps.flatten(1) @ head.weight.flatten(1).T + head.bias, (2, 2))


@pytest.fixture
def curved() -> AutogradHead:
    probe = MlpProbe(2, 3, 24, 7).double()
    for seed, values in enumerate(probe.buffers()):
        values.copy_(0.3 * draw(*values.shape, seed=10 + seed))
    return AutogradHead(DECODER, BIAS, lambda maps: probe(maps, 1), (2, 2))


@pytest.mark.parametrize("scorer", [IntegratedGradients(), GradientTimesActivation(), OfficialIntegratedGradients()])
@pytest.mark.parametrize("with_baseline", [False, True])
def test_an_affine_probe_has_the_same_scores_either_way(affine: AffineHead, scorer, with_baseline: bool) -> None:  # type: ignore[no-untyped-def]
    if with_baseline and isinstance(scorer, OfficialIntegratedGradients):
        return
    baseline, other = CODES.flip(0) if with_baseline else None, by_autograd(affine)
    torch.testing.assert_close(scorer(other, CODES, LABELS, baseline), scorer(affine, CODES, LABELS, baseline))
    torch.testing.assert_close(other.logits(CODES), affine.logits(CODES))
    torch.testing.assert_close(other.zero_logits(), affine.zero_logits())
    assert other.classes == affine.classes == 3


@pytest.mark.parametrize("with_baseline", [False, True])
def test_scores_through_a_curved_probe_sum_to_the_change_of_the_probability(
    curved: AutogradHead, with_baseline: bool
) -> None:
    baseline = CODES.flip(0) if with_baseline else None
    start = torch.zeros_like(CODES) if baseline is None else baseline
    scores = IntegratedGradients(nodes=64)(curved, CODES, LABELS, baseline)
    change = [curved.logits(z).softmax(-1).gather(1, LABELS[:, None])[:, 0] for z in (CODES, start)]
    torch.testing.assert_close(scores.sum(1), change[0] - change[1], rtol=0, atol=1e-6)
    assert (change[0] - change[1]).abs().max() > 0.05


def test_scores_through_a_curved_probe_agree_with_captum(curved: AutogradHead) -> None:
    captum = CaptumIntegratedGradients(lambda z: curved.logits(z).softmax(-1))
    expected = captum.attribute(CODES, target=LABELS, n_steps=300, method="gausslegendre").sum((-1, -2))
    with torch.no_grad():
        scores = IntegratedGradients(nodes=64)(curved, CODES, LABELS)
    torch.testing.assert_close(scores, expected, rtol=0, atol=1e-6)
