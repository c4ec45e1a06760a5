"""A run folder tells the truth about its run: while it runs, when it ends and when it fails."""

import errno
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import DictConfig, OmegaConf

from difflens.store.artifacts import ArtifactStore
from difflens.store.errors import INTERRUPTED, ArtifactError, BuildError, UserError
from difflens.store.exits import ending
from difflens.store.past_run import RunArtifacts, newest_having
from difflens.store.ranks import check_launch
from difflens.store.run import REVISIONS, Run, git_state, open_run, seeds


@pytest.fixture
def cfg(tmp_path: Path) -> DictConfig:
    paths = {"outputs": str(tmp_path), "artifacts": "${paths.outputs}/artifacts"}
    return OmegaConf.create({"paths": paths, "seed": 7, "sae": {"seed": 8}, "lr": 0.1, "twice": "${lr}"})


def read(folder: Path, name: str) -> dict:
    return json.loads((folder / name).read_text())


def test_a_run_leaves_its_config_status_and_manifest(cfg, tmp_path):
    folder = tmp_path / "runs" / "first"
    with open_run(cfg, folder, overrides=["lr=0.1"]) as run:
        assert read(folder, "status.json")["status"] == "running"
        assert (tmp_path / "latest").resolve() == folder
        for _ in range(2):
            with run.stage("sae"):
                run.artifact("sae", {"k": 3}, lambda made: (made / "x").write_text("x"))
        run.write_json("metrics.json", {"rows": [{"fd": float("nan"), "n": 3}]})
    assert read(folder, "status.json")["status"] == "done"
    assert OmegaConf.load(folder / "config.yaml").twice == 0.1
    manifest = read(folder, "manifest.json")
    mark = run.store.path("sae", {"k": 3, "revision": REVISIONS["sae"]}).name
    assert manifest["artifacts"] == [{"kind": "sae", "fingerprint": mark, "reused": reused} for reused in (False, True)]
    assert manifest["seeds"] == {"seed": 7, "sae.seed": 8}
    assert manifest["overrides"] == ["lr=0.1"] and manifest["git"].keys() == {"commit", "dirty"}
    assert manifest["versions"]["torch"] and manifest["peak_memory_mib"] > 10 and manifest["seconds"].keys() == {"sae"}
    assert read(folder, "metrics.json") == {"rows": [{"fd": None, "n": 3}]}


def test_what_stages_ask_for_again_is_told_once(cfg, tmp_path, monkeypatch):
    said: list[str] = []
    with open_run(cfg, tmp_path / "runs" / "x") as run:
        monkeypatch.setattr(run, "say", said.append)
        # A clock of its own: on a busy machine reusing an artifact may take long enough to be told.
        monkeypatch.setattr("difflens.store.run.time.monotonic", lambda: 0.0)
        for _ in range(3):
            with run.stage("sae"):
                found = run.artifact("sae", {"k": 3}, lambda made: (made / "x").write_text("x"))
        monkeypatch.setattr("difflens.store.run.time.monotonic", iter(range(100)).__next__)
        with run.stage("sae"):
            pass
    assert said == [f"{found}: made", "sae: 0.0 s", "sae: 1.0 s"]


def test_a_raised_revision_leaves_older_artifacts_unused(cfg, tmp_path, monkeypatch):
    def made(name: str) -> tuple[str, bool]:
        with open_run(cfg, tmp_path / "runs" / name) as run:
            found = run.artifact("sae", {"k": 3}, lambda folder: (folder / "x").write_text(name))
        return (found.folder / "x").read_text(), run.manifest["artifacts"][0]["reused"]

    assert made("first") == ("first", False) and made("second") == ("first", True)
    monkeypatch.setitem(REVISIONS, "sae", REVISIONS["sae"] + 1)
    assert made("third") == ("third", False)
    monkeypatch.setitem(REVISIONS, "sae", REVISIONS["sae"] - 1)
    assert made("fourth") == ("first", True)


def test_a_disk_too_full_for_a_second_file_still_learns_that_the_run_failed(cfg, tmp_path, monkeypatch):
    def full(path: Path, text: str) -> Path:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    folder = tmp_path / "runs" / "x"
    with pytest.raises(ArtifactError, match="the first error"), open_run(cfg, folder):
        monkeypatch.setattr("difflens.store.files.write_text", full)
        monkeypatch.setattr("difflens.store.run.write_text", full)
        raise ArtifactError("the first error")
    assert read(folder, "status.json")["status"] == "failed" and "first" in read(folder, "status.json")["error"]


