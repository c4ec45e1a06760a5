"""Methods that act on prompts and on the noise estimate, each beside the pipeline or the class that it follows."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers.pipelines.deprecated.semantic_stable_diffusion import SemanticStableDiffusionPipeline
from tiny_pipeline import images, plan, tiny_pipeline, tiny_text_to_image

from difflens.methods.attribute_switching import AttributeSwitching
from difflens.methods.base import Given, Steering
from difflens.methods.equisteer import EquiSteer
from difflens.methods.prompt import PromptIntervention
from difflens.methods.sega import SemanticGuidance
from difflens.methods.sliders import ConceptSliders
from difflens.methods.uce import UnifiedConceptEditing
from difflens.models.base import Batch
from difflens.models.model import DiffusionModel
from difflens.models.text import encode_prompts
from difflens.vocabulary import UNTOUCHED, Attribute, PerImage, Site

GENDER = Attribute("gender", ("female", "male"))
NAMED = ("a face of a female doctor", "a face of a male nurse")


def given(model: DiffusionModel) -> Given:
    prompts = ("a face of a {} doctor", "a face of a {} nurse")
    return Given(GENDER, Site(), model.steps, model=model, prompts=prompts, words=("female", "male"))


def edit(method: Any, model: DiffusionModel, strength: float = 1.0) -> Steering:
    made: Steering = method.edit(given(model), {}).with_strength(torch.full((2,), strength))
    return made


def test_naming_the_class_gives_the_images_of_the_prompts_that_name_it() -> None:
    model = tiny_text_to_image()
    made = images(model, plan([0, 1, 2], [0, 1, UNTOUCHED]), method=edit(PromptIntervention(), model))
    named, plain = images(model, plan([0, 1], prompts=NAMED)), images(model, plan([2, 3]))
    assert torch.equal(made[0], named[0]) and torch.equal(made[1], named[1])
    assert torch.allclose(made[2], plain[2], atol=1e-6)


def test_without_a_gate_a_prompt_that_names_a_class_is_given_anothers_word_and_a_sentence_without_a_slot_stays() -> (
    None
):
    naming = {"naming": ("a {} doctor",), "worded": ("a doctor called Mary",)}
    told = PromptIntervention().edit(replace(given(tiny_text_to_image()), **naming), {})
    batch = Batch(PerImage(torch.tensor([1, 0, 1, UNTOUCHED])), torch.zeros(4, 1))
    batch.prompts = ["a female doctor", "a female doctor", "a doctor called Mary", "a male doctor"]
    with told.attach(tiny_text_to_image(), batch):
        assert batch.prompts == ["a male doctor", "a female doctor", "a doctor called Mary", "a male doctor"]


def test_a_model_without_prompts_is_told_so(model: DiffusionModel) -> None:
    promptless = Given(GENDER, Site(), 5, model=model)
    for method in (PromptIntervention(), AttributeSwitching(), SemanticGuidance()):
        with pytest.raises(ValueError, match="the model takes none"):
            method.edit(promptless, {})
    for learner in (ConceptSliders(), UnifiedConceptEditing(), EquiSteer()):
        with pytest.raises(ValueError, match="the model takes no"):
            learner.learn(promptless)


def test_switching_at_the_first_step_is_naming_the_class_and_never_switching_is_nothing() -> None:
    model = tiny_text_to_image()
    wanted = plan([0, 1], [0, 1])
    always, never = (images(model, wanted, method=edit(AttributeSwitching(), model, r)) for r in (1.0, 0.0))
    named, plain = images(model, plan([0, 1], prompts=NAMED)), images(model, plan([0, 1]))
    for image_id in (0, 1):
        assert torch.allclose(always[image_id], named[image_id], atol=1e-6)
        assert torch.equal(never[image_id], plain[image_id])


def test_switching_halfway_is_what_a_callback_of_the_pipeline_gives() -> None:
    model = tiny_text_to_image()
    made = images(model, plan([0, 1], [0, 1]), method=edit(AttributeSwitching(), model, 0.5))
    late = encode_prompts(model, NAMED).hidden

    def switch(pipeline: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if step == 1:  # two of four steps are done
            tensors["prompt_embeds"] = torch.cat([tensors["prompt_embeds"][:2], late])
        return tensors

    def call(batch: Any, **more: Any) -> Any:
        return DiffusionModel._call(
            model, batch, **more, callback_on_step_end=switch, callback_on_step_end_tensor_inputs=["prompt_embeds"]
        )

    model._call = call  # type: ignore[method-assign]
    expected = images(model, plan([0, 1]))
    assert torch.allclose(made[0], expected[0], atol=1e-6) and torch.allclose(made[1], expected[1], atol=1e-6)


@pytest.mark.parametrize("warmup", [0, 2])
def test_semantic_guidance_is_that_of_diffusers_own_class(warmup: int) -> None:
    pipeline = tiny_pipeline()
    model = tiny_text_to_image(pipeline)
    method = SemanticGuidance(warmup=warmup / 4, threshold=0.8)
    made = images(model, plan([0, 1], [0, 0]), method=edit(method, model, 4.0))
    plain = images(model, plan([0, 1]))
    parts = {name: part for name, part in pipeline.components.items() if name != "image_encoder"}
    oracle = SemanticStableDiffusionPipeline(**parts, requires_safety_checker=False)
    oracle.set_progress_bar_config(disable=True)
    captured: dict[str, torch.Tensor] = {}

    def call(batch: Any, **more: Any) -> Any:
        captured["latents"] = batch.latents
        return DiffusionModel._call(model, batch, **more)

    model._call = call  # type: ignore[method-assign]
    images(model, plan([0, 1]))
    expected = oracle(
        prompt=["a face of a doctor", "a face of a nurse"],
        latents=captured["latents"],
        num_inference_steps=4,
        guidance_scale=3.0,
        editing_prompt=["female person", "male person"],
        reverse_editing_direction=[False, True],
        edit_warmup_steps=[warmup, warmup],
        edit_guidance_scale=[4.0, 4.0],
        edit_threshold=[0.8, 0.8],
        edit_momentum_scale=0.3,
        edit_mom_beta=0.6,
        output_type="np",
    ).images
    both = torch.stack([made[0], made[1]])
    assert torch.allclose(both, torch.from_numpy(expected).permute(0, 3, 1, 2), atol=1e-4)
    assert not torch.allclose(both, torch.stack([plain[0], plain[1]]), atol=1e-3)


def test_semantic_guidance_leaves_images_without_a_class_as_they_are() -> None:
    model = tiny_text_to_image()
    made = images(model, plan([0, 1], [0, UNTOUCHED]), method=edit(SemanticGuidance(warmup=0.0), model, 4.0))
    plain = images(model, plan([0, 1]))
    assert torch.equal(made[1], plain[1]) and not torch.equal(made[0], plain[0])


def test_semantic_guidance_needs_guidance() -> None:
    model = tiny_text_to_image(guidance=1.0)
    with pytest.raises(ValueError, match=r"model\.guidance above 1"):
        images(model, plan([0, 1], [0, 1]), method=edit(SemanticGuidance(), model))
