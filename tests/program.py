"""The program in processes of its own, forked from one that has already imported torch: a start costs no seconds."""

import itertools
import json
import multiprocessing
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock
from network import refuse_network

TINY = {
    "model.steps": 4,
    "model.micro_batch": 8,
    "data.images": 64,
    "data.buffer": 8192,
    "sae.expansion": 2,
    "sae.k": 8,
    "sae.training.tokens": 40_000,
    "sae.training.batch": 1024,
    "probe.iterations": 5,
    "attribution.images_per_class": 8,
    "metric.images": 16,
    "metric.reference.images": 32,
    "metric.kid_subset": 8,
    "metric.cards": 2,
    "mitigation.calibration.images": 16,
    "mitigation.calibration.refinements": 1,
    "mitigation.calibration.first": 1,
    "mitigation.calibration.largest": 2,
}
"""A study of seconds on the shipped miniature."""

PRELOADED = [
    "open_clip",  # seconds, which else every program that measures something would take
    "difflens.cli.job",
    "difflens.pipeline",
    "difflens.models.model",
    "difflens.miniature.judges",
    "difflens.miniature.clip",
    "difflens.miniature.reference",
]
PATIENCE = 600
"""Seconds after which a program counts as hanging."""


class Ended(NamedTuple):
    """How the program ended."""

    code: int | None
    out: str
    err: str

    @property
    def complaint(self) -> str:
        """The one line on stderr; there must be no other, and no traceback anywhere."""
        assert "Traceback" not in self.out + self.err and self.err.count("\n") == 1, self.err + self.out
        assert self.err.startswith("difflens: error: "), self.err
        return self.err.removeprefix("difflens: error: ").strip()


def _child(folder: str, heard: str, arguments: list[str], prepare: Callable[[], None] | None) -> None:
    refuse_network()
    os.chdir(folder)
    for number, name in ((1, "out.txt"), (2, "err.txt")):
        os.dup2(os.open(os.path.join(heard, name), os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    if prepare is not None:
        prepare()
    sys.argv = ["difflens", *arguments]
    from difflens.main import main

    main()


def count_samples(file: str, die_in: int | None = None) -> None:
    """Let this process add a byte to a file for every micro-batch it begins, and be killed in the middle of one of them."""
    from difflens.models.model import DiffusionModel

    begun = itertools.count(1)
    whole = DiffusionModel._sample_batch

    def counted(*arguments: Any) -> Any:
        with open(file, "a") as counter:
            counter.write("x")
        if next(begun) == die_in:
            os.kill(os.getpid(), signal.SIGKILL)
        return whole(*arguments)

    DiffusionModel._sample_batch = counted  # type: ignore[method-assign]


def speak_at_once() -> None:
    """Let this process tell of every part of its stages that is done, not of one now and then."""
    from difflens.store import progress

    progress.PATIENCE = 0.0


class Program:
    """The program started in one folder with the tiny settings; `outputs/` there holds its results.

    What it says is kept in the folder `heard`, its own unless told otherwise.
    """

    def __init__(self, folder: Path, *, heard: Path | None = None) -> None:
        self.folder, self.heard = folder, heard or folder
        folder.mkdir(parents=True, exist_ok=True)
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(PRELOADED)

    def start(self, *overrides: str, prepare: Callable[[], None] | None = None) -> BaseProcess:
        """A running program; `prepare` is called in it first."""
        tiny = [f"{key}={value}" for key, value in TINY.items()]
        process = self._context.Process(
            target=_child, args=(str(self.folder), str(self.heard), [*tiny, *overrides], prepare)
        )
        process.start()
        return process

    def ended(self, process: BaseProcess) -> Ended:
        """How a started program ends."""
        process.join(PATIENCE)
        if process.is_alive():
            process.kill()
            process.join()
        return Ended(process.exitcode, *((self.heard / f"{name}.txt").read_text() for name in ("out", "err")))

    def __call__(self, *overrides: str, prepare: Callable[[], None] | None = None) -> Ended:
        return self.ended(self.start(*overrides, prepare=prepare))

    def done(self, *overrides: str, prepare: Callable[[], None] | None = None) -> Ended:
        """How a program ends that must succeed."""
        ended = self(*overrides, prepare=prepare)
        assert ended.code == 0, ended.err + ended.out
        return ended

    def refused(self, *overrides: str) -> str:
        """The line of a program that must find a mistake of the user's."""
        ended = self(*overrides)
        assert ended.code == 2, ended.err + ended.out
        return ended.complaint

    def stop(self, process: BaseProcess, number: int, *, when: Callable[[], bool]) -> Ended:
        """How a started program ends that is sent a signal as soon as something has happened."""
        deadline = time.monotonic() + PATIENCE
        while not when():
            assert process.is_alive() and time.monotonic() < deadline, self.ended(process)
            time.sleep(0.001)
        assert process.pid is not None
        os.kill(process.pid, number)
        return self.ended(process)

    @property
    def latest(self) -> Path:
        """The last run's folder."""
        return self.folder / "outputs" / "latest"

    def json(self, name: str) -> Any:
        """A JSON file of the last run."""
        return json.loads((self.latest / name).read_text())

    @property
    def reused(self) -> dict[str, bool]:
        """Whether the last run found an artifact of each kind that it asked for, by the last of the kind."""
        return {entry["kind"]: entry["reused"] for entry in self.json("manifest.json")["artifacts"]}

    def used(self, kind: str) -> Path:
        """The artifact of a kind that the last run made or used last."""
        made = {entry["kind"]: entry["fingerprint"] for entry in self.json("manifest.json")["artifacts"]}
        return self.folder / "outputs" / "artifacts" / kind / made[kind]

    def artifacts(self, kind: str = "*") -> list[Path]:
        """Finished artifacts, of one kind or of all."""
        return sorted(path for path in (self.folder / "outputs" / "artifacts").glob(f"{kind}/*") if not path.suffix)

    def unfinished(self, kind: str = "*") -> list[Path]:
        """What is not finished."""
        return sorted((self.folder / "outputs" / "artifacts").glob(f"{kind}/*.partial"))

    def copied(self, folder: Path) -> "Program":
        """The program with a copy of all results so far."""
        shutil.copytree(self.folder, folder, symlinks=True)
        return Program(folder)


def own_package(program: Program, module: str, code: str, choice: str, text: str) -> Callable[..., Ended]:
    """Put a user's package beside a program, and a file of a configuration group that names it; then start it with both."""
    (program.folder / f"{module}.py").write_text(code)
    path = program.folder / "conf" / f"{choice}.yaml"
    path.parent.mkdir(parents=True)
    path.write_text(text)
    return partial(program, f"--config-dir={path.parents[1]}", prepare=partial(let_in, str(program.folder), module))


def let_in(folder: str, module: str) -> None:
    """What a user does before the start: the package can be imported, and is named in the environment."""
    sys.path.insert(0, folder)
    os.environ["DIFFLENS_ALLOW_TARGETS"] = module


SHARED: list[Path] = []
"""The folder that all workers of this run of the tests have in common; `conftest.py` fills it in."""


def undisturbed() -> Program:
    """A finished study that nothing has disturbed, made once for all workers; to be read and copied only.

    What it said lies in the folder beside its own that ends in `.heard`.
    """
    folder = SHARED[0] / "undisturbed"
    heard, done = folder.with_suffix(".heard"), folder.with_suffix(".done")
    heard.mkdir(exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):
        if not done.exists():
            Program(folder, heard=heard).done(prepare=speak_at_once)
            done.touch()
    return Program(folder)
