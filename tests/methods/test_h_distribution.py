"""Distribution guidance: the gradient in closed form, what it does to a batch, and whom it leaves alone."""

import torch

from difflens.methods.base import Given
from difflens.methods.h_distribution import HDistribution, distribution_gradient
from difflens.models.model import DiffusionModel
from difflens.probes.linear import LinearProbe
from difflens.vocabulary import UNTOUCHED, Attribute, PerImage, Site

RACE = Attribute("race", ("a", "b", "c"))


def test_the_gradient_is_that_of_autograd() -> None:
    generator = torch.Generator().manual_seed(0)
    h = torch.randn(7, 12, generator=generator, dtype=torch.float64, requires_grad=True)
    weight, bias = (torch.randn(*size, generator=generator, dtype=torch.float64) for size in ((3, 12), (3,)))
    target = torch.tensor([0, 1, 2, 2, 1, 1, 0])
    q = torch.bincount(target).double() / 7
    mean = ((h @ weight.T + bias) / 8).softmax(-1).mean(0)
    ((mean - q).square() / q).sum().backward()
    assert torch.allclose(distribution_gradient(h.detach(), target, weight, bias), h.grad, rtol=1e-12, atol=1e-14)


def test_the_batch_comes_nearer_to_its_target_and_images_without_a_class_stay(model: DiffusionModel) -> None:
    generator = torch.Generator().manual_seed(1)
    shape = model.site_shape(Site())
    probe = LinearProbe(model.steps, 3, shape[0] * shape[1] * shape[2])
    probe.weight.normal_(generator=generator)
    method = HDistribution()
    given = Given(RACE, Site(), model.steps, probe=probe, model=model)
    learnt = method.learn(given)
    betas = model.pipeline.scheduler.betas
    assert torch.allclose(learnt["factors"][0], 450 * betas[int(model.timesteps[0])].double() ** 0.05)
    edit = method.edit(given, learnt).with_strength(torch.full((3,), 1e-3))
    h = torch.randn(6, *shape, generator=generator)
    images = PerImage(torch.tensor([0, 1, 2, 0, 1, UNTOUCHED]))
    edited = edit(h, 2, images)
    q = torch.tensor([0.4, 0.4, 0.2])
    distance = [float((((probe(x[:5], 2) / 8).softmax(-1).mean(0) - q).square() / q).sum()) for x in (h, edited)]
    assert distance[1] < distance[0]
    assert torch.equal(edited[5], h[5])
    assert torch.equal(edit.with_strength(torch.zeros(3))(h, 2, images), h)
