"""Curves and figures reach whichever tracker is chosen, and every job has a run of its own that ends with its exit code."""

import csv
import os
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import wandb
from PIL import Image
from wandb_file import history, records

from difflens.store.artifacts import ArtifactStore
from difflens.training.loggers import (
    RunIdentity,
    Tracker,
    WandbTracker,
    csv_tracker,
    tensorboard_tracker,
    wandb_tracker,
)

IDENTITY = RunIdentity("pipeline_mini", "sweep_1", "pipeline", ["mini_ddpm", "gender", "difflens"], {"sae": {"k": 32}})


def connected(**_: object) -> SimpleNamespace:
    """A run at the service."""
    return SimpleNamespace(id="x", finish=lambda exit_code: None, define_metric=lambda *_, **__: None)


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """No key and no mode from the surroundings."""
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


def test_figures_are_a_table_in_the_run_folder(tmp_path: Path) -> None:
    tracker = csv_tracker(tmp_path, IDENTITY)
    tracker.scalars({"original/fd": 0.5, "original/clip_i": None})
    tracker.curve("probe/accuracy", [0.5, None, 0.75])
    tracker.close(0)
    rows = list(csv.DictReader((tmp_path / "csv" / "metrics.csv").open()))
    assert [row["original/fd"] for row in rows if row["original/fd"]] == ["0.5"] and "original/clip_i" not in rows[0]
    curve = [(row["step"], row["probe/accuracy"]) for row in rows if row["probe/accuracy"]]
    assert curve == [("0", "0.5"), ("2", "0.75")]


def test_figures_are_tensorboard_events_in_the_run_folder(tmp_path: Path) -> None:
    loading = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator", reason="extra tensorboard")
    tracker = tensorboard_tracker(tmp_path, IDENTITY)
    tracker.curve("probe/accuracy", [0.5, 0.75])
    tracker.close(0)
    events = loading.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(event.step, event.value) for event in events.Scalars("probe/accuracy")] == [(0, 0.5), (1, 0.75)]


def test_a_wandb_run_holds_figures_tables_pictures_and_lineage_offline(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path / "artifacts")
    tokens, _ = store.get_or_create("activations", {"n": 1}, lambda folder: (folder / "x").write_text("x"))
    sae, _ = store.get_or_create("sae", {"from": [tokens.fingerprint]}, lambda folder: (folder / "y").write_text("y"))
    picture = tmp_path / "0.png"
    Image.new("RGB", (4, 4), "red").save(picture)
    for number, (images, code) in enumerate([(True, 0), (False, 3)]):
        tracker = wandb_tracker(tmp_path / str(number), IDENTITY, tags=["mine"], images=images)
        assert isinstance(tracker, WandbTracker)
        tracker.scalars({"difflens/shares.female.low": 0.25, "difflens/fid": None})
        tracker.curve("probe/accuracy", [0.5, 0.75])
        tracker.histogram("sae/density", [1, 2], [-2.0, -1.0, 0.0])
        tracker.table("images", ("id", "before"), [[7, picture]])
        tracker.artifacts([(tokens, True), (sae, False), (sae, True)])
        tracker.close(code)
    assert wandb.run is None

    found = records(tmp_path / "0")
    (run,) = found["run"]
    assert (run.run_group, run.job_type, run.project) == ("sweep_1", "pipeline", "difflens")
    assert set(run.tags) == {"mini_ddpm", "gender", "difflens", "mine"}
    assert {item.key: item.value_json for item in run.config.update}["sae"] == '{"k":32}'
    values = history(found)
    assert [float(value) for value in values["difflens/shares.female.low"]] == [0.25]
    assert "difflens/fid" not in values
    assert [float(value) for value in values["probe/accuracy"]] == [0.5, 0.75]
    assert [float(value) for value in values["denoising_step"]] == [0, 1]
    assert "histogram" in str({key: value for key, value in values.items() if key.startswith("sae/density")})
    logged = {record.name: record for record in found["artifact"] if record.type in ("activations", "sae")}
    assert set(logged) == {f"activations-{tokens.fingerprint}", f"sae-{sae.fingerprint}"}
    of_sae = logged[f"sae-{sae.fingerprint}"]
    assert f'"made_from":["activations-{tokens.fingerprint}"]' in of_sae.metadata.replace(" ", "")
    assert str(sae.folder) in str(of_sae.manifest)
    assert [record.exit_code for record in found["exit"]] == [0]
    second = records(tmp_path / "1")
    tables = [str([r.manifest for r in each["artifact"] if r.type == "run_table"]) for each in (found, second)]
    assert ["media/images" in table for table in tables] == [True, False]
    assert [record.exit_code for record in second["exit"]] == [3] and second["run"][0].run_id != run.run_id


def test_a_job_that_is_done_again_keeps_its_run(tmp_path: Path, monkeypatch) -> None:
    mine = replace(IDENTITY, id="0123456789abcdef")
    for attempt in ("first", "second"):
        before = dict(os.environ)
        wandb_tracker(tmp_path / attempt, mine, mode="offline").close(0)
        left = {name for name in before.keys() | os.environ.keys() if before.get(name) != os.environ.get(name)}
        # Its own, left by the first run of a process.
        assert left <= {"WANDB_SERVICE"}, "nothing leaks into the environment"
        (run,) = records(tmp_path / attempt)["run"]
        assert run.run_id == mine.id
    asked: list[dict[str, object]] = []

    def init(**described: object) -> SimpleNamespace:
        asked.append(described)
        return connected()

    monkeypatch.setattr(wandb, "init", init)
    for identity in (mine, IDENTITY):
        wandb_tracker(tmp_path, identity, mode="online").close(0)
    assert [(each["id"], each["resume"]) for each in asked] == [(mine.id, "allow"), (None, None)]


def test_without_a_network_or_with_a_bad_key_a_run_is_kept_offline(tmp_path: Path, monkeypatch, caplog) -> None:
    def init(mode: str, **_: object) -> SimpleNamespace:
        if mode == "online":
            raise wandb.errors.CommError("Run initialization has timed out")
        return connected()

    caplog.set_level("INFO")
    monkeypatch.setattr(wandb, "init", init)
    tracker = wandb_tracker(tmp_path, IDENTITY, mode="online")
    assert isinstance(tracker, WandbTracker) and "kept offline; send it later: wandb sync" in caplog.text
    tracker.close(0)


def test_a_wrong_mode_and_a_missing_package_are_one_clear_line(tmp_path: Path, monkeypatch) -> None:
    with pytest.raises(ValueError, match=r"logger\.mode='sometimes' is not one of online, offline, disabled"):
        wandb_tracker(tmp_path, IDENTITY, mode="sometimes")
    assert type(wandb_tracker(tmp_path, IDENTITY, mode="disabled")) is Tracker
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ValueError, match="needs `pip install wandb`; or take logger=csv"):
        wandb_tracker(tmp_path, IDENTITY, mode="offline")
