import pytest
import torch
from captum.attr import IntegratedGradients as CaptumIntegratedGradients

from difflens.attribution.base import AffineHead
from difflens.attribution.controls import MeanActivation, RandomScores
from difflens.attribution.integrated_gradients import (
    GradientTimesActivation,
    IntegratedGradients,
    OfficialIntegratedGradients,
    riemann_integrated_gradients,
)


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
