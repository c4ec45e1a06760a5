import pytest
import torch

from difflens.metrics.judges import select_classes
from difflens.miniature.faces import FACTORS, render
from difflens.miniature.judges import MiniatureJudge, load_judge
from difflens.miniature.population import Population
from difflens.types import Attribute

NAMES = ("judge", "second_judge")


@pytest.fixture(scope="module", params=NAMES)
def judge(request: pytest.FixtureRequest) -> MiniatureJudge:
    return load_judge(f"package:miniature/weights/{request.param}")


def test_a_judge_reads_every_factor_of_faces_it_never_saw(judge: MiniatureJudge) -> None:
    faces = Population().sample(2048, seed=99)
    logits = judge(render(faces))
    for name, index in faces.items():
        assert float((logits[name].argmax(-1) == index).double().mean()) >= 0.99, name


def test_a_judge_bears_eight_bit_images_and_slight_noise(judge: MiniatureJudge) -> None:
    faces = Population().sample(512, seed=98)
    images = (render(faces) * 255).round() / 255
    noisy = (images + 0.03 * torch.randn(images.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 1)
    for name in ("gender", "age", "race", "glasses", "smile"):
        assert float((judge(noisy)[name].argmax(-1) == faces[name]).double().mean()) >= 0.99, name


def test_the_two_judges_are_different_networks() -> None:
    first, second = (load_judge(f"package:miniature/weights/{name}") for name in NAMES)
    assert type(first.network) is not type(second.network)
    assert first.fingerprint != second.fingerprint


def test_classes_are_found_by_name(judge: MiniatureJudge) -> None:
    assert select_classes(judge, Attribute("gender", ("male", "female"))).tolist() == [1, 0]
    assert tuple(judge.classes) == tuple(FACTORS)
    with pytest.raises(ValueError, match="no class"):
        select_classes(judge, Attribute("gender", ("man", "woman")))
