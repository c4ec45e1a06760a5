"""A run that fails before its first stage is told to the tracker too, and a redone job of a sweep keeps its run."""

from pathlib import Path

from program import Program
from wandb_file import records

OFFLINE = ("logger=wandb", "logger.mode=offline")


def test_a_failed_check_is_a_finished_run_and_a_redone_job_replaces_its_own(tmp_path: Path) -> None:
    program = Program(tmp_path)
    found: list[list[str]] = []
    for _ in range(2):
        ended = program(*OFFLINE, "sae.k=998,999", "-m")
        assert ended.code == 2, ended.err
        jobs = [records(folder) for folder in sorted(tmp_path.glob("outputs/sweeps/*/[01]"))]
        assert [job["exit"][0].exit_code for job in jobs] == [2, 2]
        assert {job["run"][0].run_group for job in jobs} == {next(tmp_path.glob("outputs/sweeps/*")).name}
        found.append([job["run"][0].run_id for job in jobs])
    first, second = found
    assert first == second and len(set(first)) == 2
