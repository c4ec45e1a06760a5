"""Folders of models: weights in pickled files are read as tensors alone, and nothing that a folder brings is ever run."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMPipeline
from tiny_pipeline import tiny_pipeline, tiny_unconditional

from difflens.models.load import load_text_to_image, load_unconditional

SETTINGS = {"name": "x", "steps": 4, "micro_batch": 2}


class Mischief:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, (str(Path("mischief").absolute()),)


@pytest.fixture(scope="module")
def pickled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pickled")
    tiny_pipeline().save_pretrained(folder, safe_serialization=False)
    return folder


def test_pickled_weights_are_read_as_tensors(tmp_path: Path, pickled: Path) -> None:
    model = tiny_unconditional()
    DDIMPipeline(model.unet, model.pipeline.scheduler).save_pretrained(tmp_path, safe_serialization=False)
    loaded = load_unconditional(str(tmp_path), **SETTINGS)
    for name, value in model.unet.state_dict().items():
        assert torch.equal(loaded.unet.state_dict()[name], value)
    assert (pickled / "unet/diffusion_pytorch_model.bin").is_file()
    assert load_text_to_image(str(pickled), **SETTINGS).fingerprints["unet"]


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder", "code", "library", "pipeline"])
def test_nothing_of_a_folder_is_run(part: str, tmp_path: Path, pickled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = shutil.copytree(pickled, tmp_path / "model")
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "unet" / "mine.py").write_text("from pathlib import Path\nPath('mischief').touch()\n")
    (folder / "mine.py").write_text("from pathlib import Path\nPath('mischief').touch()\n")
    changed = {"code": {"unet": ["mine", "Mine"]}, "library": {"unet": ["subprocess", "Popen"]}}
    changed["pipeline"] = {"_class_name": ["mine", "Mine"]}
    (folder / "model_index.json").write_text(json.dumps(index | changed.get(part, {})))
    if part not in changed:
        for file in [*(folder / part).glob("*.bin"), *(folder / part).glob("*.safetensors")]:
            file.unlink()
        name = "pytorch_model.bin" if part == "text_encoder" else "diffusion_pytorch_model.bin"
        torch.save({"x": Mischief()}, folder / part / name)
    with pytest.raises(ValueError, match=r"cannot be loaded: |models here are diffusers pipelines") as caught:
        load_text_to_image(str(folder), **SETTINGS)
    assert "\n" not in str(caught.value) and not (tmp_path / "mischief").exists()


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline with files of half precision alone, the U-Net's in shards, as the hub has many."""
    folder = tmp_path_factory.mktemp("half")
    pipeline = tiny_pipeline()
    pipeline.save_pretrained(folder, variant="fp16")
    shutil.rmtree(folder / "unet")
    pipeline.unet.save_pretrained(folder / "unet", variant="fp16", max_shard_size="100KB")
    assert len(list((folder / "unet").glob("*.fp16-*.safetensors"))) > 1, "the U-Net is not in shards"
    return folder


def test_files_of_half_precision_alone_load_without_a_word(
    half: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture, recwarn: pytest.WarningsRecorder
) -> None:
    loaded = load_text_to_image(str(half), **SETTINGS)
    assert next(loaded.unet.parameters()).dtype == torch.float32
    assert not caplog.records and not recwarn.list and capfd.readouterr() == ("", "")


def renamed(folder: Path) -> None:
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {"_class_name": "FluxPipeline"}))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda folder: sorted((folder / "unet").glob("*.safetensors"))[0].unlink(),
            r"incomplete \(no unet/.*00001-of",
        ),
        (lambda folder: shutil.rmtree(folder / "text_encoder"), "incomplete .*no text_encoder/config.json"),
        (lambda folder: shutil.rmtree(folder / "tokenizer"), r"incomplete \(no tokenizer/\)"),
        (lambda folder: (folder / "model_index.json").unlink(), "no model_index.json"),
        (renamed, "is a FluxPipeline|cannot be loaded"),
    ],
)
def test_what_a_folder_lacks_or_is_instead_is_named(half: Path, tmp_path: Path, damage: Any, message: str) -> None:
    folder = shutil.copytree(half, tmp_path / "model")
    damage(folder)
    with pytest.raises(ValueError, match=message) as caught:
        load_text_to_image(str(folder), **SETTINGS)
    assert "\n" not in str(caught.value)


def test_a_text_to_image_folder_is_no_unconditional_model(half: Path) -> None:
    with pytest.raises(ValueError, match=r"is a StableDiffusionPipeline .UNet2DConditionModel."):
        load_unconditional(str(half), **SETTINGS)
