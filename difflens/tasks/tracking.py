"""The tracker that the configuration asks for."""

from hydra.utils import instantiate
from omegaconf import DictConfig

from difflens.run import Run
from difflens.tasks.values import blaming, plain
from difflens.training.loggers import RunIdentity, Tracker
from difflens.types import Attribute


def open_tracker(cfg: DictConfig, run: Run, attribute: Attribute) -> Tracker:
    """The tracker, closed when the run ends, with its artifacts and its exit code; one that keeps nothing on other ranks.

    Raises:
        ValueError: the logger cannot be had.
    """
    make = None if run.rank else instantiate(cfg.get("logger"))
    if make is None:
        return Tracker()
    tags = [cfg.model.name, attribute.name, cfg.mitigation.name]
    with blaming("logger"):
        tracker: Tracker = make(run.folder, RunIdentity(cfg.name, run.group, cfg.task.name, tags, plain(cfg)))

    def close(exit_code: int) -> None:
        try:
            tracker.artifacts(run.used)
        finally:
            tracker.close(exit_code)

    run.at_end(close)
    return tracker