def test_latest_follows_the_newest_run_and_spares_a_real_folder(cfg, tmp_path):
    for name in ("a", "b"):
        with open_run(cfg, tmp_path / "runs" / name):
            pass
    assert (tmp_path / "latest").is_symlink() and (tmp_path / "latest").resolve().name == "b"
    (tmp_path / "latest").unlink()
    (tmp_path / "latest").mkdir()
    with open_run(cfg, tmp_path / "runs" / "c"):
        pass
    assert not (tmp_path / "latest").is_symlink()


@pytest.mark.parametrize(
    ("error", "line", "code"),
    [
        (RuntimeError("the loss\n is NaN"), "sae: RuntimeError: the loss is NaN", 1),
        (ValueError("from deep inside"), "sae: from deep inside", 1),
        (UserError("k=0 must be positive"), "sae: k=0 must be positive", 2),
        (KeyboardInterrupt(), INTERRUPTED, 130),
    ],
)
def test_a_failure_is_recorded_in_one_line_with_its_traceback_aside(cfg, tmp_path, error, line, code):
    folder = tmp_path / "runs" / "x"
    with pytest.raises(type(error)), open_run(cfg, folder) as run, run.stage("sae"):
        raise error
    status = read(folder, "status.json")
    assert (status["status"], status["error"], status["exit_code"]) == ("failed", line, code)
    assert "in test_a_failure_is_recorded" in (folder / "traceback.txt").read_text()
    assert read(folder, "manifest.json")["seconds"].keys() == {"sae"}


def test_a_config_that_does_not_resolve_is_recorded_too(cfg, tmp_path):
    cfg.lr = "???"
    with pytest.raises(Exception, match="lr") as caught, open_run(cfg, tmp_path / "runs" / "x"):
        pytest.fail("the task must not start")
    assert ending(caught.value).exit_code == 2
    assert read(tmp_path / "runs" / "x", "status.json")["status"] == "failed"


def test_other_ranks_write_no_run_files_but_share_the_artifact(cfg, tmp_path, monkeypatch):
    with open_run(cfg, tmp_path / "runs" / "x") as run:
        run.artifact("sae", {"k": 1}, lambda made: (made / "x").write_text("x"))
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    cfg.trainer = {"devices": 2}
    with open_run(cfg, tmp_path / "runs" / "y") as other:
        assert other.artifact("sae", {"k": 1}, lambda made: pytest.fail("made twice")).kind == "sae"
    assert not (tmp_path / "runs" / "y").exists()


LAUNCHES = [
    ({}, 1, True),
    ({}, 2, True),
    ({"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2"}, 2, True),  # torchrun
    ({"LOCAL_RANK": "0", "WORLD_SIZE": "2"}, 2, True),  # Lightning's children
    ({"LOCAL_RANK": "3", "WORLD_SIZE": "4"}, "auto", True),
    ({"SLURM_PROCID": "1", "SLURM_NTASKS": "2"}, 2, True),  # srun
    ({"SLURM_PROCID": "1", "SLURM_NTASKS": "2"}, [0, 1], True),
    ({"SLURM_PROCID": "0", "SLURM_NTASKS": "1"}, 2, True),  # an interactive shell of one task
    ({"SLURM_PROCID": "0", "SLURM_NTASKS": "8"}, 1, True),  # the script of a larger allocation
    ({"RANK": "0", "WORLD_SIZE": "4"}, 1, True),
    ({"RANK": "1"}, 1, False),
    ({"RANK": "abc"}, 1, False),
    ({"LOCAL_RANK": "1", "WORLD_SIZE": "2"}, 1, False),
    ({"SLURM_PROCID": "3", "SLURM_NTASKS": "8"}, 1, False),
    ({"RANK": "0"}, 2, False),
    ({"LOCAL_RANK": "0", "WORLD_SIZE": "4"}, 2, False),
    ({"RANK": "2", "WORLD_SIZE": "2"}, 2, False),
]


@pytest.mark.parametrize(("variables", "devices", "fits"), LAUNCHES)
def test_a_rank_left_in_the_environment_is_no_launch(monkeypatch, variables, devices, fits):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    config = {"trainer": {"devices": devices}}
    if fits:
        check_launch(config)
        if devices == 2 and "SLURM_NTASKS" not in variables:
            with pytest.raises(UserError, match="every rank would restart"):
                check_launch(config, sweep=True)
        assert devices != 1 or "SLURM_NTASKS" not in os.environ, "Lightning waits for the other tasks"
        return
    with pytest.raises(UserError, match=r"trainer.devices=.*env -u [A-Z_]*RANK|env -u SLURM_PROCID"):
        check_launch(config)


