"""Integrated gradients against autograd, sums and a limit, through heads that are affine and heads that are not."""

import pytest
import torch
from captum.attr import IntegratedGradients as CaptumIntegratedGradients

from difflens.attribution.heads import AffineHead, AutogradHead
from difflens.attribution.scorers import (
    GradientTimesActivation,
    GradientTimesDistance,
    IntegratedGradients,
    MeanActivation,
    OfficialIntegratedGradients,
    RandomScores,
    riemann_integrated_gradients,
)
from difflens.probes.mlp import MlpProbe


@pytest.fixture
def head() -> AffineHead:
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    return AffineHead(draw(20, 6), draw(6), 0.5 * draw(3, 6, 2, 2), draw(3))


@pytest.fixture
def codes() -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(5, 20, 2, 2, generator=generator, dtype=torch.float64).relu()


LABELS = torch.tensor([0, 1, 2, 2, 0])


def test_logits_are_probe_after_decoder(head: AffineHead, codes: torch.Tensor) -> None:
    decoded = torch.einsum("nmhw,md->ndhw", codes, head.decoder) + head.decoder_bias[None, :, None, None]
    expected = decoded.flatten(1) @ head.weight.flatten(1).T + head.bias
    torch.testing.assert_close(head.logits(codes), expected)
    torch.testing.assert_close(head.zero_logits(), head.logits(codes * 0)[0])


@pytest.mark.parametrize("with_baseline", [False, True])
def test_scores_sum_to_the_change_of_the_probability(
    head: AffineHead, codes: torch.Tensor, with_baseline: bool
) -> None:
    baseline = codes.flip(0) if with_baseline else None
    start = codes * 0 if baseline is None else baseline
    scores = IntegratedGradients(nodes=64)(head, codes, LABELS, baseline)
    change = [head.logits(z).softmax(-1).gather(1, LABELS[:, None])[:, 0] for z in (codes, start)]
    torch.testing.assert_close(scores.sum(1), change[0] - change[1], rtol=0, atol=1e-6)


def test_the_closed_form_agrees_with_captum(head: AffineHead, codes: torch.Tensor) -> None:
    captum = CaptumIntegratedGradients(lambda z: head.logits(z).softmax(-1))
    expected = captum.attribute(codes, target=LABELS, n_steps=300, method="gausslegendre").sum((-1, -2))
    torch.testing.assert_close(IntegratedGradients(nodes=64)(head, codes, LABELS), expected, rtol=0, atol=1e-6)


def test_the_pullback_is_the_gradient(head: AffineHead, codes: torch.Tensor) -> None:
    codes = codes.clone().requires_grad_()
    g = torch.randn(5, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    (expected,) = torch.autograd.grad((head.logits(codes) * g).sum(), codes)
    torch.testing.assert_close(head.pullback(g), expected)


def test_gradient_times_activation_agrees_with_autograd(head: AffineHead, codes: torch.Tensor) -> None:
    point = codes.clone().requires_grad_()
    chosen = head.logits(point).softmax(-1).gather(1, LABELS[:, None]).sum()
    (gradient,) = torch.autograd.grad(chosen, point)
    scores = GradientTimesActivation()(head, codes, LABELS)
    torch.testing.assert_close(scores, (codes * gradient).sum((-1, -2)))


def test_gradient_times_distance_agrees_with_autograd(head: AffineHead, codes: torch.Tensor) -> None:
    other = codes.flip(0) * 1.5
    point = codes.clone().requires_grad_()
    chosen = head.logits(point).softmax(-1).gather(1, LABELS[:, None]).sum()
    (gradient,) = torch.autograd.grad(chosen, point)
    expected = (gradient * (codes - other).abs()).sum((-1, -2))
    torch.testing.assert_close(GradientTimesDistance()(head, codes, LABELS, other), expected, rtol=1e-5, atol=1e-8)


def test_many_riemann_points_approach_the_closed_form(head: AffineHead, codes: torch.Tensor) -> None:
    exact = IntegratedGradients(nodes=64)(head, codes, LABELS)
    errors = [
        float((riemann_integrated_gradients(head.logits, codes, LABELS, steps) - exact).abs().max())
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


def test_controls_look_at_no_probe(head: AffineHead, codes: torch.Tensor) -> None:
    torch.testing.assert_close(MeanActivation()(head, codes, LABELS), codes.sum((-1, -2)))
    random = RandomScores(seed=4)(head, codes, LABELS)
    assert torch.equal(random[2], random[3]) and not torch.equal(random[0], random[1])
    assert torch.equal(random, RandomScores(seed=4)(head, codes * 2, LABELS))


def test_fewer_than_four_nodes_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 4"):
        IntegratedGradients(nodes=3)


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
