"""The whole program on a text-to-image model: random weights, so that the way is tested and not the outcome."""

import json
import shlex

import pytest
import torch
from diffusers import UNet2DConditionModel
from program import Program
from safetensors.torch import load_file
from tiny_pipeline import tiny_pipeline

from difflens.data.activations import ActivationStore
from difflens.miniature.judges import load_judge
from difflens.vocabulary import UNTOUCHED

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
    "metric.named=1",
    "metric.reference.images=64",
    "metric.kid_subset=8",
    "metric.cards=2",
    "mitigation.calibration.images=16",
    "mitigation.calibration.refinements=0",
    "mitigation.calibration.largest=1",
    "mitigation.hold.attributes=[]",
]


SEEN, UNSEEN = ["firefighter", "doctor", "receptionist", "nurse"], ["pilot", "builder", "baker", "gardener"]


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Program:
    program = Program(tmp_path_factory.mktemp("prompted"))
    pipeline = tiny_pipeline()
    torch.manual_seed(1)
    pipeline.unet = UNet2DConditionModel.from_config({**pipeline.unet.config, "sample_size": 16})
    pipeline.save_pretrained(program.folder / "model")
    program.done(*TINY)
    return program


def test_every_prompt_is_measured_by_itself_and_pooled(program: Program) -> None:
    metrics = program.json("metrics.json")
    assert metrics["n"] == 16
    for row in metrics["rows"]:
        assert [prompt.rsplit(" ", 1)[-1] for prompt in row["prompts"]] == SEEN
        assert all(entry["n"] == 4 for entry in row["prompts"].values())
        mean = sum(entry["fd_hard"] for entry in row["prompts"].values()) / 4
        assert row["fd_hard_prompt_mean"] == pytest.approx(mean)
        assert row["clip_t_paper"] == pytest.approx((row["clip_t"] + 1) / 2)
        pooled = sum(entry["shares"]["female+old"]["share"] for entry in row["prompts"].values()) / 4
        assert row["shares"]["female+old"]["share"] == pytest.approx(pooled)


def test_a_product_is_asked_for_by_part_and_calibrated_per_prompt_and_class(program: Program) -> None:
    metrics, report = program.json("metrics.json"), program.json("report.json")
    shares = metrics["target"]
    assert shares["female+old"] == pytest.approx(0.25) and shares["male+old"] == pytest.approx(1 / 12)
    assert list(metrics["rows"][1]["parts"]) == ["gender", "age"]
    assert len(report["strength"]) == 4 * 6 and "a face of a nurse, male+young" in report["strength"]
    assert set(report["dose"]["chosen"]) == set(metrics["classes"])


def test_prompts_kept_apart_are_measured_apart(program: Program) -> None:
    unseen = program.json("metrics_unseen.json")
    assert {prompt.rsplit(" ", 1)[-1] for prompt in unseen["rows"][1]["prompts"]} == {*UNSEEN}


def test_prompts_that_name_a_class_are_left_alone_and_their_obedience_is_a_column(program: Program) -> None:
    before, after = program.json("metrics.json")["rows"]
    # Six wordings of six classes.
    assert len(after["named"]) == 36 and after["named"]["a baker, old male"]["class"] == "male+old"
    assert after["named_obeyed"] == before["named_obeyed"] is not None
    assert "named" not in program.json("metrics_unseen.json")["rows"][1]
    listed = [measure["key"] for measure in program.json("metrics.json")["measures"]]
    assert "named_obeyed" in listed and "named classes obeyed" in (program.latest / "report.html").read_text()
    artifacts = {path: json.loads((path / "spec.json").read_text()) for path in program.artifacts("steered")}
    alone = [path for path, spec in artifacts.items() if "left_alone" in spec]
    assert len(alone) == 1 and load_file(alone[0] / "targets.safetensors")["targets"].eq(UNTOUCHED).all()


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Program:
    return Program(tmp_path_factory.mktemp("drawn"))


@pytest.mark.parametrize("labels", ["prompt", "judge"])
def test_a_contrast_starts_from_the_same_noise_under_a_prompt_of_another_class(drawn: Program, labels: str) -> None:
    """Of the shipped text-to-image model, which obeys its prompts."""
    small = ("model=mini_sd", "model.micro_batch=8", "data.images=96", "attribution.images_per_class=4")
    drawn.done("task=attribution", *small, "attribution.baseline=contrast", f"prompt.labels={labels}")
    # A judge's labels take in the images whose prompts name no class.
    probed, named = load_file(drawn.used("probe") / "probe.safetensors")["images_per_class"], round(0.8 * 96 / 2 / 2)
    assert int(probed) == named if labels == "prompt" else int(probed) > named
    own, other = sorted(drawn.artifacts("activations"), key=lambda path: -len(ActivationStore(path)))
    spec = json.loads((drawn.used("attribution") / "spec.json").read_text())
    assert spec["baseline"] == other.name
    # The scores sum to the probe's change of output.
    assert float((drawn.used("attribution") / "completeness.json").read_text()) < 1e-4
    texts = {path: json.loads((path / "spec.json").read_text())["prompts"] for path in (own, other)}
    ids = ActivationStore(other).image_ids.tolist()
    swapped = {"female": "male", "male": "female"}
    for image, text in zip(ids, texts[other], strict=True):
        words = texts[own][image].split()
        assert text.split() == [swapped.get(word, word) for word in words] != words
    judge = load_judge("package:miniature/weights/text_to_image/judge")
    shown = [judge(ActivationStore(path).images.float() / 255)["gender"].argmax(1) for path in (own, other)]
    assert (shown[0][ids] != shown[1]).double().mean() > 0.9


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("~prompt", "prompt=workplace"),
        ("prompt.studied=[]", "prompt.studied is empty"),
        ("\"prompt.studied=['a {} woman','a {} old nurse']\"", "every studied prompt names a class of 'gender+age'"),
        ("attribute.parts.age.words=null", "attribute.words gives no word"),
        ("data.images=8", "too few"),
        ("model.source=nowhere", "nowhere"),
        ("data.site.branch=uncond model.guidance=1", "guidance"),
    ],
)
def test_mistakes_end_with_one_line(program: Program, override: str, message: str) -> None:
    assert message in program.refused(*TINY, *shlex.split(override))