def test_artifacts_that_go_away_while_a_run_uses_them_end_it_in_one_line(cfg, tmp_path):
    with (
        pytest.raises(UserError, match=r"sae \w{16} was removed while this run used it"),
        open_run(cfg, tmp_path / "x") as run,
    ):
        made = run.artifact("sae", {}, lambda folder: (folder / "x").write_text("x"))
        (made.folder / "x").unlink()
        (made.folder / "x").read_text()
    assert "was removed" in read(tmp_path / "x", "status.json")["error"]


def instantiation(cause: Exception) -> BuildError:
    error = BuildError("sae", "difflens.sae.TopK")
    error.__cause__ = cause
    return error


def test_an_earlier_run_in_the_same_folder_is_not_taken_for_the_first_rank(tmp_path, monkeypatch):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    owner = {"pid": ended.pid, "host": socket.gethostname()}
    (tmp_path / "status.json").write_text(json.dumps(owner))
    run = Run(tmp_path, ArtifactStore(tmp_path), rank=1)
    assert run.first_process() == {}
    monkeypatch.setattr("difflens.store.run.START_TOGETHER", -1)
    assert run.first_process() == owner


WEIGHTS = "Error(s) in loading state_dict for UNet: " + "size mismatch " * 999
ENDINGS = [
    (ValueError("k=0"), None, 2, "k=0"),
    (ValueError("k=0"), "sae", 1, "sae: k=0"),
    (ArtifactError("x is truncated"), None, 1, "x is truncated"),
    (instantiation(ValueError("k=0")), None, 2, "sae (difflens.sae.TopK): k=0"),
    (instantiation(RuntimeError("no memory")), None, 1, "sae (difflens.sae.TopK): RuntimeError: no memory"),
    (instantiation(RuntimeError(WEIGHTS)), None, 2, "sae (difflens.sae.TopK): RuntimeError: Error(s) in loading"),
    (instantiation(KeyError("vit")), None, 2, "sae (difflens.sae.TopK): KeyError: 'vit'"),
    (OSError(errno.ENOSPC, "full", "x.png"), "report", 1, "report: the disk is full (x.png); free some space and run"),
    (
        OSError(errno.EACCES, "Permission denied", "x.png"),
        "report",
        1,
        "report: x.png: Permission denied; set paths.out",
    ),
    (OSError(errno.EIO, "Input error", "x.png"), "report", 1, "report: OSError: [Errno 5] Input error: 'x.png'"),
]


@pytest.mark.parametrize(("error", "stage", "code", "words"), ENDINGS)
def test_exit_codes_tell_a_wrong_configuration_from_a_failed_run_and_lines_what_to_do(error, stage, code, words):
    found = ending(error, stage=stage)
    assert found.exit_code == code and found.line.startswith(words) and len(found.line) < 900
    assert found.line.endswith("another model, or a damaged one?") or "state_dict" not in found.line


def test_seeds_are_found_wherever_they_are():
    config = {"seed": 1, "a": [{"fit": {"base_seed": 2, "seeds": 4}}], "b": {"seed": None}}
    assert seeds(config) == {"seed": 1, "a.0.fit.base_seed": 2}


def test_an_installed_package_claims_no_commit(monkeypatch, tmp_path):
    monkeypatch.setattr("difflens.store.run.__file__", str(tmp_path / "site-packages" / "difflens" / "provenance.py"))
    assert git_state() == {"commit": None, "dirty": None}


def test_of_latest_the_newest_that_has_what_is_asked_for_is_taken_and_told(cfg, tmp_path, caplog):
    for at, (name, artifacts) in enumerate({"a": ["sae"], "b": ["sae", "steered"], "c": ["sae"], "d": []}.items()):
        folder = tmp_path / "runs" / "today" / name
        with open_run(cfg, folder) as run:
            for kind in artifacts:
                run.artifact(kind, {"k": name}, lambda made: (made / "x").write_text("x"))
            if kind == "steered":
                run.write_json("metrics.json", {})
        os.utime(folder / "config.yaml", (at, at))
    latest = tmp_path / "latest"
    assert RunArtifacts(latest, "sae").run.name == "c" and str(tmp_path / "runs" / "today" / "c") in caplog.text
    assert RunArtifacts(latest, "steered").run.name == newest_having(latest, "metrics.json").name == "b"
    assert newest_having(latest, "config.yaml") == newest_having(latest, "nothing") == latest
    with pytest.raises(ValueError, match="has no steered"):
        RunArtifacts(tmp_path / "runs" / "today" / "c", "steered").of("steered")
