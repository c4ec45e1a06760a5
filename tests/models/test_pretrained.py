"""Published models are found in a folder or in the hub's cache, in either layout, and never fetched."""

import shutil
from pathlib import Path

import huggingface_hub
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, UNet2DModel
from safetensors.torch import load_file, save_file

from difflens.models.load import find_pipeline, load_unconditional
from difflens.models.model import DiffusionModel, UnconditionalPipeline
from difflens.store.locations import locate

SETTINGS = {"name": "tiny", "steps": 5, "micro_batch": 2}
OBTAIN = "hf download someone/faces"
OLD_NAMES = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


@pytest.fixture(autouse=True)
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty hub cache."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def write_side_by_side(unet: UNet2DModel, folder: Path) -> None:
    """The layout, the names of attention and the scheduler of the DDPM repositories."""
    unet.save_pretrained(folder)
    DDPMScheduler(beta_schedule="linear", clip_sample=True).save_pretrained(folder)
    path = folder / "diffusion_pytorch_model.safetensors"
    tensors = {}
    for key, value in load_file(path).items():
        for new, old in OLD_NAMES.items():
            key = key.replace(f".{new}.", f".{old}.") if "attentions" in key else key
        tensors[key] = value
    assert any(".proj_attn." in key for key in tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def cached(cache: Path, unet: UNet2DModel) -> None:
    """`someone/faces` in the cache, as `hf download` leaves it."""
    repository = cache / "models--someone--faces"
    write_side_by_side(unet, repository / "snapshots" / "0123abcd")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0123abcd")


def test_a_hub_id_is_found_in_the_cache(unet: UNet2DModel, offline: Path) -> None:
    cached(offline, unet)
    model = load_unconditional("someone/faces", obtain=OBTAIN, **SETTINGS)
    expected = DiffusionModel(UnconditionalPipeline(unet, DDIMScheduler()), **SETTINGS)
    assert isinstance(model.pipeline.scheduler, DDIMScheduler) and model.timesteps == expected.timesteps
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(model.unet(x, 400).sample, expected.unet(x, 400).sample)


@pytest.mark.parametrize("nested", [True, False])
def test_a_folder_is_read_in_either_layout(unet: UNet2DModel, tmp_path: Path, nested: bool) -> None:
    if nested:
        unet.save_pretrained(tmp_path / "m" / "unet")
        DDIMScheduler().save_pretrained(tmp_path / "m" / "scheduler")
    else:
        write_side_by_side(unet, tmp_path / "m")
    model = load_unconditional(str(tmp_path / "m"), obtain=OBTAIN, **SETTINGS)
    assert all(torch.equal(a, b) for a, b in zip(model.unet.parameters(), unet.parameters(), strict=True))


def test_an_absent_model_says_where_it_was_looked_for_and_how_to_get_it(offline: Path) -> None:
    with pytest.raises(ValueError) as caught:
        load_unconditional("someone/faces", obtain=OBTAIN, **SETTINGS)
    for told in ("someone/faces", str(offline), f"`{OBTAIN}`", "model.folder"):
        assert told in str(caught.value)
    with pytest.raises(ValueError, match=r"no model at '/nowhere/at/all'; get it with"):
        load_unconditional("/nowhere/at/all", obtain=OBTAIN, **SETTINGS)


def test_a_half_fetched_model_is_named(unet: UNet2DModel, tmp_path: Path) -> None:
    write_side_by_side(unet, tmp_path / "m")
    (tmp_path / "m" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(ValueError, match=f"incomplete .*{OBTAIN}"):
        load_unconditional(str(tmp_path / "m"), obtain=OBTAIN, **SETTINGS)
    (tmp_path / "m" / "scheduler_config.json").unlink()
    with pytest.raises(ValueError, match=r"no scheduler/scheduler_config\.json"):
        load_unconditional(str(tmp_path / "m"), obtain=OBTAIN, **SETTINGS)


def test_a_folder_that_is_no_whole_model_is_not_taken_for_one(unet: UNet2DModel, tmp_path: Path, offline: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"incomplete \(no unet/config\.json.*no scheduler/scheduler_config\.json"):
        find_pipeline(str(tmp_path / "empty"), obtain=OBTAIN)
    cached(offline, unet)
    snapshot = find_pipeline("someone/faces", obtain=OBTAIN)
    (snapshot / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(ValueError, match=rf"no weights beside .*config\.json\); get it again with `{OBTAIN}`"):
        find_pipeline("someone/faces", obtain=OBTAIN)


def test_every_part_that_a_pipeline_names_is_looked_for(tmp_path: Path) -> None:
    path = tmp_path / "pipeline"
    shutil.copytree(locate("package:miniature/weights/text_to_image/pipeline"), path)
    assert find_pipeline(str(path), obtain=OBTAIN) == path
    shutil.rmtree(path / "tokenizer")
    (weights,) = (path / "vae").glob("*.safetensors")
    weights.unlink()
    with pytest.raises(ValueError, match=r"incomplete \(no tokenizer/, no weights beside vae/config\.json\)"):
        find_pipeline(str(path), obtain=OBTAIN)
    with pytest.raises(ValueError, match=r"set model\.source to where it lies"):
        find_pipeline("someone/else", obtain=OBTAIN, key="model.source")
