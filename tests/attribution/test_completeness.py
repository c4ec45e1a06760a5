"""Integrated gradients through an affine head are complete for changes of the logits of any size."""

import pytest
import torch

from difflens.attribution.heads import mean_softmax_gradient


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
