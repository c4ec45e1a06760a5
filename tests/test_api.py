"""The Python interface reads a finished run and steers a pipeline with it; importing it costs nothing."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers import DDIMPipeline, DDIMScheduler, UNet2DModel
from program import undisturbed
from tiny_pipeline import tiny_pipeline, tiny_text_to_image
from torch import Tensor

import difflens
from difflens.api import Features
from difflens.attribution.statistics import CodeStatistics
from difflens.data.naming import Naming
from difflens.methods.base import SiteEdit
from difflens.methods.difflens import FeatureEdit
from difflens.metrics.functional import chance_discrepancy
from difflens.sae.topk import TopKAutoencoder
from difflens.store.artifacts import ArtifactStore
from difflens.vocabulary import UNTOUCHED, Attribute, FeatureSet, PerImage, Site

EXAMPLE = Path(__file__).parents[1] / "experiments" / "steer_a_pipeline.py"


def test_importing_the_package_imports_no_torch_and_names_its_functions() -> None:
    code = "import sys, difflens; print('torch' in sys.modules, {'steer', 'load_sae'} <= set(dir(difflens)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False True\n"
    with pytest.raises(AttributeError, match="no attribute 'stear'"):
        difflens.stear  # noqa: B018


def test_fd_of_tensors() -> None:
    logits = torch.tensor([[9.0, -9.0], [9.0, -9.0], [9.0, -9.0], [-9.0, 9.0], [float("nan")] * 2])
    found = difflens.fairness_discrepancy(logits, ["female", "male"])
    assert (found.n, found.missing) == (4, 1) and found.shares["female"].share == 0.75
    assert found.fd_hard == pytest.approx(0.25 * 2**0.5)
    assert found.fd_chance == pytest.approx(float(chance_discrepancy(4, torch.tensor([0.5, 0.5]))))
    assert difflens.fairness_discrepancy(logits, ["female", "male"], {"female": 0.75, "male": 0.25}).fd_hard == 0


def test_a_run_gives_back_its_sae_and_its_features_and_the_example_runs_on_it() -> None:
    program = undisturbed()
    run = program.latest
    features = difflens.load_features(run)
    assert features.attribute.classes == ("female", "male") and len(features.timesteps) == 4
    assert features.naming.named("two women at work") == ("female",)
    sae = difflens.load_sae(run)
    assert torch.equal(sae.decoder, features.mitigation.sae.decoder)
    chosen = program.json("report.json")["strength"]
    assert features.mitigation.strength.tolist() == pytest.approx([chosen["female"], chosen["male"]])
    command = [sys.executable, str(EXAMPLE), str(run), "--images", "8"]
    done = subprocess.run(command, cwd=program.folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and "accelerate" not in done.stdout + done.stderr, done.stderr
    lines = done.stdout.splitlines()
    assert [line.split(":")[0] for line in lines] == ["original", "steered"] and all(
        "FD hard" in line for line in lines
    )
    shares = [[float(share) for share in re.findall(r"male (\d\.\d+)", line)] for line in lines]
    assert all(sum(pair) == pytest.approx(1) for pair in shares)


def edit(*strength: float) -> SiteEdit:
    nothing = CodeStatistics(torch.tensor([1, 2]), torch.zeros(2, 1, 2, 4, 4), torch.zeros(1, 2))
    made = FeatureEdit(
        TopKAutoencoder(16, expansion=2, k=4),
        FeatureSet(Attribute("gender", ("female", "male")), {"female": (1,), "male": (2,)}),
        nothing,
        site=Site(),
        mode="contrast",
    )
    return made.with_strength(torch.tensor(strength))


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The classes of all images that any edit meets; no edit does anything."""
    found: list[int] = []

    def note(edit: FeatureEdit, h: Tensor, step: int, images: PerImage) -> Tensor:
        found.extend(images.target.tolist())
        return h

    monkeypatch.setattr(FeatureEdit, "__call__", note)
    return found


