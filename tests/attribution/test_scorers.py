"""Integrated gradients against autograd, sums and a limit, through heads that are affine and heads that are not."""

import pytest
import torch
from captum.attr import IntegratedGradients as CaptumIntegratedGradients

from difflens.attribution.heads import AffineHead, AutogradHead, Head, mean_softmax_gradient
from difflens.attribution.scorers import (
    GradientTimesActivation,
    GradientTimesDistance,
    IntegratedGradients,
    MeanActivation,
    OfficialIntegratedGradients,
    RandomScores,
    Scorer,
    riemann_integrated_gradients,
)
from difflens.probes.mlp import MlpProbe

LABELS = torch.tensor([0, 1, 2, 2, 0])


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


DECODER, BIAS, CODES = draw(20, 6), draw(6, seed=1), draw(5, 20, 2, 2, seed=2).relu()
AFFINE = AffineHead(DECODER, BIAS, 0.05 * draw(3, 6, 2, 2, seed=3), draw(3, seed=4))


def curved() -> AutogradHead:
    probe = MlpProbe(2, 3, 24, 7).double()
    for seed, values in enumerate(probe.buffers()):
        values.copy_(0.3 * draw(*values.shape, seed=10 + seed))
    return AutogradHead(DECODER, BIAS, lambda maps: probe(maps, 1), (2, 2))


HEADS = pytest.mark.parametrize("head", [AFFINE, curved()], ids=["affine", "curved"])
BASELINES = pytest.mark.parametrize("baseline", [None, CODES.flip(0)], ids=["zero", "other codes"])


def test_logits_are_probe_after_decoder() -> None:
    decoded = torch.einsum("nmhw,md->ndhw", CODES, DECODER) + BIAS[None, :, None, None]
    expected = decoded.flatten(1) @ AFFINE.weight.flatten(1).T + AFFINE.bias
    torch.testing.assert_close(AFFINE.logits(CODES), expected)
    torch.testing.assert_close(AFFINE.zero_logits(), AFFINE.logits(CODES * 0)[0])


@HEADS
@BASELINES
def test_scores_sum_to_the_change_of_the_probability(head: Head, baseline: torch.Tensor | None) -> None:
    start = torch.zeros_like(CODES) if baseline is None else baseline
    scores = IntegratedGradients(nodes=64)(head, CODES, LABELS, baseline)
    change = [head.logits(z).softmax(-1).gather(1, LABELS[:, None])[:, 0] for z in (CODES, start)]
    torch.testing.assert_close(scores.sum(1), change[0] - change[1], rtol=0, atol=1e-6)
    assert (change[0] - change[1]).abs().max() > 0.02


@HEADS
def test_scores_agree_with_captum(head: Head) -> None:
    captum = CaptumIntegratedGradients(lambda z: head.logits(z).softmax(-1))
    expected = captum.attribute(CODES, target=LABELS, n_steps=300, method="gausslegendre").sum((-1, -2))
    with torch.no_grad():
        scores = IntegratedGradients(nodes=64)(head, CODES, LABELS)
    torch.testing.assert_close(scores, expected, rtol=0, atol=1e-6)


def test_gradients_times_activation_and_distance_agree_with_autograd() -> None:
    point, other = CODES.clone().requires_grad_(), CODES.flip(0) * 1.5
    chosen = AFFINE.logits(point).softmax(-1).gather(1, LABELS[:, None]).sum()
    (gradient,) = torch.autograd.grad(chosen, point)
    found = GradientTimesActivation()(AFFINE, CODES, LABELS)
    torch.testing.assert_close(found, (CODES * gradient).sum((-1, -2)))
    apart = GradientTimesDistance()(AFFINE, CODES, LABELS, other)
    torch.testing.assert_close(apart, (gradient * (CODES - other).abs()).sum((-1, -2)), rtol=1e-5, atol=1e-8)


def test_many_riemann_points_approach_the_closed_form() -> None:
    exact = IntegratedGradients(nodes=64)(AFFINE, CODES, LABELS)
    errors = [
        float((riemann_integrated_gradients(AFFINE.logits, CODES, LABELS, steps) - exact).abs().max())
        for steps in (10, 100)
    ]
    assert errors[1] < errors[0] / 5


def test_the_official_protocol_gives_the_released_codes_numbers(official: dict[str, torch.Tensor]) -> None:
    weight = official["probe_w"].reshape(3, 24, 3, 3)
    head = AffineHead(official["w_dec"], official["b_dec"], weight, official["probe_b"])
    scores = OfficialIntegratedGradients()(head, official["codes"], official["target"])
    expected = official["ig_official_left10"].sum((-1, -2))
    torch.testing.assert_close(scores, expected, rtol=1e-4, atol=1e-6)
    with pytest.raises(ValueError, match="zero baseline"):
        OfficialIntegratedGradients()(head, official["codes"], official["target"], official["codes"])


def test_controls_look_at_no_probe() -> None:
    torch.testing.assert_close(MeanActivation()(AFFINE, CODES, LABELS), CODES.sum((-1, -2)))
    random = RandomScores(seed=4)(AFFINE, CODES, LABELS)
    assert torch.equal(random[2], random[3]) and not torch.equal(random[0], random[1])
    assert torch.equal(random, RandomScores(seed=4)(AFFINE, CODES * 2, LABELS))


def test_fewer_than_four_nodes_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 4"):
        IntegratedGradients(nodes=3)


@pytest.mark.parametrize("scorer", [IntegratedGradients(), GradientTimesActivation(), OfficialIntegratedGradients()])
@BASELINES
def test_an_affine_probe_has_the_same_scores_either_way(scorer: Scorer, baseline: torch.Tensor | None) -> None:
    if baseline is not None and isinstance(scorer, OfficialIntegratedGradients):
        return
    weight = AFFINE.weight.flatten(1).T
    other = AutogradHead(DECODER, BIAS, lambda maps: maps.flatten(1) @ weight + AFFINE.bias, (2, 2))
    torch.testing.assert_close(scorer(other, CODES, LABELS, baseline), scorer(AFFINE, CODES, LABELS, baseline))
    torch.testing.assert_close(other.logits(CODES), AFFINE.logits(CODES))
    torch.testing.assert_close(other.zero_logits(), AFFINE.zero_logits())


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("size", [1.0, 20.0, 60.0, 200.0, 20_000.0])
def test_scores_add_up_to_the_change_of_the_probability(size: float, classes: int) -> None:
    generator = torch.Generator().manual_seed(0)
    start, change = (torch.randn(40, classes, generator=generator, dtype=torch.float64) for _ in range(2))
    start, change = 3 * start, size * change
    labels = torch.randint(classes, (40,), generator=generator)
    found = (mean_softmax_gradient(start, change, labels, 32) * change).sum(1)
    truth = ((start + change).softmax(-1) - start.softmax(-1)).gather(1, labels[:, None])[:, 0]
    assert float((found - truth).abs().max()) < 1e-6
