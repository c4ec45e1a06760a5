"""The program: composes the configuration and hands it with a run to the task it names.

Nothing here imports torch: `--help`, `--cfg job` and shell completion answer at once.
"""

import importlib
import logging
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, cast

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from difflens.cli.guard import guard_hydra
from difflens.cli.known_keys import check_keys
from difflens.cli.products import register_products
from difflens.cli.sweeps import close_sweep, job_to_do, register_resolvers, sweep_ending
from difflens.cli.usage import config_groups, usage
from difflens.store.errors import JobFailedError, NotReadyError, UserError
from difflens.store.exits import Ending, ending, interrupt, nearest, was_interrupted
from difflens.store.ranks import TRACEBACK, process_rank, rank_prefix
from difflens.store.run import open_run
from difflens.store.targets import read_environment, resolve_target

HYDRA_VARIABLE = "HYDRA_FULL_ERROR"
DEBUG_VARIABLE = "DIFFLENS_DEBUG"
"""Set for this process and the workers of a sweep when the user asked for tracebacks with either variable."""


def conf_folder() -> Path:
    """The configuration: inside the package when installed from a wheel, next to it in a source checkout."""
    package = Path(__file__).resolve().parent
    return next((folder for folder in (package / "conf", package.parent / "conf") if folder.is_dir()), package / "conf")


@contextmanager
def whole_errors(wanted: bool) -> Iterator[None]:
    """Let Hydra pass exceptions on instead of printing its own report; not seen by processes started in the block."""
    before = os.environ.pop(HYDRA_VARIABLE, None)
    if wanted:
        os.environ[HYDRA_VARIABLE] = "1"
    try:
        yield
    finally:
        os.environ.pop(HYDRA_VARIABLE, None)
        if before is not None:
            os.environ[HYDRA_VARIABLE] = before


def check_places(arguments: list[str]) -> None:
    """Refuse names and folders that would lead out of the outputs, before Hydra makes the run's folder of them.

    Raises:
        UserError: with the key and the value.
    """
    for argument in arguments:
        key, equals, value = argument.lstrip("+").partition("=")
        value = value.strip("'\"")
        if equals and key in ("name", "model.name", "task.name", "attribute.name") and {"/", "\\"} & {*value}:
            raise UserError(f"{key} must be a name without '/', since it names the run's folder, got {value!r}.")
        if equals and key in ("paths.outputs", "paths.artifacts") and value in ("", "null", "~"):
            raise UserError(f"{key} must be a folder, got {value!r}; leave it out for {key.partition('.')[2]}/.")


def check_preset(chosen: str | None, overrides: list[str], folders: tuple[Path, ...]) -> None:
    """Refuse a preset that no file gives: the group is optional, since most models have none for most attributes.

    Raises:
        UserError: the command line names one that there is not.
    """
    named = any(override.startswith("preset=") for override in overrides)
    known = sorted(path.stem for folder in folders for path in (folder / "preset").glob("*.yaml"))
    if named and chosen not in (None, *known):
        raise UserError(f"preset={chosen}: no such preset; available: {', '.join(known)}.{nearest(str(chosen), known)}")


def debugging() -> bool:
    """Whether exceptions are to be shown whole."""
    return os.environ.get(DEBUG_VARIABLE, "0") not in ("", "0")


SWITCHES = ("-m", "--multirun", "-r", "--run", "--resolve", "--hydra-help", "--version", "--info")
"""Flags that take no value."""


def flags_first(arguments: list[str]) -> list[str]:
    """The arguments with all flags before the overrides: argparse takes overrides in one piece only.

    They stay as they are where a flag's value stands by itself (`-c job`).
    """
    together = all(not each.startswith("-") or "=" in each or each in SWITCHES for each in arguments)
    return sorted(arguments, key=lambda each: not each.startswith("-")) if together else arguments


def tell(end: Ending) -> None:
    """Print the line on stderr."""
    print(f"difflens: error: {end.line}", file=sys.stderr, flush=True)


@hydra.main(version_base="1.3", config_path=str(conf_folder()), config_name="config")  # type: ignore[untyped-decorator]
def job(cfg: DictConfig) -> None:
    """Run one task; a failure is told once here, and ends a sweep only after its other jobs have run."""
    settings = HydraConfig.get()
    folder = Path(settings.runtime.output_dir)
    # Unresolved: an override such as `lr=${other}` is text here, and has nothing to refer to in Hydra's own settings.
    overrides = cast(list[str], OmegaConf.to_container(settings.overrides.task, resolve=False))
    sweep = settings.mode == RunMode.MULTIRUN
    run = None
    try:
        with (
            whole_errors(False),
            job_to_do(cfg, folder) if sweep else nullcontext((True, None)) as (to_do, key),
        ):
            if not to_do:
                return
            with open_run(cfg, folder, overrides=overrides, sweep=sweep, key=key) as run:
                sources = tuple(Path(s.path) for s in settings.runtime.config_sources if s.schema == "file")
                check_preset(settings.runtime.choices.get("preset"), overrides, sources)
                check_keys(cast(dict[str, Any], OmegaConf.to_container(cfg, resolve=False)), sources)
                resolve_target(cfg.task._target_, "task")(cfg, run)
    except Exception as error:
        if debugging():
            raise
        if was_interrupted(error):
            raise KeyboardInterrupt from error
        end = ending(error, stage=None if run is None else run.failed_stage)
        unexpected = end.exit_code == 1 and not isinstance(error, NotReadyError)
        more = f" [{os.path.relpath(folder / TRACEBACK)}]" if unexpected else ""
        if run is None or run.speaks:
            tell(Ending(end.exit_code, rank_prefix(process_rank()) + end.line + more))
        if not sweep:
            sys.exit(end.exit_code)
        raise JobFailedError(end.line, end.exit_code, folder) from error


def main() -> None:
    """Entry point of `difflens`; exits with 0, with 2 for a mistake in the configuration, else with 1 (130: Ctrl-C)."""
    if {"-h", "--help"} & set(sys.argv[1:]):
        print(usage(conf_folder()))
        return
    sys.argv[1:] = flags_first(sys.argv[1:])
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        # Whoever started the program may have asked that it be left alone (`nohup`, `&` in a script).
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, interrupt)
    # A log that cannot be written (a full disk) is no reason for a traceback next to the error's line.
    logging.raiseExceptions = False
    read_environment()
    guard_hydra()
    register_products(conf_folder())
    os.environ.setdefault(DEBUG_VARIABLE, os.environ.get(HYDRA_VARIABLE, "0"))
    register_resolvers()
    try:
        check_places(sys.argv[1:])
        with whole_errors(True):
            try:
                job()
            finally:
                close_sweep()
    except (Exception, KeyboardInterrupt, SystemExit) as error:
        if debugging() or (isinstance(error, SystemExit) and not was_interrupted(error)):
            raise
        groups = sorted(config_groups(conf_folder()))
        end = sweep_ending(error) if isinstance(error, JobFailedError) else ending(error, groups=groups)
        if not process_rank():
            tell(end)
        sys.exit(end.exit_code)


if __name__ == "__main__":
    # Imported by its name: the workers of a sweep unpickle `job` from there.
    importlib.import_module("difflens.main").main()
