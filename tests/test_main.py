"""The program from outside: its help, its exit codes and its one clear line, in processes of their own."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from difflens.exits import NO_SLURM
from difflens.main import conf_folder
from difflens.usage import config_groups

TASKS = """
import os
import sys
import time

def quiet(cfg, run):
    with run.stage("sae"):
        run.artifact("sae", {"attribute": cfg.attribute.name}, lambda folder: (folder / "x").write_text("x"))

def fails(cfg, run):
    with run.stage("sae"):
        if cfg.attribute.name == os.environ.get("BROKEN", "age"):
            raise RuntimeError("the loss\\nis NaN")

def shares(cfg, run):
    def make(folder):
        time.sleep(1)
        with open("made.txt", "a") as file:
            file.write("once ")

    run.artifact("sae", {}, make)
    fails(cfg, run)

def refuses(cfg, run):
    raise ValueError("sae.k=0 must be positive.")

def hangs(cfg, run):
    with run.stage("sae"):
        (run.folder / "hanging").touch()
        try:
            pauses = dict(pair.split(":") for pair in os.environ.get("PAUSE", "").split())
            time.sleep(float(pauses.get(cfg.attribute.name, 600)))
        except KeyboardInterrupt:
            if cfg.attribute.name == "age":
                # What Lightning does in the middle of a training.
                sys.exit(1)
            if cfg.attribute.name == "race":
                # What torch does where it asks an object for its shape.
                raise ValueError("could not determine the shape") from None
            raise
"""

CONFIG = """
defaults:
  - _self_
  - paths: default
  - hydra: default
  - task: quiet
  - attribute: gender
name: ${task.name}
seed: 3
"""


class World:
    """A folder with its own small configuration and tasks, and the program started in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.conf = folder / "conf"
        for group in ("hydra", "paths"):
            shutil.copytree(conf_folder() / group, self.conf / group)
        (self.conf / "config.yaml").write_text(CONFIG)
        (folder / "difflens_testing_tasks.py").write_text(TASKS)
        for task in ("quiet", "fails", "shares", "refuses", "hangs"):
            self.option("task", task, f"name: {task}\n_target_: difflens_testing_tasks.{task}\n")
        for attribute in ("gender", "age", "race"):
            self.option("attribute", attribute, f"name: {attribute}\n")

    def option(self, group: str, name: str, text: str) -> None:
        (self.conf / group).mkdir(exist_ok=True)
        (self.conf / group / f"{name}.yaml").write_text(text)

    def start(self, *arguments: str, **variables: str) -> subprocess.Popen[str]:
        package = str(Path(__file__).parents[1])
        env = {name: value for name, value in os.environ.items() if name not in ("HYDRA_FULL_ERROR", "DIFFLENS_DEBUG")}
        env |= {"PYTHONPATH": f"{package}:{self.folder}", "DIFFLENS_ALLOW_TARGETS": "difflens_testing_tasks"}
        command = [sys.executable, "-m", "difflens.main", f"--config-path={self.conf}", *arguments]
        pipe = subprocess.PIPE
        return subprocess.Popen(command, cwd=self.folder, env=env | variables, stdout=pipe, stderr=pipe, text=True)

    def __call__(self, *arguments: str, **variables: str) -> tuple[int, str, str]:
        with self.start(*arguments, **variables) as process:
            try:
                out, err = process.communicate(timeout=300)
            finally:
                process.kill()
        return process.returncode, out, err

    def status(self) -> dict:
        return json.loads((self.folder / "outputs" / "latest" / "status.json").read_text())


@pytest.fixture
def difflens(tmp_path: Path) -> World:
    return World(tmp_path)


