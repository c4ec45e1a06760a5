"""What the program does: it composes the configuration and hands it with a run to the task it names.

Nothing here imports torch: `--help`, `--cfg job` and shell completion answer at once.
"""

import importlib
import logging
import os
import re
import sys
from collections.abc import Collection, Mapping
from contextlib import nullcontext
from copy import deepcopy
from pathlib import Path
from typing import Any, cast

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from difflens.cli.guard import guard_hydra
from difflens.cli.products import register_products
from difflens.cli.sweeps import close_sweep, job_to_do, sweep_ending, sweep_name
from difflens.cli.usage import config_groups, usage
from difflens.store.errors import JobFailedError, NotReadyError, UserError, was_interrupted
from difflens.store.exits import Ending, ending, nearest
from difflens.store.ranks import TRACEBACK, process_rank, rank_prefix
from difflens.store.run import open_run, resolve
from difflens.store.targets import read_environment, resolve_target

SWITCHES = ("-m", "--multirun", "-r", "--run", "--resolve", "--hydra-help", "--version", "--info")
"""Flags that take no value."""

MEANT = set("[]{}()'\",")
"""Characters by which somebody means a list, a mapping or a text of Hydra's grammar; values without them are quoted."""

SHARE = "mitigation.target."
"""Shares of single classes, which the configuration has none of by itself."""


def flags_first(arguments: list[str]) -> list[str]:
    """The arguments with all flags before the overrides: argparse takes overrides in one piece only.

    They stay as they are where a flag's value stands by itself (`-c job`).
    """
    together = all(not each.startswith("-") or "=" in each or each in SWITCHES for each in arguments)
    # The sort is stable: of two overrides of one key the later still wins.
    return sorted(arguments, key=lambda each: not each.startswith("-")) if together else arguments


def readable(argument: str, groups: Collection[str] = ()) -> str:
    """One argument as Hydra can read it, given the names of the config groups (UserError: it cannot be made so)."""
    key, equals, value = argument.partition("=")
    if not equals or argument.startswith("-"):
        return argument
    # `++` adds a key or replaces it: the target is null until it is given shares.
    if key.startswith(SHARE):
        key = f"++{key}"
    # Hydra says of a number only that it is no text, and not which choices there are.
    if key in groups and re.fullmatch(r"[+-]?[\d.]+", value):
        value = f"'{value}'"
    # Shells leave a `~` behind `paths.outputs=` as it is.
    if value.startswith("~/"):
        value = str(Path(value).expanduser())
    # Hydra's grammar refuses an umlaut or a second `=` outside of quotes; a list in quotes would be a text.
    for text in (value, *([] if MEANT & {*value} else [f"'{value}'"])):
        try:
            OverridesParser.create().parse_override(f"{key}={text}")
            return f"{key}={text}"
        except HydraException:
            continue
    raise UserError(
        f"{argument} cannot be read; put its value into quotes, and all of it into others: '{key}=\"{value}\"'."
    )


DEBUG = "DIFFLENS_DEBUG"
"""The variable that says, also to the workers of a sweep and to other ranks, whether the user asked for tracebacks."""


def check_preset(chosen: str | None, overrides: list[str], folders: tuple[Path, ...]) -> None:
    """Refuse with a UserError a preset of the command line that no file gives.

    Hydra does not: the group is optional, since most models have none for most attributes.
    """
    named = any(override.startswith("preset=") for override in overrides)
    known = sorted(path.stem for folder in folders for path in (folder / "preset").glob("*.yaml"))
    if named and chosen not in (None, *known):
        raise UserError(f"preset={chosen}: no such preset; available: {', '.join(known)}.{nearest(str(chosen), known)}")


def check_mappings(overrides: list[str], classes: list[Any]) -> None:
    """Refuse with a UserError an empty mapping, and words for some classes only.

    Hydra would merge them into what is there, where the user means them to take its place.
    """
    for override in OverridesParser.create().parse_overrides(overrides):
        value = override.value()
        if isinstance(value, dict) and not value:
            raise UserError(f"{override.key_or_group} must be a group of settings, got {{}}, which changes nothing.")
        if override.key_or_group == "attribute.words" and set(map(str, value or ())) != set(classes):
            raise UserError(f"attribute.words must name each of {classes}, got {override.value()!r}.")


MEANWHILE: Mapping[str, Mapping[str, Any]] = {
    "data.site": {"_target_": "difflens.vocabulary.Site", "module": "mid_block", "tensor": "output", "branch": "none"},
    "mitigation.window": {"_target_": "difflens.methods.base.Window", "start": 0.0, "stop": 1.0},
}
"""What may be left open, and what stands there until it is found, so that all else can be checked at once."""

WITHOUT_A_SITE = frozenset(
    ("aggregate", "audit", "convert", "dashboard", "doctor", "evaluate", "localise", "miniature")
)
"""Tasks that edit at no configured site: nothing is found for them."""


