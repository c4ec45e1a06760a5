"""The program from outside: its help, its exit codes and its one clear line, in processes of their own."""

import signal
import subprocess
import sys
import time

import pytest

from difflens.cli.usage import config_groups
from difflens.main import conf_folder


def test_help_names_every_group_and_example_without_torch():
    code = (
        "import sys; sys.argv = ['difflens', '--help']; from difflens.main import main; main();"
        "print(sorted({'torch', 'lightning', 'diffusers', 'wandb', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("[]\n")
    groups = {group for group in config_groups(conf_folder()) if "/" not in group} - {"preset", "tuning"}
    for group in groups:
        assert f"\n  {group} " in done.stdout
    for name in ("steer", "x16", "double", "mean_difference", "tensorboard", "table_sd_race"):
        assert f" {name}" in done.stdout
    assert done.stdout.count("\n  difflens ") >= 5 and max(map(len, done.stdout.splitlines())) <= 120


def test_whoever_stops_listening_to_the_help_sees_no_traceback():
    code = "import sys; sys.argv = ['difflens', '--help']; from difflens.main import main; main()"
    # Closed before a line is written, as by `head` that has seen enough.
    shell = f'{sys.executable} -c "{code}" | true; exit ${{PIPESTATUS[0]}}'
    done = subprocess.run(["bash", "-c", f"sleep 0; {shell}"], capture_output=True, text=True)
    assert done.returncode in (0, 128 + signal.SIGPIPE) and done.stderr == ""


def test_completion_offers_the_choices_without_torch(difflens):
    line = f"difflens --config-path={difflens.conf} attribute="
    code, out, _ = difflens("-sc", "query=bash", COMP_LINE=line, COMP_POINT="999")
    assert code == 0 and {"attribute=age", "attribute=gender", "attribute=race"} <= {*out.split()}


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("attribute=gendr", "no such attribute; available: age, gender, race. Did you mean 'gender'?"),
        ("attribute=7", "attribute=7: no such attribute; available: age, gender, race."),
        ("atribute=age", "Did you mean 'attribute'?"),
        ("paths.outptus=x", "Did you mean 'paths.outputs'?"),
        ("attribute=age,race", "add -m to run one job per value"),
        ("task._target_=os.system", "_target_ of task is 'os.system'"),
        ("task._target_=difflens_testing_tasks.quite", "there is no class or function 'quite'"),
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


def test_a_rank_left_behind_by_a_scheduler_neither_waits_nor_changes_anything(difflens):
    for variables in ({"RANK": "1"}, {"SLURM_PROCID": "3", "SLURM_NTASKS": "8"}, {"LOCAL_RANK": "x"}):
        code, out, err = difflens(**variables)
        assert (code, out) == (2, "") and err.count("\n") == 1 and f"(env -u {next(iter(variables))} " in err
    assert difflens("atribute=age", RANK="1")[2].startswith("difflens: error: atribute")
    assert difflens(RANK="0", WORLD_SIZE="4", SLURM_PROCID="0", SLURM_NTASKS="4")[0] == 0


SWALLOWS = """
import signal, time
from difflens.store import errors
errors.SECONDS_TO_ASK_AGAIN = 0.2
signal.signal(signal.SIGTERM, errors.interrupt)
try:
    signal.raise_signal(signal.SIGTERM)
except:
    pass
try:
    time.sleep(60)
finally:
    time.sleep(1)
    print("tidied up")
"""


def test_an_interruption_that_a_library_swallows_comes_again_and_leaves_the_tidying_up_alone():
    done = subprocess.run([sys.executable, "-c", SWALLOWS], capture_output=True, text=True, timeout=30)
    assert done.stdout == "tidied up\n" and done.stderr.count("\nKeyboardInterrupt\n") == 1