def test_help_names_every_group_and_example_within_a_second_without_torch():
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    code = (
        "import sys; sys.argv = ['difflens', '--help']; from difflens.main import main; main();"
        "print(sorted({'torch', 'lightning', 'diffusers', 'wandb', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.stdout.endswith("[]\n")
    assert (after.ru_utime - before.ru_utime) + (after.ru_stime - before.ru_stime) < 1
    groups = {group for group in config_groups(conf_folder()) if "/" not in group}
    for group in groups - {"hydra", "paths", "population", "recipe"}:
        assert f"\n  {group} " in done.stdout
    assert done.stdout.count("\n  difflens ") >= 5 and max(map(len, done.stdout.splitlines())) <= 120


def test_completion_offers_the_choices_without_torch(difflens):
    line = f"difflens --config-path={difflens.conf} attribute="
    code, out, _ = difflens("-sc", "query=bash", COMP_LINE=line, COMP_POINT="999")
    assert code == 0 and {"attribute=age", "attribute=gender", "attribute=race"} <= {*out.split()}


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("attribute=gendr", "no such attribute; available: age, gender, race. Did you mean 'gender'?"),
        ("atribute=age", "Did you mean 'attribute'?"),
        ("paths.outptus=x", "Did you mean 'paths.outputs'?"),
        ("attribute=age,race", "add -m to run one job per value"),
        ("task._target_=os.system", "_target_ of task is 'os.system'"),
        ("task._target_=difflens_testing_tasks.quite", "there is no function 'quite'"),
        ("task=refuses", "sae.k=0 must be positive."),
        ("seed=???", "Missing mandatory value: seed"),
        ("+x=${nope}", "x: Interpolation key 'nope' not found"),
    ],
)
def test_a_mistake_in_the_configuration_is_one_line_and_exit_2(difflens, argument, words):
    code, _, err = difflens(argument)
    assert code == 2
    assert err.startswith("difflens: error: ") and err.count("\n") == 1 and words in err


def test_a_run_leaves_done_and_its_artifact_is_reused_by_the_next(difflens):
    code, out, err = difflens()
    assert (code, err) == (0, "") and ": made\n" in out and difflens.status()["status"] == "done"
    assert ": reused\n" in difflens()[1]
    runs = list((difflens.folder / "outputs" / "runs").glob("*/*_quiet"))
    assert len(runs) == 2 and {path.name for path in runs[0].iterdir()} == {
        "config.yaml",
        "status.json",
        "manifest.json",
        "difflens.log",
    }


def test_a_failing_task_is_one_line_exit_1_and_a_failed_status(difflens):
    code, _, err = difflens("task=fails", "attribute=age")
    assert code == 1 and err.count("\n") == 1
    assert err.startswith("difflens: error: sae: RuntimeError: the loss is NaN [outputs/runs/")
    assert difflens.status()["status"] == "failed"
    assert difflens.status()["error"] == "sae: RuntimeError: the loss is NaN"
    code, _, err = difflens("task=fails", "attribute=age", HYDRA_FULL_ERROR="1")
    assert code == 1 and "Traceback" in err


@pytest.mark.parametrize(
    ("number", "attribute"), [(signal.SIGINT, "gender"), (signal.SIGTERM, "age"), (signal.SIGINT, "race")]
)
def test_an_interrupted_run_says_so_and_how_to_go_on(difflens, number, attribute):
    process = difflens.start("task=hangs", f"attribute={attribute}")
    deadline = time.monotonic() + 300
    while not list(difflens.folder.glob("outputs/runs/*/*/hanging")) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(number)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 130
    assert err == "difflens: error: interrupted; run the same command again to go on\n"
    assert difflens.status()["status"] == "failed" and "interrupted" in difflens.status()["error"]


def jobs(difflens: World) -> dict[str, dict]:
    """The status of every job of every sweep."""
    found = difflens.folder.glob("outputs/sweeps/*/*/status.json")
    return {path.parent.name: json.loads(path.read_text()) for path in sorted(found)}


def test_one_failing_job_stops_no_other_and_the_same_command_redoes_it_alone(difflens):
    sweep = ("-m", "task=fails", "attribute=gender,age,race")
    code, out, err = difflens(*sweep)
    assert code == 1 and "Traceback" not in err
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
    assert not list(difflens.folder.glob("outputs/sweeps/*/*/job.lock"))


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
