"""The Weights & Biases side of a sweep: a workspace over its runs, and a sweep file whose command this program takes."""

import inspect
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from program import Program
from sweep_folder import MEASURES, write_job

from difflens.stages import tracked
from difflens.tasks.dashboard import TABLES, describe_workspace

ROOT = Path(__file__).parents[2]


def test_a_workspace_is_written_for_the_runs_of_a_sweep(tmp_path: Path) -> None:
    pytest.importorskip("wandb_workspaces", reason="extra dashboard")
    sweep = tmp_path / "gender_1a2b"
    write_job(sweep / "0", ["seed=0"], fd=0.1)
    write_job(sweep / "1", ["seed=1"], fd=None, status="failed", error="sae: NaN")
    ended = Program(tmp_path / "work")("task=dashboard", f"sweep={sweep}")
    assert ended.code == 0, ended.err
    text = (sweep / "dashboard.json").read_text()
    assert json.loads(text)["displayName"] == "difflens: gender_1a2b"
    for name in (
        "summary:difflens/fd_hard",
        "original/shares.female.share",
        "sae/held_out/fvu_per_step",
        "summary:difflens/leakage.age.flip_rate",
        "FD and leakage of race: difflens",
        "gender_1a2b",
    ):
        assert name in text, name
    assert "not created" in ended.out

    described = json.dumps(json.loads(text)["spec"])
    for table in TABLES:
        assert f'"val": "{table}"' in described, "the table has a panel"
        assert f'table("{table}"' in inspect.getsource(tracked), "and it is logged"


def test_fairness_of_prompts_is_the_mean_of_theirs(tmp_path: Path) -> None:
    pytest.importorskip("wandb_workspaces", reason="extra dashboard")
    for prompts, fd in (({"a nurse": {"fd_hard": 0.2}}, "fd_hard_prompt_mean"), ({}, "fd_hard")):
        row = {"method": "difflens", "fd_hard": 0.1, "fid": 3.0, "prompts": prompts}
        text = (
            describe_workspace("s", [{"rows": [row], "measures": MEASURES}], entity="e", project="p")
            ._to_model()
            .model_dump_json(by_alias=True)
        )
        scatters = [panel for panel in _panels(json.loads(text)) if panel["viewType"] == "Scatter Plot"]
        assert scatters and {panel["config"]["xAxis"] for panel in scatters} == {f"summary:difflens/{fd}"}


def _panels(workspace: dict[str, Any]) -> list[dict[str, Any]]:
    sections = workspace["spec"]["section"]["panelBankConfig"]["sections"]
    return [panel for section in sections for panel in section["panels"]]


def test_the_sample_sweep_of_wandb_gives_overrides_that_compose() -> None:
    described = yaml.safe_load((ROOT / "experiments" / "wandb_sweep.yaml").read_text())
    assert described["command"] == ["difflens", "logger=wandb", "${args_no_hyphens}"]
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        for key, settings in described["parameters"].items():
            for value in settings["values"]:
                cfg = compose("config", overrides=["logger=wandb", f"{key}={value}"])
                chosen = OmegaConf.select(cfg, key)
                assert (chosen.name if key == "attribute" else chosen) == value
