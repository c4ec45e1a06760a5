"""One run: its folder, status, manifest (commit, versions, machine, seeds, memory), stages and artifacts."""

import importlib.metadata
import io
import json
import logging
import math
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from difflens import __version__
from difflens.store.artifacts import Artifact, ArtifactStore, removed
from difflens.store.errors import one_line, was_interrupted
from difflens.store.exits import ending
from difflens.store.files import point_latest, write_json, write_text
from difflens.store.fingerprints import fingerprint
from difflens.store.locks import is_gone, this_process
from difflens.store.ranks import TRACEBACK, check_launch, first_to_fail, process_rank, rank_prefix
from difflens.store.targets import check_targets, entries

log = logging.getLogger(__name__)

REVISIONS = {
    "activations": 1,
    "attribution": 3,
    "fit": 1,
    "calibration": 5,
    "cards": 3,
    "images": 3,
    "localisation": 2,
    "metrics": 8,
    "probe": 1,
    "reading": 1,
    "sae": 2,
    "separation": 1,
    "silencing": 1,
    "states": 1,
    "statistics": 1,
    "steered": 8,
}
"""How often the code that makes a kind of artifact has changed its numbers; a raised one leaves older artifacts unused."""

START_TOGETHER = 30.0
"""Seconds within which all ranks of a distributed run have started."""


