"""Curves land in the run folder, whichever logger draws them, and every training has a run of its own."""

import csv
import os
from functools import partial
from pathlib import Path

import pytest

from difflens.training.loggers import csv_logger, logging_to, wandb_logger


def draw(make: partial, folder: Path, *, name: str, values: tuple[float, ...]) -> object:
    with logging_to(make, folder, name=name) as logger:
        for step, value in enumerate(values):
            logger.log_metrics({"train/fvu": value}, step=step)
        return logger.experiment


def test_curves_are_a_table_in_the_run_folder(tmp_path: Path) -> None:
    draw(partial(csv_logger), tmp_path, name="sae", values=(0.5, 0.25))
    rows = list(csv.DictReader((tmp_path / "csv" / "sae" / "metrics.csv").open()))
    assert [(row["step"], row["train/fvu"]) for row in rows] == [("0", "0.5"), ("1", "0.25")]


def test_no_logger_is_no_logger(tmp_path: Path) -> None:
    with logging_to(None, tmp_path, name="sae") as logger:
        assert logger is False


def test_without_a_key_wandb_stays_offline_and_gives_every_job_its_own_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_SILENT", "true")
    import wandb

    first = draw(partial(wandb_logger), tmp_path / "0", name="sae", values=(0.5,))
    with pytest.raises(RuntimeError, match="stopped"), logging_to(wandb_logger, tmp_path / "1", name="sae") as logger:
        second = logger.experiment
        raise RuntimeError("stopped")
    assert wandb.run is None and first.id != second.id
    assert "WANDB_MODE" not in os.environ
    for folder, run in ((tmp_path / "0", first), (tmp_path / "1", second)):
        (kept,) = (folder / "wandb").glob("offline-run-*")
        assert kept.name.endswith(run.id) and (kept / f"run-{run.id}.wandb").stat().st_size > 0


def test_an_unknown_mode_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"logger\.mode='sometimes' is not one of online, offline, disabled"):
        wandb_logger(tmp_path, name="sae", mode="sometimes")
