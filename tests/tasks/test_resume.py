"""Whenever the program is stopped, the same command goes on, and its numbers are those of a run that nothing disturbed."""

import shutil
import signal
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import torch
from program import Program, count_samples, undisturbed

from difflens.store.errors import INTERRUPTED
from difflens.store.locks import read_owner

STAGES = ["activations", "sae", "probe", "attribution", "statistics", "calibration", "images", "steered", "metrics"]
STAGES += ["cards", "report"]


def begun(program: Program, stage: str, process: BaseProcess) -> bool:
    """Whether a process is at work on a stage."""
    if stage == "report":
        return (program.latest / "images").exists() and program.json("status.json")["pid"] == process.pid
    owners = map(read_owner, (program.folder / "outputs" / "artifacts" / ".locks").glob(f"{stage}-*"))
    return any(owner is not None and owner["pid"] == process.pid for owner in owners)


def results(program: Program) -> dict[str, bytes]:
    """Every file of every artifact, and what the last run says."""
    said = [program.latest / name for name in ("metrics.json", "report.json")]
    files = [path for folder in program.artifacts() for path in sorted(folder.rglob("*")) if path.is_file()]
    found = {str(path.relative_to(program.folder)): path.read_bytes() for path in files}
    return found | {path.name: path.read_bytes() for path in said if path.exists()}


KILLED = ("activations", "sae", "statistics", "calibration", "steered", "report")
STOPS = [(stage, signal.SIGKILL if stage in KILLED else signal.SIGINT) for stage in STAGES]


def test_a_study_stopped_in_every_stage_ends_as_one_that_was_never_stopped(tmp_path: Path) -> None:
    program = Program(tmp_path)
    for stage, number in STOPS:
        process = program.start()
        ended = program.stop(process, number, when=partial(begun, program, stage, process))
        status = program.json("status.json")
        assert not (program.latest / "report.html").exists()
        if number == signal.SIGKILL:
            assert (ended.code, status["status"]) == (-number, "running")
        else:
            assert (ended.code, ended.complaint, status["status"]) == (130, INTERRUPTED, "failed")
            assert status["error"] == INTERRUPTED and status["exit_code"] == 130
    program.done()
    assert not program.unfinished()
    assert results(program) == results(undisturbed())


def test_no_finished_micro_batch_and_no_dose_is_sampled_again_however_often_it_is_killed(tmp_path: Path) -> None:
    settings = ["task=steer", "mitigation.assignment=exact", "metric.images=24"]
    settings += ["mitigation.calibration.first=2", "mitigation.calibration.largest=8"]
    whole, torn = (undisturbed().copied(tmp_path / name) for name in ("whole", "torn"))
    count = {program: program.folder / "sampled" for program in (whole, torn)}
    whole.done(*settings, prepare=partial(count_samples, str(count[whole])))
    kills = 0
    while (ended := torn(*settings, prepare=partial(count_samples, str(count[torn]), 6))).code == -signal.SIGKILL:
        kills += 1
    assert ended.code == 0, ended.err
    sampled = count[whole].stat().st_size
    assert sampled > 3 + 3 + 2, "one dose alone"
    assert kills == (sampled - 1) // 5
    assert count[torn].stat().st_size == sampled + kills
    assert not torn.unfinished()
    assert results(torn) == results(whole)


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Program:
    """A study killed in the middle of the training of its SAE."""
    program = Program(tmp_path_factory.mktemp("killed"))
    program.stop(program.start("task=sae"), signal.SIGKILL, when=lambda: checkpoint_of(program).exists())
    return program


def checkpoint_of(program: Program) -> Path:
    (artifact,) = undisturbed().artifacts("sae")
    folder = program.folder / artifact.relative_to(undisturbed().folder)
    return folder.with_name(f"{folder.name}.partial") / "training" / "last.ckpt"


def weights(program: Program) -> bytes:
    (artifact,) = program.artifacts("sae")
    return (artifact / "autoencoder" / "sae.safetensors").read_bytes()


def test_training_goes_on_from_its_last_checkpoint(killed: Program, tmp_path: Path) -> None:
    saved = torch.load(checkpoint_of(killed), weights_only=True)
    assert 0 < saved["global_step"] < 39
    assert killed.copied(tmp_path / "resumed")("task=sae").code == 0
    assert weights(Program(tmp_path / "resumed")) == weights(undisturbed())
    other = killed.copied(tmp_path / "other")
    saved["state_dict"]["sae.b_enc"] += 0.1
    torch.save(saved, checkpoint_of(other))
    other.done("task=sae")
    assert weights(other) != weights(undisturbed()), "it began anew"


def test_a_checkpoint_that_cannot_be_read_is_not_used(killed: Program, tmp_path: Path) -> None:
    program = killed.copied(tmp_path / "damaged")
    whole = checkpoint_of(program).read_bytes()
    checkpoint_of(program).write_bytes(whole[: len(whole) // 2])
    program.done("task=sae")
    assert weights(program) == weights(undisturbed())


def test_a_trained_sae_is_not_trained_again_for_its_health(killed: Program, tmp_path: Path) -> None:
    program = killed.copied(tmp_path / "trained")
    unfinished = checkpoint_of(program).parents[1]
    when = (unfinished / "autoencoder" / "sae.safetensors").exists
    assert program.stop(program.start("task=sae"), signal.SIGINT, when=when).code == 130
    written = (unfinished / "autoencoder" / "sae.safetensors").stat().st_mtime_ns
    program.done("task=sae")
    (artifact,) = program.artifacts("sae")
    assert (artifact / "autoencoder" / "sae.safetensors").stat().st_mtime_ns == written
    assert (artifact / "health.json").read_bytes() == (undisturbed().artifacts("sae")[0] / "health.json").read_bytes()
    assert not (artifact / "training").exists()


DAMAGES = ("flipped", "truncated", "gone", "no list", "no spec", "a file", "stray")


def damage(folder: Path, how: str) -> None:
    """Harm an artifact in its largest file, or as a whole."""
    largest = max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    data = bytearray(largest.read_bytes())
    match how:
        case "flipped":
            data[-1] ^= 1
            largest.write_bytes(data)
        case "truncated":
            largest.write_bytes(data[: len(data) // 2])
        case "gone":
            largest.unlink()
        case "a file":
            shutil.rmtree(folder)
            folder.touch()
        case "stray":
            (folder / f"shard-99999{largest.suffix}").write_bytes(data)
        case _:
            (folder / {"no list": "files.json", "no spec": "spec.json"}[how]).unlink()


def test_damage_of_any_kind_in_every_kind_of_artifact_is_told_and_made_good(tmp_path: Path) -> None:
    program = undisturbed().copied(tmp_path / "study")
    damaged = {folder: DAMAGES[i % len(DAMAGES)] for i, folder in enumerate(program.artifacts())}
    assert {*damaged.values()} == {*DAMAGES}
    for folder, how in damaged.items():
        damage(folder, how)
    ended = program.done()
    for folder, how in damaged.items():
        assert (f"{folder.parent.name} {folder.name} is made anew" in ended.out) == (how != "stray")
        for stray in folder.glob("shard-99999*"):
            stray.unlink()
    assert results(program) == results(undisturbed())