def left_open(cfg: DictConfig) -> tuple[DictConfig, frozenset[str]]:
    """A configuration that resolves, with a value wherever it says `auto`, and the keys that do."""
    asked = frozenset(key for key in MEANWHILE if OmegaConf.select(cfg, key) == "auto")
    if asked:
        cfg = deepcopy(cfg)
        for key in asked:
            OmegaConf.update(cfg, key, dict(MEANWHILE[key]), force_add=True)
    return cfg, asked


def run_task(cfg: DictConfig, folder: Path, overrides: list[str], *, sweep: bool, key: str | None) -> None:
    """Run one task in its folder; a failure is told once, here.

    Raises:
        JobFailedError: it failed; the exception of Ctrl-C, and where the user asked for tracebacks any, is passed on.
    """
    settings, run = HydraConfig.get(), None
    try:
        # Opened before anything is checked, so that a mistake leaves a status and a folder too.
        with open_run(cfg, folder, overrides=overrides, sweep=sweep, key=key) as run:
            sources = tuple(Path(s.path) for s in settings.runtime.config_sources if s.schema == "file")
            check_preset(settings.runtime.choices.get("preset"), overrides, sources)
            cfg, asked = left_open(cfg)
            # Imported by need: `--help` has no use for pydantic.
            importlib.import_module("difflens.config").check_settings(resolve(cfg))
            check_mappings(overrides, list(OmegaConf.select(cfg, "attribute.classes") or ()))
            # The first import of torch: whatever the configuration alone can tell was told within a second.
            task = resolve_target(cfg.task._target_, "task")
            if asked and cfg.task.name not in WITHOUT_A_SITE:
                # Before the task, which sees plain values as if the user had given them.
                cfg = importlib.import_module("difflens.tasks.localise").found(cfg, run, asked)
                run.keep_config(resolve(cfg))
            task(cfg, run)
    except Exception as error:
        if os.environ.get(DEBUG, "0") not in ("", "0"):
            raise
        # Lightning and torch make other errors of an interruption; any Exception would be one failed job to Hydra,
        # which goes on with the sweep.
        if was_interrupted(error):
            raise KeyboardInterrupt from error
        end = ending(error, stage=None if run is None else run.failed_stage)
        if run is None or run.speaks:
            # A failure that its line explains needs no traceback.
            unexpected = end.exit_code == 1 and not isinstance(error, NotReadyError)
            more = f" [{os.path.relpath(folder / TRACEBACK)}]" if unexpected else ""
            print(f"difflens: error: {rank_prefix(process_rank())}{end.line}{more}", file=sys.stderr, flush=True)
        raise JobFailedError(end.line, end.exit_code, folder) from error


def job(cfg: DictConfig) -> None:
    """What Hydra calls: a run, or one job of a sweep, which is skipped where it was done before."""
    settings = HydraConfig.get()
    folder, sweep = Path(settings.runtime.output_dir), settings.mode == RunMode.MULTIRUN
    # Unresolved: an override such as `lr=${other}` is text here, and has nothing to refer to in Hydra's own settings.
    overrides = cast(list[str], OmegaConf.to_container(settings.overrides.task, resolve=False))
    with job_to_do(cfg, folder) if sweep else nullcontext((True, None)) as (to_do, key):
        if not to_do:
            return
        try:
            run_task(cfg, folder, overrides, sweep=sweep, key=key)
        except JobFailedError as error:
            if sweep:
                raise
            sys.exit(error.exit_code)  # on which Hydra adds no line of its own


def run_program(conf: Path) -> tuple[int, str]:
    """Do what the command line asks of the configuration in `conf`; the exit code, and the line that is still to be told."""
    if {"-h", "--help"} & set(sys.argv[1:]):
        print(usage(conf))
        return 0, ""
    # A log that cannot be written (a full disk) is no reason for a traceback next to the error's line.
    logging.raiseExceptions = False
    # In this order: `hydra.job.env_set` may not change the environment first, and nothing is composed unguarded.
    read_environment()
    guard_hydra()
    register_products(conf)
    OmegaConf.register_new_resolver("sweep_name", sweep_name, use_cache=True, replace=True)
    # The user's wish is kept apart, since Hydra's own switch is on from here; workers inherit both.
    os.environ.setdefault(DEBUG, os.environ.get("HYDRA_FULL_ERROR", "0"))
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra passes exceptions on instead of printing a report of its own
    try:
        groups = config_groups(conf)
        sys.argv[1:] = [readable(argument, groups) for argument in flags_first(sys.argv[1:])]
        try:
            hydra.main(version_base="1.3", config_path=str(conf), config_name="config")(job)()
        finally:
            close_sweep()
    # SystemExit is Hydra's own end, or argparse's; after a signal it is Lightning's word for an interruption.
    except (Exception, KeyboardInterrupt, SystemExit) as error:
        if os.environ[DEBUG] not in ("", "0") or (isinstance(error, SystemExit) and not was_interrupted(error)):
            raise
        # Only out of a sweep: the job of a single run has ended with its code already.
        if isinstance(error, JobFailedError) and not was_interrupted(error):
            return sweep_ending(error)
        end = ending(error, groups=sorted(config_groups(conf)))
        # Of Ctrl-C the first rank tells.
        return end if not (process_rank() and was_interrupted(error)) else Ending(end.exit_code, "")
    return 0, ""
