"""Every method goes the whole way on the model it is for, by its file alone, and stands in a table with ours."""

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMPipeline, StableDiffusionPipeline
from program import Program, undisturbed

import difflens
from difflens.miniature.clip import load_clip

WEIGHTS = Path(difflens.__file__).parent / "miniature" / "weights"
UPWARD = "up_blocks.0.resnets.1"
ANY_NOISE = ["mitigation.sigma_min=0", "mitigation.sigma_max=1000"]
UNCONDITIONAL = {
    "activation": [],
    "asyrp": ["mitigation.images=4", "mitigation.rounds=1", "mitigation.strength=1", f"data.site.module={UPWARD}"],
    "debias_anything": ["mitigation.epochs=1", "mitigation.strength=100", *ANY_NOISE],
    "h_distribution": ["mitigation.strength=1000"],
    "icm": ["mitigation.images=32", "mitigation.strength=5"],
    "redraw": ["mitigation.draws=4"],
    "self_discovering": ["mitigation.images=8", "mitigation.updates=5", "mitigation.strength=1"],
}
PROMPTED = {
    "attribute_switching": ["mitigation.strength=0.5"],
    "debias_anything": ["mitigation.epochs=1", "mitigation.strength=100", *ANY_NOISE],
    "equisteer": ["mitigation.images=8", "mitigation.strength=1"],
    "icm": ["mitigation.images=16", "mitigation.strength=5"],
    "prompt": [],
    "redraw": ["mitigation.draws=2"],
    "sega": ["mitigation.warmup=0.25", "mitigation.strength=4"],
    "self_discovering": ["mitigation.images=8", "mitigation.updates=5", "mitigation.strength=1"],
    "sliders": ["mitigation.updates=4", "mitigation.lr=0.05", "mitigation.strength=4"],
    "uce": ["mitigation.rounds=1", "mitigation.images=4"],
}
SMALL = ["model=mini_sd", "model.micro_batch=8", "data.images=32", "metric.images=2", "metric.named=2"]
SMALL += ["prompt.unseen=[]"]


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Program:
    return undisturbed().copied(tmp_path_factory.mktemp("rivals") / "study")


@pytest.fixture(scope="module")
def prompted(tmp_path_factory: pytest.TempPathFactory) -> Program:
    return Program(tmp_path_factory.mktemp("rivals_sd"))


def changed(program: Program, name: str) -> None:
    original, row = program.json("metrics.json")["rows"]
    assert (original["method"], row["method"]) == ("original", name)
    assert row["clip_i_edited"] < 1 and row["edited"] == row["n"]
    assert (row["reached"] is None) == (name in ("h_distribution", "uce"))


def steers(program: Program, pipe: Any, **call: Any) -> None:
    """What the run learnt is read again, and changes a user's own pipeline for as long as it is to."""
    features = difflens.load_features(program.latest)
    pipe.set_progress_bar_config(disable=True)

    def made() -> torch.Tensor:
        settings = {"num_inference_steps": len(features.timesteps), "output_type": "np", **call}
        return torch.from_numpy(pipe(**settings, generator=torch.Generator().manual_seed(0)).images)

    plain = made()
    with difflens.steer(pipe, features):
        assert not torch.allclose(made(), plain, atol=1e-3)
    assert torch.equal(made(), plain)


@pytest.mark.parametrize("name", UNCONDITIONAL)
def test_a_method_without_prompts_goes_the_whole_way(study: Program, name: str) -> None:
    study.done("task=steer", f"mitigation={name}", *UNCONDITIONAL[name])
    changed(study, name)
    if name == "asyrp":
        assert difflens.load_features(study.latest).mitigation.site.module == UPWARD  # type: ignore[attr-defined]
        (fitted,) = (path for path in study.artifacts("fit") if "Asyrp" in (path / "spec.json").read_text())
        assert load_clip("package:miniature/weights/clip").fingerprint in (fitted / "spec.json").read_text()
    if name in ("asyrp", "debias_anything"):
        steers(study, DDIMPipeline.from_pretrained(WEIGHTS / "generator"), batch_size=2)


@pytest.mark.parametrize("name", PROMPTED)
def test_a_method_on_a_text_to_image_model_goes_the_whole_way(prompted: Program, name: str) -> None:
    prompted.done("task=steer", *SMALL, f"mitigation={name}", *PROMPTED[name])
    changed(prompted, name)
    original, row = prompted.json("metrics.json")["rows"]
    # Prompts that name a class are left alone, by every method.
    assert row["named_obeyed"] == original["named_obeyed"] and len(row["named"]) == 12
    made = {entry["kind"] for entry in prompted.json("manifest.json")["artifacts"]}
    asked = {"activations"} if name == "debias_anything" else set()
    assert made & {"activations", "sae", "probe"} == asked, "nothing is made that the method does not ask for"
    if name in ("debias_anything", "sliders"):
        pipe = StableDiffusionPipeline.from_pretrained(WEIGHTS / "text_to_image" / "pipeline")
        steers(prompted, pipe, prompt=["a face of a doctor"] * 2, guidance_scale=3.0)


def test_without_a_gate_named_classes_are_pushed_away(prompted: Program) -> None:
    prompted.done("task=steer", *SMALL, "mitigation=prompt", "prompt.gate=false")
    original, row = prompted.json("metrics.json")["rows"]
    # Half the images of each such prompt are given the other class.
    assert row["named_obeyed"] < original["named_obeyed"] - 0.2


def test_a_fit_is_that_of_its_prompts(prompted: Program) -> None:
    asked = ("task=steer", *SMALL, "mitigation=uce", *PROMPTED["uce"], "prompt.studied=['a face of a {} doctor']")
    prompted.done(*asked)
    made = prompted.reused
    assert not made["fit"], "what was learnt on other prompts is not this model's"


def test_one_class_for_each_image_is_no_edit_towards_all(prompted: Program) -> None:
    towards_all = ("mitigation.assignment=everyone", "mitigation.strength=1", "mitigation.hold.attributes=[]")
    assert "pushes an image towards one class" in prompted.refused(
        "task=steer", *SMALL, "mitigation=prompt", *towards_all
    )


def test_a_text_method_on_a_model_without_prompts_is_one_line(study: Program) -> None:
    assert "the model takes none" in study.refused("task=steer", "mitigation=prompt")


def test_a_sweep_of_methods_compares_them_in_pairs(study: Program) -> None:
    study.done("-m", "task=steer", "mitigation=difflens,h_direction", "mitigation.strength=1")
    (sweep,) = (study.folder / "outputs" / "sweeps").iterdir()
    study.done("task=aggregate", f"sweep={sweep}")
    table = (sweep / "paired.md").read_text()
    assert "| mean difference of h |" in table or "| h_direction |" in table
    assert "Methods in pairs" in (Path(sweep) / "report.html").read_text()