def finite(data: Any) -> Any:
    """The data with numbers that JSON does not know (an undefined metric's NaN) as null."""
    if isinstance(data, Mapping):
        return {key: finite(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [finite(value) for value in data]
    # JSON has no NaN: what Python writes for it is refused by most other readers.
    return None if isinstance(data, float) and not math.isfinite(data) else data


class Run:
    """What a task is given besides the configuration.

    Attributes:
        folder: the run folder: config.yaml, status.json, manifest.json and what the task writes.
        store: the artifacts shared by all runs.
        rank: 0, or this process's rank in a distributed run.
        speaks: whether this process writes the run folder and tells the user: the first rank, or the first that failed.
        manifest: what manifest.json says.
        group: the name of the sweep it is a job of, None for a run of its own.
        id: the same for every attempt at this job of the sweep, None for a run of its own.
        used: the artifacts it needed so far, each with whether it was there already.
    """

    def __init__(self, folder: Path, store: ArtifactStore, *, rank: int = 0) -> None:
        """Nothing is written yet: `open_run` keeps the folder's files."""
        self.folder = folder
        self.store = store
        self.rank = rank
        self.speaks = rank == 0
        self.manifest: dict[str, Any] = {"seconds": {}, "artifacts": []}
        self.failed_stage: str | None = None
        self.group: str | None = None
        self.id: str | None = None
        self.used: list[tuple[Artifact, bool]] = []
        self._endings: list[Callable[[int], None]] = []
        self._opened = time.monotonic()

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Record the block's seconds under `name` and say them in one line; a repeated name adds up."""
        start, again = time.monotonic(), name in self.manifest["seconds"]
        try:
            yield
        except BaseException:
            # An exception passes the innermost stage first, which is the one to name.
            self.failed_stage = self.failed_stage or name
            raise
        finally:
            seconds = time.monotonic() - start
            # Of a stage that fails too: the manifest is to tell where the time went.
            self.manifest["seconds"][name] = round(self.manifest["seconds"].get(name, 0.0) + seconds, 3)
        self.write_manifest()
        # Stages ask each other for what they need: that it is still there, and took no time, is told once.
        if not again or seconds >= 0.05:
            self.say(f"{name}: {seconds:.1f} s")

    def artifact(
        self,
        kind: str,
        spec: Mapping[str, Any],
        make: Callable[[Path], object],
        *,
        resumable: bool = False,
        together: bool = False,
    ) -> Artifact:
        """The artifact of this spec and this revision of the code: reused if there is one, else made by `make(folder)`.

        In a distributed run the first rank makes it while the others wait, or take part if `together`: then they call
        `make` too, in which no two ranks may write the same file, and the first must end last.
        """
        assert kind in REVISIONS, f"REVISIONS lacks {kind!r}"
        # Into the fingerprint: artifacts of older code stay where they are and are no longer found.
        spec = {**spec, "revision": REVISIONS[kind]}
        if self.rank == 0:
            artifact, reused = self.store.get_or_create(kind, spec, make, resumable=resumable)
        else:
            artifact, reused = self.store.join(kind, spec, make if together else None, first=self.first_process), True
        told = any(artifact == earlier for earlier, _ in self.used)
        self.used.append((artifact, reused))
        self.manifest["artifacts"].append({"kind": kind, "fingerprint": artifact.fingerprint, "reused": reused})
        self.write_manifest()
        if not (reused and told):
            self.say(f"{artifact}: {'reused' if reused else 'made'}")
        return artifact

    def first_process(self) -> dict[str, Any]:
        """Process id and host of the run's first rank, as status.json tells; empty before it does.

        A folder used again holds an earlier run's status until the first rank has started: while this process is young, a
        first rank that has ended is taken for the earlier one's.
        """
        with suppress(OSError, ValueError, KeyError):
            status = json.loads((self.folder / "status.json").read_text(encoding="utf-8"))
            owner = {key: status[key] for key in ("pid", "host")}
            # That a first rank has ended is an error, but not while the status may be an earlier run's.
            if time.monotonic() - self._opened > START_TOGETHER or not is_gone(owner):
                return owner
        return {}

    def at_end(self, close: Callable[[int], None]) -> None:
        """Have `close(exit_code)` called when the run ends, however it does; trouble in there ends no run."""
        self._endings.append(close)

    def close(self, exit_code: int) -> None:
        """Call what was registered with `at_end`."""
        for close in self._endings:
            try:
                close(exit_code)
            # A tracker that fails at the very end must take neither the result nor the exit code with it.
            except Exception as error:
                log.warning("%s", one_line(error))

    def keep_config(self, config: Mapping[str, Any]) -> None:
        """Write the resolved configuration into the run folder."""
        if self.rank == 0:
            write_text(self.folder / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(dict(config))))

    def write_json(self, name: str, data: Any) -> Path:
        """Write a JSON file into the run folder atomically; NaN and infinities become null."""
        path = self.folder / name
        return write_json(path, finite(data)) if self.speaks else path

    def write_last(self, name: str, data: Any) -> None:
        """Write a JSON file over its older version in place where a full disk leaves no room for a second one."""
        try:
            self.write_json(name, data)
        except OSError:
            (self.folder / name).write_text(json.dumps(finite(data), indent=2) + "\n", encoding="utf-8")

    def write_manifest(self) -> None:
        """Bring manifest.json up to date, so that a killed run leaves a true one."""
        self.manifest.update(peak_memory())
        self.write_json("manifest.json", self.manifest)

    def say(self, line: str) -> None:
        """Print one line and keep it in the run's log, from the first rank only."""
        if self.speaks:
            log.info(line)


def resolve(cfg: DictConfig) -> dict[str, Any]:
    """The configuration as plain values, every interpolation resolved and every `_target_` checked."""
    config = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    assert isinstance(config, dict)
    # After the interpolation, since a `_target_` may be put together from other keys.
    check_targets(config)
    return {str(key): value for key, value in config.items()}


@contextmanager
def open_run(
    cfg: DictConfig, folder: Path, *, overrides: Sequence[str] = (), sweep: bool = False, key: str | None = None
) -> Iterator[Run]:
    """A run in `folder`, whose files tell the truth about it from the first moment and after any ending.

    `paths.outputs` and `paths.artifacts` of the composed configuration say where results go; `overrides` are what the
    command line changed, `sweep` whether this is one job of a sweep, and `key` decides the job's results.
    """
    run = Run(folder, ArtifactStore(Path(cfg.paths.artifacts)), rank=process_rank())
    run.group = folder.parent.name if sweep else None
    run.id = fingerprint({"folder": str(folder.resolve()), "key": key}) if sweep and key else None
    # Every rank does the same work and would print the same lines.
    silence = redirect_stdout(io.StringIO()) if run.rank else nullcontext()
    # Around the resolution too: a configuration that does not resolve is a failed run with a status.
    with recorded_status(run, overrides, key), silence:
        config = resolve(cfg)
        check_launch(config, sweep=sweep)
        run.manifest = {**provenance(config, overrides), **run.manifest}
        run.keep_config(config)
        if run.rank == 0:
            point_latest(Path(cfg.paths.outputs), folder)
        run.write_manifest()
        try:
            yield run
        except Exception as error:
            # The error may be a mere consequence: that an artifact in use was removed is the cause to tell.
            lost = next((artifact for artifact, _ in run.used if not artifact.is_there), None)
            if lost is None or was_interrupted(error):
                raise
            raise removed(lost) from error


@contextmanager
def recorded_status(run: Run, overrides: Sequence[str], key: str | None) -> Iterator[None]:
    """Keep status.json true: `running` at once, then `done`, or `failed` with one line and the traceback's file."""
    start = time.monotonic()
    started = datetime.now().astimezone().isoformat(timespec="seconds")
    status = {"status": "running", "started": started, **this_process(), "overrides": list(overrides)}
    status |= {} if key is None else {"key": key}
    if run.speaks:
        # That of an earlier attempt would make this run's first failure look like a second one.
        (run.folder / TRACEBACK).unlink(missing_ok=True)
    # At once: a killed run cannot say so, and further ranks read here whose process to wait for.
    run.write_json("status.json", status)
    try:
        yield
        status["status"] = "done"
    # Whatever ends the run, Ctrl-C included, `running` would be a lie from here on.
    except BaseException as error:
        code, line = ending(error, stage=run.failed_stage)
        status |= {"status": "failed", "error": rank_prefix(run.rank) + line, "exit_code": code}
        # The first process that fails tells the cause; others are stopped, or fail because it is gone.
        run.speaks = not (run.rank and was_interrupted(error)) and first_to_fail(run.folder, error)
        raise
    finally:
        # However the run ends: W&B would go on in an unfinished run with the next job of a sweep.
        run.close(status.get("exit_code", 0))
        status["seconds"] = round(time.monotonic() - start, 3)
        if run.speaks:
            # Where the disk is full, what filled it is to be told, and not that it could not be written down.
            with suppress(OSError) if status["status"] == "failed" else nullcontext():
                run.write_last("status.json", status)
                run.write_manifest()


PACKAGES = (
    "torch torchvision lightning hydra-core omegaconf diffusers transformers safetensors torchmetrics clean-fid "
    "open_clip_torch wandb numpy"
)


def version_of(package: str) -> str | None:
    """The installed version of a package, read without importing it."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def git(folder: Path, *words: str) -> str | None:
    """Output of a git command in `folder`; None without git, without a repository, or when it fails."""
    try:
        done = subprocess.run(["git", "-C", str(folder), *words], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def git_state() -> dict[str, Any]:
    """Commit of the source checkout and whether it has changes; both None for an installed wheel.

    An installed package may lie inside an unrelated repository, whose commit would be a lie: only a folder that holds
    this project's conf/ next to the package counts as its checkout.
    """
    checkout = Path(__file__).parents[2]
    if not (checkout / "conf" / "config.yaml").is_file():
        return {"commit": None, "dirty": None}
    changes = git(checkout, "status", "--porcelain")
    return {"commit": git(checkout, "rev-parse", "HEAD"), "dirty": None if changes is None else bool(changes)}


def seeds(config: Mapping[str, Any]) -> dict[str, int]:
    """Every seed in a configuration by dotted key: those that end in `seed` or `…_seed`."""
    return {
        key: value
        for key, value in entries(config)
        if isinstance(value, int) and (key.rpartition(".")[2] == "seed" or key.endswith("_seed"))
    }


def main_memory() -> int:
    """Bytes of main memory that the machine has."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def peak_memory() -> dict[str, float]:
    """Largest resident memory of this process so far in MiB, and of its GPU tensors if torch has used one."""
    # `ru_maxrss` is in bytes on macOS and in KiB on Linux.
    unit = 2**20 if sys.platform == "darwin" else 2**10
    peaks = {"peak_memory_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit, 1)}
    # Only if somebody else has imported it: reports and checks run without torch.
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        peaks["peak_gpu_memory_mib"] = round(torch.cuda.max_memory_allocated() / 2**20, 1)
    return peaks


def provenance(config: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """What a run's manifest says at its start."""
    return {
        "git": git_state(),
        "versions": {"difflens": __version__, **{name: version_of(name) for name in PACKAGES.split()}},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "command": list(sys.argv),
        "overrides": list(overrides),
        "seeds": seeds(config),
    }
