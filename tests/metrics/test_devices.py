"""Whatever runs on a device answers on the CPU, and refuses a device that is not there, in words that name it."""

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
import torch
from second_device import second_device
from torch import Tensor, nn

from difflens.judges.clip import ClipWeights, OpenClipModel
from difflens.judges.fairface import FairFaceJudge
from difflens.judges.inception import InceptionFeatures, load_inception
from difflens.judges.weights import OnDemand
from difflens.judges.zero_shot import ZeroShotJudge
from difflens.miniature.clip import ClipModel, load_clip
from difflens.models.load import load_text_to_image


def inception(device: str) -> object:
    return load_inception(__file__, obtain="", sha256=None, device=device)


def stable_diffusion(device: str) -> object:
    return load_text_to_image("", precision="bf16", device=device, name="sd", steps=1, micro_batch=1)


BUILT: dict[str, Callable[[str], object]] = {
    "judge": lambda device: FairFaceJudge(nn.Linear(1, 1), device=device),
    "embeddings": lambda device: OpenClipModel(ClipWeights.__new__(ClipWeights), None, name="clip", device=device),
    "extractor": inception,
    "miniature": lambda device: load_clip("package:miniature/weights/clip", device=device),
    "pipeline": stable_diffusion,
}


@pytest.mark.parametrize("built", BUILT)
@pytest.mark.parametrize("device", ["warp", "xpu:77"])
def test_a_device_that_is_not_there_is_a_mistake_of_the_configuration(built: str, device: str) -> None:
    with pytest.raises(ValueError, match=rf"device={device} cannot be used here \(.*\); use cpu") as caught:
        BUILT[built](device)
    assert "\n" not in str(caught.value)


IMAGES = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
CLASSES = {"gender": {"female": ["a woman"], "male": ["a man"]}}


class SmallClip(nn.Module):
    """Mean colours and mean tokens as embeddings."""

    def __init__(self) -> None:
        super().__init__()
        self.logit_scale = nn.Parameter(torch.tensor(2.0))

    def encode_image(self, images: Tensor, normalize: bool) -> Tensor:
        return images.mean((2, 3)) * self.logit_scale

    def encode_text(self, tokens: Tensor, normalize: bool) -> Tensor:
        return tokens.float() * self.logit_scale


class SmallWeights(ClipWeights):
    """Of a `SmallClip`, in no file."""

    def __init__(self) -> None:
        self.preparation, self.fingerprint = {"size": 8, "mean": [0.5] * 3, "std": [0.5] * 3}, "small"

    def read(self, tower: str, *, device: torch.device) -> nn.Module:
        return SmallClip().to(device)


def answers(device: str) -> dict[str, Any]:
    """What every judge and extractor gives for images and texts on the CPU."""
    torch.manual_seed(0)
    fairface = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 18))
    layers = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2048)).to(device)
    small = OpenClipModel(SmallWeights(), lambda texts: torch.ones(len(texts), 3).long(), name="small", device=device)
    shipped = load_clip("package:miniature/weights/clip")
    miniature = ClipModel(lambda: deepcopy(shipped.network).to(device), shipped.tokenizer)
    return {
        "fairface": FairFaceJudge(fairface, device=device)(IMAGES),
        "zero shot": ZeroShotJudge(small, prompts=CLASSES, templates=["{}"])(IMAGES),
        "inception": InceptionFeatures(OnDemand(lambda: layers), fingerprint="", device=device)(IMAGES),
        "small clip": [small.embed_images(IMAGES), small.embed_texts(["a face"])],
        "miniature clip": [miniature(IMAGES), miniature.embed_images(IMAGES), miniature.embed_texts(["a face"])],
    }


def test_judges_and_extractors_on_another_device_answer_on_the_cpu() -> None:
    expected = answers("cpu")
    with second_device() as device:
        found = answers(str(device))
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