@pytest.fixture
def pipe(unet: UNet2DModel) -> DDIMPipeline:
    pipeline = DDIMPipeline(unet, DDIMScheduler())
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.mark.parametrize(("size", "calls"), [(1, 100), (3, 5)])
def test_all_calls_of_a_block_share_the_quota(pipe: DDIMPipeline, given: list[int], size: int, calls: int) -> None:
    with difflens.steer(pipe, Features(edit(1.0, 1.0), (0,)), target={"female": 0.75, "male": 0.25}):
        for call in range(calls):
            pipe(size, num_inference_steps=1, output_type="np")
            images = size * (call + 1)
            assert len(given) == images and abs(given.count(0) - 0.75 * images) <= 0.5
    assert given.count(0) == round(0.75 * size * calls)


@pytest.mark.parametrize("gate", [True, False])
def test_a_prompt_that_names_a_class_is_left_alone_where_there_is_a_gate(given: list[int], gate: bool) -> None:
    pipe, grid = tiny_pipeline(), tuple(tiny_text_to_image(steps=1).timesteps)
    pipe.set_progress_bar_config(disable=True)
    features = Features(edit(1.0, 1.0), grid, naming=Naming({"male": ["man"]}))
    with difflens.steer(pipe, features, target={"female": 1.0, "male": 0.0}, gate=gate):
        pipe(["a doctor", "a man at work"], num_inference_steps=1, output_type="pt")
    assert given == ([0, UNTOUCHED] if gate else [0, 0])


def test_a_class_that_no_image_was_pushed_towards_gets_none(pipe: DDIMPipeline, given: list[int]) -> None:
    natural = torch.tensor([0.25, 0.75], dtype=torch.float64)
    with difflens.steer(pipe, Features(edit(2.0, 0.0), (0,), natural)):
        pipe(12, num_inference_steps=1, output_type="np")
    assert sorted(given) == [UNTOUCHED] * 8 + [0] * 4
    for found, target in ((None, None), (natural, {"female": 0.1, "male": 0.9})):
        with (
            pytest.raises(ValueError, match=r"never pushed an image towards male, .*mitigation.assignment=exact"),
            difflens.steer(pipe, Features(edit(2.0, 0.0), (0,), found), target=target),
        ):
            pass


def test_a_run_is_read_wherever_its_artifacts_are(tmp_path: Path) -> None:
    program = undisturbed().copied(tmp_path / "study")
    outputs, elsewhere = program.folder / "outputs", tmp_path / "elsewhere" / "store"
    elsewhere.parent.mkdir()
    (outputs / "artifacts").rename(elsewhere)
    with pytest.raises(ValueError, match=r"steered \w+ of the run .* is not there any more"):
        difflens.load_features(program.latest)
    config = program.latest / "config.yaml"
    config.write_text(re.sub(r"artifacts: .*", f"artifacts: {elsewhere}", config.read_text()))
    assert difflens.load_features(program.latest).attribute.name == "gender"
    # A relative path counts from where the program was started, not from where it is read.
    config.write_text(config.read_text().replace(str(elsewhere), "../elsewhere/store"))
    assert difflens.load_sae(program.latest).width == difflens.load_sae(undisturbed().latest).width


def recorded(folder: Path, kind: str, *specs: dict[str, object]) -> Path:
    """A run that made artifacts of one kind."""
    store, run = ArtifactStore(folder / "artifacts"), folder / "runs" / "a"
    made = [store.get_or_create(kind, spec, lambda place: None)[0] for spec in specs]
    run.mkdir(parents=True)
    entries = [{"kind": kind, "fingerprint": artifact.fingerprint} for artifact in made]
    (run / "manifest.json").write_text(json.dumps({"artifacts": entries}))
    return run


def test_a_run_that_steered_with_several_strengths_is_refused(tmp_path: Path) -> None:
    doses = recorded(tmp_path / "doses", "steered", {"strength": [1.0, 1.0]}, {"strength": [2.0, 2.0]})
    with pytest.raises(ValueError, match="steered with 2 different strengths"):
        difflens.load_features(doses)
    # The images of seen and of unseen prompts, edited alike.
    twice = [{"fit": "x", "calibration": "y", "originals": name} for name in ("seen", "unseen")]
    with pytest.raises(ValueError, match="fit x of the run"):
        difflens.load_features(recorded(tmp_path / "prompts", "steered", *twice))
    with pytest.raises(ValueError, match="has no sae"):
        difflens.load_sae(doses)


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is no run folder"):
        difflens.load_features(tmp_path)
