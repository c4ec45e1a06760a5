"""Unified concept editing: its closed form, its loop, and that it leaves images without a class alone."""

from dataclasses import replace

import torch
from tiny_pipeline import images, plan, tiny_text_to_image
from torch import Tensor

from difflens.methods.base import Given
from difflens.methods.uce import EditedWeights, UnifiedConceptEditing, cross_attention, edited_weight, last_tokens
from difflens.models.text import encode_prompts
from difflens.vocabulary import UNTOUCHED, Attribute, Site

GENDER = Attribute("gender", ("female", "male"))


def test_the_closed_form_is_the_minimum_of_its_objective() -> None:
    generator = torch.Generator().manual_seed(0)
    weight, concepts, wanted = (
        torch.randn(*size, generator=generator, dtype=torch.float64) for size in ((5, 7), (3, 7), (3, 5))
    )
    found = edited_weight(weight, concepts, wanted, ridge=0.5).requires_grad_()
    loss = (concepts @ found.T - wanted).square().sum() + 0.5 * (found - weight).square().sum()
    loss.backward()
    assert found.grad is not None and float(found.grad.abs().max()) < 1e-10


def test_wanting_what_is_there_changes_nothing() -> None:
    weight, concepts = torch.randn(5, 7), torch.randn(3, 7)
    torch.testing.assert_close(edited_weight(weight, concepts, concepts @ weight.T, ridge=0.5), weight)


def test_the_last_token_is_the_one_before_the_end() -> None:
    model = tiny_text_to_image()
    texts = ["a doctor", "a nurse at work"]
    hidden = encode_prompts(model, texts).hidden
    ends = [len(model.pipeline.tokenizer(text).input_ids) - 2 for text in texts]
    found = last_tokens(model, texts)
    assert torch.equal(found[0], hidden[0, ends[0]]) and torch.equal(found[1], hidden[1, ends[1]])


def given(shown: int) -> Given:
    """A judge that always sees one class, or none."""

    def classify(pictures: Tensor) -> Tensor:
        return torch.arange(len(pictures)) % 2 if shown < 0 else torch.full((len(pictures),), shown)

    return Given(
        GENDER,
        Site(),
        4,
        model=tiny_text_to_image(),
        prompts=("a face of a {} doctor",),
        words=("female", "male"),
        target=torch.tensor([0.5, 0.5]),
        classify=classify,
    )


def test_the_loop_ends_where_the_shares_are_met_and_pushes_where_they_are_not() -> None:
    method = UnifiedConceptEditing(rounds=2, images=4)
    fair, biased = method.learn(given(-1)), method.learn(given(1))
    assert (int(fair["rounds"]), int(biased["rounds"])) == (0, 2)
    case = given(1)
    assert case.model is not None
    old = cross_attention(case.model.unet)
    assert all(torch.equal(fair[name], weight) for name, weight in old.items())
    concept, female, male = last_tokens(case.model, ["a face of a doctor", "female", "male"])
    for name, weight in old.items():
        moved = biased[name] @ concept - weight @ concept
        assert float(moved @ (weight @ (female - male))) > 0, "towards the class that is lacking"


def test_each_prompt_is_edited_towards_the_shares_asked_of_it() -> None:
    two = ("a face of a {} doctor", "a face of a {} nurse")
    # The judge sees females alone, which is what the first prompt is asked for.
    case = replace(given(0), prompts=two, target=torch.tensor([[1.0, 0.0], [0.5, 0.5]]))
    assert case.model is not None
    new = UnifiedConceptEditing(rounds=1, images=4).learn(case)
    doctor, nurse, female, male = last_tokens(case.model, ["a face of a doctor", "a face of a nurse", "female", "male"])
    for name, old in cross_attention(case.model.unet).items():
        wanted = torch.stack([old @ doctor, old @ nurse + 0.5 * old @ (male - female)])
        expected = edited_weight(old, torch.stack([doctor, nurse]), wanted, ridge=0.5)
        torch.testing.assert_close(new[name], expected)


def test_images_without_a_class_keep_the_old_weights() -> None:
    model = tiny_text_to_image()
    weights = {name: weight + 0.5 * torch.randn(weight.shape) for name, weight in cross_attention(model.unet).items()}
    made = images(model, plan([0, 1], [0, UNTOUCHED]), method=EditedWeights(GENDER, weights))
    plain = images(model, plan([0, 1]))
    assert torch.equal(made[1], plain[1]) and not torch.equal(made[0], plain[0])
    for name, weight in weights.items():
        model.unet.get_submodule(name).weight.data = weight
    torch.testing.assert_close(made[0], images(model, plan([0, 1]))[0], rtol=0, atol=1e-5)
