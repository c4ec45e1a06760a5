"""The tracker that the configuration asks for."""

from omegaconf import DictConfig

from difflens.store.run import Run
from difflens.study.values import blaming, built, plain
from difflens.training.loggers import RunIdentity, Tracker


def open_tracker(cfg: DictConfig, run: Run) -> Tracker:
    """The tracker, closed when the run ends, with its artifacts and its exit code; one that keeps nothing on other ranks.

    Raises:
        ValueError: the logger cannot be had.
    """
    make = None if run.rank else built(cfg, "logger")
    if make is None:
        return Tracker()
    tags = [str(name) for name in (cfg.model.name, cfg.attribute.name, cfg.mitigation.name) if name]
    with blaming("logger"):
        identity = RunIdentity(cfg.name, run.group, cfg.task.name, tags, plain(cfg), run.id)
        tracker: Tracker = make(run.folder, identity)

    def close(exit_code: int) -> None:
        try:
            tracker.artifacts(run.used)
        finally:
            tracker.close(exit_code)

    run.at_end(close)
    return tracker
