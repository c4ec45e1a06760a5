"""The whole program on a text-to-image model: random weights, so that the way is tested and not the outcome."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from tiny_pipeline import tiny_pipeline

TINY = [
    "model=mini_sd",
    "judge=miniature",  # the drawn faces' own judges and CLIP, which know no professions
    "metric.extractor.folder=package:miniature/weights/clip",
    "mitigation.calibration.per_prompt=true",
    "model.steps=4",
    "model.micro_batch=8",
    "data.images=48",
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
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prompted")
    pipeline = tiny_pipeline()
    torch.manual_seed(1)
    pipeline.unet = UNet2DConditionModel.from_config({**pipeline.unet.config, "sample_size": 16})
    pipeline.save_pretrained(folder / "model")
    done = run(folder)
    assert done.returncode == 0, done.stderr + done.stdout
    return folder


def run(folder: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "difflens.main", *TINY, f"model.source={folder / 'model'}", *overrides]
    threads = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, env=threads)


def test_every_prompt_is_measured_by_itself_and_pooled(folder: Path) -> None:
    metrics = json.loads((folder / "outputs/latest/metrics.json").read_text())
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
        pooled = sum(entry["shares"]["female"]["share"] for entry in row["prompts"].values()) / 4
        assert row["shares"]["female"]["share"] == pytest.approx(pooled)


def test_prompts_kept_apart_are_measured_apart(folder: Path) -> None:
    unseen = json.loads((folder / "outputs/latest/metrics_unseen.json").read_text())
    assert {prompt.rsplit(" ", 1)[-1] for prompt in unseen["rows"][1]["prompts"]} == {
        "pilot",
        "builder",
        "baker",
        "gardener",
    }
    seen = json.loads((folder / "outputs/latest/metrics.json").read_text())
    assert not set(unseen["rows"][0]["prompts"]) & set(seen["rows"][0]["prompts"])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("~prompt", "prompt=workplace"),
        ("prompt.studied=[]", "prompt.studied is empty"),
        ("attribute.words=null", "attribute.words gives no word"),
        ("data.images=8", "too few"),
        ("model.source=nowhere", "nowhere"),
        ("data.site.branch=uncond model.guidance=1", "guidance"),
    ],
)
def test_mistakes_end_with_one_line(folder: Path, override: str, message: str) -> None:
    done = run(folder, *override.split())
    assert done.returncode == 2, done.stdout + done.stderr
    assert message in done.stderr and len(done.stderr.strip().splitlines()) == 1
