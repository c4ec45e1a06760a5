"""The whole program in two processes, as `trainer.devices=2` starts them: the files of one process, and one ending."""

import os
import shutil
import signal
import socket
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import torch
from program import Ended, Program, count_samples

from difflens.store.errors import INTERRUPTED

STRONG = ["mitigation.assignment=exact", "mitigation.calibration.first=8", "mitigation.calibration.largest=8"]
STRONG += ["sae.training.tokens=12000"]


class TwoProcesses:
    """Runs of the program in two processes that share all folders; each has its stdout and stderr for itself."""

    def __init__(self, folder: Path) -> None:
        self.ranks = [Program(folder), Program(folder / "rank_1")]
        self.counter = folder / "sampled"
        self.shared = ["trainer.devices=2", f"paths.outputs={folder}/outputs", f"hydra.run.dir={folder}/outputs/runs/x"]

    def start(self, *overrides: str, spoil: int | None = None, die_in: int | None = None) -> list[BaseProcess]:
        """Both processes, of which the rank `spoil` cannot make images, and the second is killed in one micro-batch."""
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            port = int(found.getsockname()[1])
        prepare = partial(as_rank, port=port, spoil=spoil, die_in=die_in, counter=str(self.counter))
        return [
            program.start(*self.shared, *overrides, prepare=partial(prepare, rank))
            for rank, program in enumerate(self.ranks)
        ]

    def __call__(self, *overrides: str, spoil: int | None = None, die_in: int | None = None) -> list[Ended]:
        processes = self.start(*overrides, spoil=spoil, die_in=die_in)
        return [program.ended(process) for program, process in zip(self.ranks, processes, strict=True)]


def as_rank(rank: int, *, port: int, spoil: int | None, die_in: int | None, counter: str) -> None:
    """Make this process one that Lightning's launcher has started."""
    count_samples(counter, die_in if rank else None)
    os.environ |= {"LOCAL_RANK": str(rank), "NODE_RANK": "0", "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    if rank == spoil:
        pytest.MonkeyPatch().setattr("difflens.training.steering_module.SteeringModule.predict_step", no_memory)


def take_half_the_threads() -> None:
    """As many as Lightning leaves each of two processes: how sums of float32 round depends on it."""
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // 2))


def no_memory(*_: object) -> None:
    raise MemoryError("no memory left")


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> TwoProcesses:
    """A study that two processes have made from nothing."""
    study = TwoProcesses(tmp_path_factory.mktemp("two"))
    first, second = study(*STRONG)
    assert first.code == second.code == 0, first.err + second.err
    assert "report.html" in first.out and second.out == second.err == "", "the second process speaks"
    assert not study.ranks[0].unfinished()
    return study


def files(folder: Path, pattern: str) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.glob(pattern))}


def test_two_processes_make_the_images_and_the_metrics_of_one(both: TwoProcesses, tmp_path: Path) -> None:
    alone = both.ranks[0].copied(tmp_path / "alone")
    remade = ("activations", "attribution", "calibration", "images", "steered", "metrics")
    for kind in remade:
        shutil.rmtree(alone.folder / "outputs" / "artifacts" / kind)
    alone.done(*STRONG, prepare=take_half_the_threads)
    made, expected = (files(program.latest, "images/**/*.png") for program in (both.ranks[0], alone))
    assert len(made) >= 16 + 16 and made == expected
    assert made["images/original/1.png"] != made["images/difflens/1.png"]
    assert files(both.ranks[0].latest, "metrics.json") == files(alone.latest, "metrics.json")
    assert [path.name for path in both.ranks[0].artifacts()] == [path.name for path in alone.artifacts()]
    for kind in remade:
        one, two = (
            files(program.folder / "outputs" / "artifacts" / kind, "*/**/*.safetensors")
            for program in (alone, both.ranks[0])
        )
        assert one == two, kind


def test_after_a_kill_two_processes_go_on_from_what_both_have_finished(both: TwoProcesses, tmp_path: Path) -> None:
    settings = ["task=steer", *STRONG, "metric.base_seed=3003"]
    alone = both.ranks[0].copied(tmp_path / "alone")
    before = both.counter.stat().st_size
    first, second = both(*settings, die_in=2)
    assert (first.code, second.code) == (1, -signal.SIGKILL)
    assert [end.code for end in both(*settings)] == [0, 0]
    assert both.counter.stat().st_size == before + 2 + 2 + 1, "two originals, two edited, and the one in flight"
    alone.done(*settings, prepare=take_half_the_threads)
    one, two = (
        files(program.folder / "outputs" / "artifacts", "*/*/shard-*.safetensors") for program in (alone, both.ranks[0])
    )
    assert one == two


@pytest.mark.parametrize("rank", [0, 1])
def test_where_one_process_fails_both_end_with_one_line(both: TwoProcesses, rank: int) -> None:
    ended = both("mitigation.strength=1.5", "task=steer", spoil=rank)
    line = f"{'rank 1: ' if rank else ''}steer: MemoryError: no memory left"
    assert [end.code for end in ended] == [1, 1]
    assert ended[rank].complaint.startswith(line) and ended[1 - rank].err == ""
    status = both.ranks[0].json("status.json")
    assert (status["status"], status["error"]) == ("failed", line)
    assert "no memory left" in (both.ranks[0].latest / "traceback.txt").read_text()


def test_sigterm_in_the_middle_of_a_training_ends_both(both: TwoProcesses) -> None:
    first, second = both.start("task=sae", "seed=1", "sae.training.tokens=100000")
    folder = both.ranks[0].folder / "outputs" / "artifacts" / "sae"
    ended = both.ranks[0].stop(first, signal.SIGTERM, when=lambda: any(folder.glob("*.partial/training/last.ckpt")))
    assert (ended.code, ended.complaint, both.ranks[0].json("status.json")["error"]) == (130, INTERRUPTED, INTERRUPTED)
    assert both.ranks[1].ended(second).err == ""
