"""A model sampled otherwise: the same networks, and edits that meet the studied step of the nearest noise."""

import pytest
import torch
from diffusers import EulerDiscreteScheduler
from tiny_pipeline import Shift, images, plan, tiny_text_to_image, tiny_unconditional
from torch import Tensor

from difflens.models.sampling import nearest_steps
from difflens.models.taps import tapped
from difflens.vocabulary import Site


def test_each_timestep_meets_the_studied_one_of_the_nearest_noise() -> None:
    assert nearest_steps([999, 899, 499], [999, 949, 899, 499]) == {999: 0, 899: 2, 499: 3}
    # Halfway the noisier one, and more steps than were studied share them.
    assert nearest_steps([999, 974, 949], [999, 949]) == {999: 0, 974: 0, 949: 1}


def test_what_lies_beyond_the_studied_noise_is_refused() -> None:
    with pytest.raises(ValueError, match=r"timestep 499 is too far from the 3 that were studied \(999 … 899\)"):
        nearest_steps([999, 499], [999, 949, 899])


def test_an_edit_is_told_the_studied_steps_whatever_the_sampler_counts() -> None:
    studied = tiny_unconditional(steps=8)
    few, many = studied.resampled(steps=4), studied.resampled(steps=16)
    told = {}
    for name, model in (("few", few), ("many", many), ("studied", studied)):
        edit = Shift(0.1, site=Site())
        images(model, plan([0], [0]), method=edit)
        told[name] = edit.steps
    # Shift leaves the first step alone.
    assert told["studied"] == [1, 2, 3, 4, 5, 6, 7]
    assert told["few"] == [2, 4, 6]
    assert sorted(set(told["many"])) == [1, 2, 3, 4, 5, 6, 7] and len(told["many"]) > 7
    assert few.steps == studied.steps == 8 and len(few.timesteps) == 4


def test_hooks_of_single_modules_are_told_the_studied_steps_too() -> None:
    few, seen = tiny_unconditional(steps=8).resampled(steps=2), []

    def tap(name: str, step: int, values: Tensor) -> None:
        seen.append(step)

    with tapped(few, few.micro_batch, ["mid_block"], tap):
        images(few, plan([0]))
    assert seen == [0, 4]


@pytest.mark.parametrize("changes", [{"steps": 3}, {"eta": 1.0}])
def test_a_model_sampled_otherwise_is_the_model_that_is_loaded_so(changes: dict[str, float]) -> None:
    studied = tiny_unconditional()
    before = images(studied, plan([0, 1]))
    again, fresh = (
        images(each, plan([0, 1])) for each in (studied.resampled(**changes), tiny_unconditional(**changes))
    )
    assert all(torch.equal(again[i], fresh[i]) for i in (0, 1)) and not torch.equal(again[0], before[0])
    # The studied one goes on as it was.
    assert torch.equal(images(studied, plan([0, 1]))[0], before[0])


def test_guidance_and_scheduler_change_without_touching_the_studied_model() -> None:
    studied = tiny_text_to_image()
    before = images(studied, plan([0, 1]))
    plain, strong = studied.resampled(guidance=1.0), studied.resampled(guidance=6.0)
    euler = studied.resampled(scheduler=EulerDiscreteScheduler.from_config(studied.pipeline.scheduler.config))
    assert plain.guidance.calls == ("cond",) and strong.guidance.calls == ("both",)
    made = [images(model, plan([0, 1]))[0] for model in (plain, strong, euler)]
    assert not any(torch.equal(each, before[0]) for each in made)
    assert torch.equal(made[0], images(tiny_text_to_image(guidance=1.0), plan([0, 1]))[0])
    assert torch.equal(images(studied, plan([0, 1]))[0], before[0])
    specs = [model.spec() for model in (studied, plain, euler)]
    assert specs[0]["weights"] == specs[1]["weights"] and specs[0]["guidance"] != specs[1]["guidance"]
    assert specs[2]["scheduler"]["class"] == "EulerDiscreteScheduler" != specs[0]["scheduler"]["class"]


def test_a_setting_of_the_other_kind_of_model_is_refused() -> None:
    with pytest.raises(ValueError, match=r"an unconditional model knows no model\.guidance"):
        tiny_unconditional().resampled(guidance=3.0)
