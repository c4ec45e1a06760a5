"""Whatever runs on a device refuses one that is not there, in words that name it."""

from collections.abc import Callable

import pytest
from torch import nn

from difflens.metrics.clip_weights import ClipWeights
from difflens.metrics.embeddings import OpenClipModel
from difflens.metrics.fairface import FairFaceJudge
from difflens.metrics.inception import load_inception
from difflens.miniature.clip import load_clip
from difflens.models.pipelines import load_text_to_image


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
