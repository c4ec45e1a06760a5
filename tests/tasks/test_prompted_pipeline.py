"""The whole program on a text-to-image model: random weights, so that the way is tested and not the outcome."""

import pytest
import torch
from diffusers import UNet2DConditionModel
from program import Program
from tiny_pipeline import tiny_pipeline

TINY = [
    "model.source=model",
    "model=mini_sd",
    "judge=miniature",  # the drawn faces' own judges and CLIP, which know no professions
    "metric.extractor.folder=package:miniature/weights/clip",
    "attribute=gender+age",
    "mitigation.target={gender: {female: 0.75, male: 0.25}}",
    "mitigation.calibration.per_prompt=true",
    "model.steps=4",
    "model.micro_batch=8",
    "data.images=64",
    "data.buffer=4096",
    "sae.expansion=2",
    "sae.k=4",
    "sae.training.tokens=8000",
    "sae.training.batch=512",
    "probe.iterations=3",
    "attribution.images_per_class=8",
    "attribution.top=3",
    "attribution.baseline=contrast",
    "metric.images=4",
    "metric.reference.images=64",
    "metric.kid_subset=8",
    "metric.cards=2",
    "mitigation.calibration.images=16",
    "mitigation.calibration.refinements=0",
    "mitigation.calibration.largest=1",
    "mitigation.hold.attributes=[]",
]


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Program:
    program = Program(tmp_path_factory.mktemp("prompted"))
    pipeline = tiny_pipeline()
    torch.manual_seed(1)
    pipeline.unet = UNet2DConditionModel.from_config({**pipeline.unet.config, "sample_size": 16})
    pipeline.save_pretrained(program.folder / "model")
    done = program(*TINY)
    assert done.code == 0, done.err + done.out
    return program


def test_every_prompt_is_measured_by_itself_and_pooled(program: Program) -> None:
    metrics = program.json("metrics.json")
    assert metrics["n"] == 16
    for row in metrics["rows"]:
        assert [prompt.rsplit(" ", 1)[-1] for prompt in row["prompts"]] == [
            "firefighter",
            "doctor",
            "receptionist",
            "nurse",
        ]
        assert all(entry["n"] == 4 for entry in row["prompts"].values())
        mean = sum(entry["fd_hard"] for entry in row["prompts"].values()) / 4
        assert row["fd_hard_prompt_mean"] == pytest.approx(mean)
        assert row["clip_t_paper"] == pytest.approx((row["clip_t"] + 1) / 2)
        pooled = sum(entry["shares"]["female+old"]["share"] for entry in row["prompts"].values()) / 4
        assert row["shares"]["female+old"]["share"] == pytest.approx(pooled)


def test_a_product_is_asked_for_by_part_and_calibrated_per_prompt_and_class(program: Program) -> None:
    metrics, report = program.json("metrics.json"), program.json("report.json")
    assert metrics["target"]["female+old"] == pytest.approx(0.25) and metrics["target"]["male+old"] == pytest.approx(
        1 / 12
    )
    assert list(metrics["rows"][1]["parts"]) == ["gender", "age"]
    assert len(report["strength"]) == 4 * 6 and "a face of a nurse, male+young" in report["strength"]
    assert set(report["dose"]["chosen"]) == set(metrics["classes"])


def test_prompts_kept_apart_are_measured_apart(program: Program) -> None:
    unseen = program.json("metrics_unseen.json")
    assert {prompt.rsplit(" ", 1)[-1] for prompt in unseen["rows"][1]["prompts"]} == {
        "pilot",
        "builder",
        "baker",
        "gardener",
    }
    seen = program.json("metrics.json")
    assert not set(unseen["rows"][0]["prompts"]) & set(seen["rows"][0]["prompts"])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("~prompt", "prompt=workplace"),
        ("prompt.studied=[]", "prompt.studied is empty"),
        ("attribute.parts.age.words=null", "attribute.words gives no word"),
        ("data.images=8", "too few"),
        ("model.source=nowhere", "nowhere"),
        ("data.site.branch=uncond model.guidance=1", "guidance"),
    ],
)
def test_mistakes_end_with_one_line(program: Program, override: str, message: str) -> None:
    done = program(*TINY, *override.split())
    assert done.code == 2 and message in done.complaint
