"""`task=aggregate`: a sweep's results as tidy CSV, tables, plots and one page; reads files only."""

from pathlib import Path

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from difflens.report.sweep import read_jobs
from difflens.report.sweep_page import compare, write_sweep
from difflens.store.past_run import newest_having
from difflens.store.run import Run


def aggregate(cfg: DictConfig, run: Run) -> None:
    """Write everything about the sweep in `sweep` into its folder, and print the comparison."""
    sweep = newest_having(Path(cfg.sweep), "*/metrics.json")
    # By what was asked: a job that never began has left no folder, and is to be seen all the same.
    jobs = read_jobs(sweep, asked_overrides(sweep))
    with run.stage("aggregate"):
        pairs = None
        if any((job.folder / "outcomes.safetensors").is_file() for job in jobs):
            from difflens.tasks.paired import paired  # torch, which sweeps without images need not wait for

            pairs = paired(jobs)
        page = write_sweep(sweep, jobs, pairs)
    Console().print(compare(jobs).terminal(f"sweep {sweep.resolve().name}"))
    if pairs is not None:
        Console().print(pairs.terminal("methods in pairs"))
    run.say(f"report: {page}")


def asked_overrides(sweep: Path) -> list[list[str]] | None:
    """The overrides of every job that the sweep's command asked for, in order, as Hydra expands them.

    None for a folder that no sweep made, or one whose command cannot be expanded without its configuration.
    """
    record = sweep / "multirun.yaml"
    if not record.is_file():
        return None
    hydra = OmegaConf.load(record).hydra
    # An experiment's file may hold the sweep; Hydra reads it before the command line, whose values win.
    params = [f"{key}={value}" for key, value in (hydra.sweeper.get("params") or {}).items()]
    words = OmegaConf.to_container(hydra.overrides.task, resolve=False)
    assert isinstance(words, list)
    try:
        parsed = OverridesParser.create().parse_overrides([*params, *map(str, words)])
        batches: list[list[list[str]]] = BasicSweeper.split_arguments(parsed, None)
    except HydraException:
        return None
    return batches[0]
