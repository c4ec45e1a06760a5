"""Self-discovering: its loss is the training loss, its map explains images better, and it is added as it is."""

from typing import Any

import pytest
import torch
from tiny_pipeline import images, plan, tiny_text_to_image, tiny_unconditional
from torch import Tensor

from difflens.methods.base import Given
from difflens.methods.self_discovering import MAPS, SelfDiscovering, explained
from difflens.models.model import DiffusionModel
from difflens.models.sampling import add_noise
from difflens.models.text import encode_prompts
from difflens.vocabulary import UNTOUCHED, Attribute, PerImage, Site

GENDER = Attribute("gender", ("female", "male"))


def halves(pictures: Tensor) -> Tensor:
    return torch.arange(len(pictures)) % 2


def given(model: DiffusionModel) -> Given:
    prompts = ("a face of a {} doctor",) if model.prompted else ()
    site = Site(branch=model.default_branch)
    return Given(GENDER, site, model.steps, model=model, prompts=prompts, words=("female", "male"), classify=halves)


@pytest.mark.parametrize("make", [tiny_text_to_image, tiny_unconditional])
def test_the_map_explains_images_better_than_none_and_moves_those_that_have_a_class(make: Any) -> None:
    model = make()
    case = given(model)
    method = SelfDiscovering(images=6, updates=40, batch=4, lr=0.02)
    learnt = method.learn(case)
    shape = model.site_shape(case.site)
    assert learnt[MAPS].shape == (2, 1, *shape)
    clean, prompts, labels = method._explained(case)
    rows = (labels == 0).nonzero()[:, 0]
    noise = torch.randn(len(rows), *clean.shape[1:], generator=torch.Generator().manual_seed(1))
    condition = {}
    if prompts is not None:
        condition = {"encoder_hidden_states": encode_prompts(model, [prompts[0]] * len(rows)).hidden}
    losses = {"with": 0.0, "without": 0.0}
    for t in map(int, model.timesteps):
        noisy = add_noise(model.pipeline.scheduler, clean[rows], noise, t)
        for name, found in (("with", learnt[MAPS][0, 0]), ("without", torch.zeros(shape))):
            losses[name] += float(explained(model, case, noisy, noise, t, found, condition))
    assert losses["with"] < losses["without"]
    edit = method.edit(case, learnt).with_strength(torch.ones(2))
    made, plain = images(model, plan([0, 1], [0, UNTOUCHED]), method=edit), images(model, plan([0, 1]))
    assert torch.equal(made[1], plain[1]) and not torch.equal(made[0], plain[0])
    h = torch.randn(1, *shape)
    torch.testing.assert_close(edit(h, 1, PerImage(torch.tensor([1]))), h + learnt[MAPS][1])
