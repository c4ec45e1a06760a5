"""Bad input ends in one clear line, the right exit code and a status that says so, and nothing half-written is a result."""

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from program import Program, undisturbed
from safetensors.torch import load_file, save_file

from difflens.main import conf_folder

WEIGHTS = conf_folder().parent / "difflens" / "miniature" / "weights"


@pytest.fixture
def program(tmp_path: Path) -> Program:
    return undisturbed().copied(tmp_path / "study")


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Program:
    """The program in a folder without results."""
    return Program(tmp_path_factory.mktemp("elsewhere"))


def refused(program: Program, *overrides: str, code: int) -> str:
    """The line of a run that must fail, its status checked against it."""
    ended = program(*overrides)
    assert ended.code == code, ended.out + ended.err
    status = program.json("status.json")
    assert (status["status"], status["exit_code"]) == ("failed", code)
    assert ended.complaint.startswith(status["error"])
    return ended.complaint


def generator_copy(folder: Path, *, poisoned: bool = False, **settings: Any) -> str:
    """A copy of the shipped generator that holds a NaN, or whose configuration was changed."""
    shutil.copytree(WEIGHTS / "generator", folder)
    (path,) = (folder / "unet").glob("*.safetensors")
    tensors = load_file(path)
    if poisoned:
        tensors["conv_out.weight"].view(-1)[0] = torch.nan
    save_file(tensors, path, metadata={"format": "pt"})
    config = folder / "unet" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | settings))
    return f"model.folder={folder}"


def test_a_checkpoint_of_another_model_is_refused(elsewhere: Program, tmp_path: Path) -> None:
    assert "is incomplete (no scheduler/scheduler_config.json" in refused(
        elsewhere, f"model.folder={WEIGHTS / 'judge'}", code=2
    )
    wider = generator_copy(tmp_path / "wider", block_out_channels=[64, 128, 256])
    line = refused(elsewhere, wider, code=2)
    assert "size mismatch" in line and "another model" in line and len(line) < 900
    unknown = generator_copy(tmp_path / "unknown", down_block_types=["NoSuchBlock"] * 3)
    assert "NoSuchBlock does not exist" in refused(elsewhere, unknown, code=2)
    line = refused(elsewhere, f"judge.labels.folder={WEIGHTS / 'generator'}", code=2)
    assert "judge.labels" in line and "another model" in line


def test_activations_that_are_not_finite_never_become_an_artifact(elsewhere: Program, tmp_path: Path) -> None:
    line = refused(elsewhere, generator_copy(tmp_path / "nan", poisoned=True), code=1)
    assert "activations at 'mid_block' are not finite" in line
    assert not elsewhere.artifacts()


def test_a_class_without_images_says_what_to_do(program: Program) -> None:
    line = refused(program, "task=probe", "attribute=race", "data.images=16", code=1)
    assert "a probe needs at least 5 per class: collect more activations (data.images)" in line


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("attribute.classes=[female,man]", "the judge has no class ['man'] of 'gender'; its classes are"),
        ("sae.k=999", "k=999 must lie in 1..256"),
        ("sae.expansion=1000000", "=1e+06 asks for 128000000 latents of 128 values, whose training takes 488.3 GiB"),
        ("data.site.module=midblock", "did you mean mid_block"),
        ("data.site.module=mid_block.attentions", "data.site.module=mid_block.attentions: "),
        ("model.folder=/nowhere", "/nowhere"),
        ("+sae.training.momentum=1", "SaeModule takes no 'momentum'"),
        ("+sae.topk=8", "TopKAutoencoder takes no 'topk'"),
        ("preset=foo", "preset=foo: no such preset"),
        ("trainer.accelerator=abacus", "trainer: "),
        ("judge.others=[beard]", "judge.others names ['beard']"),
        ("attribution.top=999", "attribution.top must be 1 to 256"),
        (
            "+metric.extractor.device=abacus",
            "metric.extractor (difflens.miniature.clip.load_clip): device=abacus cannot be",
        ),
    ],
)
def test_a_mistake_in_the_configuration_is_told_before_the_first_stage(
    elsewhere: Program, override: str, words: str
) -> None:
    """Of what can only be found by building things; what the configuration alone tells is in conf/test_settings.py."""
    assert words in elsewhere.refused(override)
    assert elsewhere.json("status.json")["exit_code"] == 2
    assert not elsewhere.json("manifest.json")["seconds"]


def test_no_file_but_a_checkpoint_is_converted(elsewhere: Program) -> None:
    assert "/etc/passwd is nothing that torch.save wrote" in elsewhere.refused(
        "task=convert", "task.checkpoint=/etc/passwd"
    )


def test_an_artifact_made_for_another_site_is_refused(program: Program) -> None:
    (mine,) = program.artifacts("activations")
    program.done("task=activations", "data.site.module=up_blocks.0")
    (other,) = set(program.artifacts("activations")) - {mine}
    shutil.rmtree(mine)
    other.rename(mine)
    assert "site.module: up_blocks.0 != mid_block" in refused(program, code=2)


def test_a_saved_sae_is_used_where_it_was_trained_and_nowhere_else(program: Program) -> None:
    (own,) = program.artifacts("sae")
    saved = f"sae.saved={own / 'autoencoder'}"
    assert "eta" in refused(program, "task=sae", saved, "model.eta=0.5", code=2)
    program.done("task=sae", saved)
    (copy,) = set(program.artifacts("sae")) - {own}
    name = "autoencoder/sae.safetensors"
    assert (copy / name).read_bytes() == (own / name).read_bytes()


def test_results_that_cannot_be_written_are_told_in_one_line(elsewhere: Program) -> None:
    (elsewhere.folder / "file").touch()
    for key in ("paths.outputs", "paths.artifacts"):
        ended = elsewhere(f"{key}=file/results")
        assert ended.code == 1 and "Not a directory; set paths.outputs" in ended.complaint


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 2 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)], capture_output=True).returncode:
        pytest.skip("mounting a disk needs root")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


def test_on_a_full_disk_the_run_says_so_and_goes_on_when_there_is_space(small_disk: Path) -> None:
    program = Program(small_disk / "study", heard=small_disk.parent)  # which is not full
    assert "4.0 MiB will not fit" in refused(program, "task=steer", code=2)
    # The activations fit, and what comes next fills the disk behind the program's back.
    subprocess.run(["mount", "-o", "remount,size=4500k", str(small_disk)], check=True)
    line = refused(program, "task=steer", code=1)
    assert line.startswith("sae: the disk of outputs/artifacts is full") and "run the same command again" in line
    assert [path.parent.name for path in program.artifacts()] == ["activations"]
    subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True)
    program.done("task=sae")
    made, whole = (study.artifacts("sae")[0] / "autoencoder" / "sae.safetensors" for study in (program, undisturbed()))
    assert made.read_bytes() == whole.read_bytes()


@pytest.mark.parametrize("override", ["name=../../../../x", "paths.outputs="])
def test_no_name_leads_out_of_the_outputs(tmp_path: Path, override: str) -> None:
    ended = Program(tmp_path / "here")(override)
    assert ended.code == 2 and override.partition("=")[0] in ended.complaint
    assert not (tmp_path / "here" / "outputs").exists() and {path.name for path in tmp_path.iterdir()} == {"here"}
