"""Sweeps from outside: what fails stops nothing else, what is killed is redone, and who launches the jobs."""

import json
import time

import pytest
from small_program import World

from difflens.store.exits import NO_SLURM


def jobs(difflens: World) -> dict[str, dict]:
    """The status of every job of every sweep."""
    found = difflens.folder.glob("outputs/sweeps/*/*/status.json")
    return {path.parent.name: json.loads(path.read_text()) for path in sorted(found)}


def test_one_failing_job_stops_no_other_and_the_same_command_redoes_it_alone(difflens):
    sweep = ("-m", "task=fails", "attribute=gender,age,race")
    code, out, err = difflens(*sweep)
    assert code == 1 and all(line.startswith("difflens: error: ") for line in err.splitlines())
    assert err.splitlines()[-1].startswith("difflens: error: 1 of 3 jobs failed: 1 (task=fails attribute=age).")
    first = jobs(difflens)
    assert {name: job["status"] for name, job in first.items()} == {"0": "done", "1": "failed", "2": "done"}
    table = " ".join(out[out.index("overrides") :].split())
    assert "attribute=gender done" in table and "attribute=age failed" in table and "the loss is NaN" in table
    left = next(difflens.folder.glob("outputs/sweeps/*/1")) / "half-written.json"
    left.touch()
    code, out, _ = difflens(*sweep, BROKEN="")
    again = jobs(difflens)
    assert code == 0 and {job["status"] for job in again.values()} == {"done"} and not left.exists()
    assert [again[name]["started"] == first[name]["started"] for name in "012"] == [True, False, True]
    assert out.count("was done before and is skipped") == 2
    assert (difflens.folder / "outputs" / "latest_sweep").resolve() == left.parents[1].resolve()
    difflens.option("attribute", "race", "name: race\nwords: {}\n")
    difflens(*sweep, BROKEN="")
    changed = jobs(difflens)
    assert [changed[name]["started"] == again[name]["started"] for name in "012"] == [True, True, False]


def test_a_killed_sweep_loses_the_job_in_flight_alone(difflens):
    sweep = ("-m", "task=hangs", "attribute=gender,age")
    process = difflens.start(*sweep, PAUSE="gender:0 age:600")
    deadline = time.monotonic() + 300
    while not list(difflens.folder.glob("outputs/sweeps/*/1/hanging")) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.kill()
    process.communicate(timeout=300)
    killed = jobs(difflens)
    assert [killed[name]["status"] for name in "01"] == ["done", "running"]
    code, _, err = difflens(*sweep, PAUSE="gender:600 age:0")
    again = jobs(difflens)
    assert code == 0, err
    assert again["0"] == killed["0"] and again["1"]["status"] == "done"


@pytest.mark.parametrize("launcher", ["joblib", "submitit_local"])
def test_jobs_of_other_launchers_share_a_stage_and_fail_alone(difflens, launcher):
    pytest.importorskip(f"hydra_plugins.hydra_{launcher.removesuffix('_local')}_launcher", reason="extra launchers")
    code, out, err = difflens("-m", "task=shares", "attribute=age,gender", f"hydra/launcher={launcher}")
    assert code == 1 and "1 of 2 jobs failed: 0 (task=shares attribute=age)" in err.splitlines()[-1], out + err
    assert [jobs(difflens)[name]["status"] for name in "01"] == ["failed", "done"]
    assert len((difflens.folder / "made.txt").read_text().split()) == 1, "two jobs made what they share"


def test_a_launcher_that_is_not_installed_names_its_extra(difflens):
    code, _, err = difflens("-m", "hydra/launcher=joblib_missing")
    assert code == 2 and err.startswith(
        "difflens: error: hydra/launcher=joblib_missing needs the launchers: pip install"
    )


def test_the_slurm_launcher_asks_for_a_gpu_and_says_where_there_is_no_slurm(difflens):
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason="extra launchers")
    code, out, err = difflens("hydra/launcher=slurm_gpu", "--cfg", "hydra", "-p", "hydra.launcher")
    assert code == 0, err
    assert "submitit_launcher.SlurmLauncher" in out and "gpus_per_node: 1" in out and "partition: gpu" in out
    code, _, err = difflens("-m", "hydra/launcher=slurm_gpu", "task=shares", PATH="")
    assert (code, err) == (2, f"difflens: error: {NO_SLURM}\n")
