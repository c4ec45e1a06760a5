"""`task=convert` from a released checkpoint to a model that samples, and what it refuses."""

import json
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import DictConfig
from safetensors.torch import load_file

from difflens.models.model import DiffusionModel
from difflens.store.exits import ending
from difflens.store.files import sha256_of
from difflens.store.run import open_run
from difflens.tasks import convert as task
from difflens.vocabulary import GenerationPlan, Site

CONF = Path(__file__).resolve().parents[2] / "conf"
FIXTURE = Path(__file__).resolve().parents[1] / "fixtures" / "p2_small"
SMALL = ["task.image_size=32", "task.head_channels=32", f"task.checkpoint={FIXTURE / 'checkpoint.pt'}"]


def composed(folder: Path, *overrides: str) -> DictConfig:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        places = [f"paths.outputs={folder}", f"paths.weights={folder / 'weights'}"]
        return compose("config", overrides=["task=convert", *places, *overrides])


def convert(folder: Path, *overrides: str) -> None:
    cfg = composed(folder, *overrides)
    with open_run(cfg, folder / "run") as run:
        task.convert(cfg, run)


def failure(folder: Path, *overrides: str) -> str:
    with pytest.raises(ValueError) as caught:
        convert(folder, *overrides)
    status = json.loads((folder / "run" / "status.json").read_text())
    assert status["status"] == "failed" and status["exit_code"] == 2
    return ending(caught.value).line


@torch.no_grad()
def test_the_written_folder_is_the_released_model_and_says_so(tmp_path: Path) -> None:
    convert(tmp_path, *SMALL)
    chosen = ("model=p2_celebahq", "model.steps=10", "model.respaced=false", "model.micro_batch=2")
    model = instantiate(composed(tmp_path, *chosen).model)
    assert isinstance(model, DiffusionModel) and (model.eta, model.rederive_direction) == (1.0, True)
    oracle = load_file(FIXTURE / "oracle.safetensors")
    assert model.timesteps == oracle["ddim10_timesteps"].flip(0).tolist()
    torch.testing.assert_close(model.unet(oracle["x"], oracle["t"]).sample, oracle["out"], rtol=0, atol=1e-5)
    made = model.pipeline(latents=oracle["noise"], num_inference_steps=10, use_clipped_model_output=True).images
    torch.testing.assert_close(made, (oracle["ddim10_eta0"] / 2 + 0.5).clamp(0, 1), rtol=0, atol=1e-4)
    # Its bottleneck can be read.
    (batch,) = model.sample(GenerationPlan(0, torch.arange(2)), record=Site())
    assert batch.images.shape == (2, 3, 32, 32)
    assert batch.activations.shape == (2, 10, 64, 8, 8) == (2, 10, *model.site_shape(Site()))
    folder = Path(composed(tmp_path).task.export_to)
    origin = json.loads((folder / "conversion.json").read_text())
    assert origin["checkpoint"] == "checkpoint.pt" and origin["sha256"] == sha256_of(FIXTURE / "checkpoint.pt")
    assert origin["head_channels"] == 32
    assert {path.stat().st_mode & 0o777 for path in folder.rglob("*") if path.is_file()} == {0o644}


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    line = failure(tmp_path, *SMALL, f"task.export_to={tmp_path / 'there'}")
    assert "not overwritten" in line and "task.export_to" in line
    assert not list((tmp_path / "there").iterdir())


def test_a_conversion_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(task, "write_json", full)
    with pytest.raises(OSError, match="No space"):
        convert(tmp_path, *SMALL, f"task.export_to={tmp_path / 'weights' / 'p2'}")
    assert not list((tmp_path / "weights").iterdir())


def test_what_cannot_be_converted_is_one_line(tmp_path: Path) -> None:
    assert "no checkpoint at" in failure(tmp_path)
    assert "head_channels=24 does not divide" in failure(tmp_path, *SMALL, "task.head_channels=24")
    state = torch.load(FIXTURE / "checkpoint.pt", weights_only=True)
    del state["out.0.bias"]
    torch.save({**state, "label_emb.weight": torch.zeros(2, 128)}, tmp_path / "other.pt")
    line = failure(tmp_path, *SMALL, f"task.checkpoint={tmp_path / 'other.pt'}")
    assert "missing keys: out.0.bias" in line and "unknown keys: label_emb.weight" in line and "\n" not in line
