from pathlib import Path

import pytest
import torch

from difflens.judges.protocol import select_classes
from difflens.miniature.faces import FACTORS, WORKPLACE_FACTORS, render
from difflens.miniature.judges import JudgeRecipe, MiniatureJudge, load_judge
from difflens.miniature.population import Population
from difflens.vocabulary import Attribute

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


@pytest.mark.parametrize("architecture", ["convolutional", "mixer"])
def test_a_judge_reads_the_factors_of_its_population(architecture: str, tmp_path: Path) -> None:
    population = Population({"profession": {name: 1 / 9 for name in WORKPLACE_FACTORS["profession"]}})
    recipe = JudgeRecipe("judge", architecture=architecture, population=population, pool=64, held_out=8)
    network = recipe.build().eval()
    recipe.export(network, tmp_path)
    judge, images = load_judge(str(tmp_path)), render(population.sample(9, seed=0))
    assert dict(judge.classes) == dict(WORKPLACE_FACTORS)
    for name, logits in judge(images).items():
        assert logits.shape == (9, len(WORKPLACE_FACTORS[name]))
        torch.testing.assert_close(logits, network(images)[name], rtol=0, atol=2e-2)


def test_judges_from_before_professions_read_what_they_always_did(tmp_path: Path) -> None:
    recipe = JudgeRecipe("judge", architecture="mixer", population=Population(), pool=64, held_out=8)
    recipe.export(recipe.build(), tmp_path)
    new = load_judge(str(tmp_path))
    (tmp_path / "config.json").write_text('{"architecture": "mixer"}')
    old, images = load_judge(str(tmp_path)), render(Population().sample(4, seed=0))
    assert old.fingerprint == new.fingerprint and tuple(old.classes) == tuple(FACTORS)
    assert all(torch.equal(logits, new(images)[name]) for name, logits in old(images).items())


def test_classes_are_found_by_name(judge: MiniatureJudge) -> None:
    assert select_classes(judge, Attribute("gender", ("male", "female"))).tolist() == [1, 0]
    assert tuple(judge.classes) == tuple(FACTORS)
    with pytest.raises(ValueError, match="no class"):
        select_classes(judge, Attribute("gender", ("man", "woman")))
