"""Judges and CLIP learn, report and export what they should, and come back from disk as they were."""

import math
import stat
from pathlib import Path

import open_clip
import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from difflens.judges.protocol import select_classes
from difflens.miniature.captions import caption
from difflens.miniature.clip import ClipModel, load_clip
from difflens.miniature.faces import FACTORS, WORKPLACE_FACTORS, render
from difflens.miniature.fit import FitSettings, fit
from difflens.miniature.judges import MiniatureJudge, load_judge
from difflens.miniature.population import POPULATIONS, Population
from difflens.miniature.reader_recipes import (
    ClipRecipe,
    JudgeRecipe,
    face_numbers,
    forgiving_clip_loss,
    numbered_faces,
    reading_loss,
    value_counts,
)
from difflens.vocabulary import Attribute

NAMES = ("judge", "second_judge")
SETTINGS = FitSettings(steps=12, batch=16, lr=2e-3, warmup=2, ema=0.5, seed=3)
SMALL = {"width": 32, "layers": 1, "mlp_ratio": 2.0}
PLAIN, WORKPLACE = Population(), POPULATIONS["workplace_uniform"]


@pytest.fixture(scope="module", params=NAMES)
def judge(request: pytest.FixtureRequest) -> MiniatureJudge:
    return load_judge(f"package:miniature/weights/{request.param}")


def test_a_judge_reads_every_factor_of_faces_it_never_saw(judge: MiniatureJudge) -> None:
    faces = PLAIN.sample(2048, seed=99)
    logits = judge(render(faces))
    for name, index in faces.items():
        assert float((logits[name].argmax(-1) == index).double().mean()) >= 0.99, name


def test_a_judge_bears_eight_bit_images_and_slight_noise(judge: MiniatureJudge) -> None:
    faces = PLAIN.sample(512, seed=98)
    images = (render(faces) * 255).round() / 255
    noisy = (images + 0.03 * torch.randn(images.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 1)
    logits = judge(noisy)
    for name in ("gender", "age", "race", "glasses", "smile"):
        assert float((logits[name].argmax(-1) == faces[name]).double().mean()) >= 0.99, name


def test_the_two_judges_are_different_networks() -> None:
    first, second = (load_judge(f"package:miniature/weights/{name}") for name in NAMES)
    assert type(first.network) is not type(second.network) and first.fingerprint != second.fingerprint


def test_classes_are_found_by_name(judge: MiniatureJudge) -> None:
    assert select_classes(judge, Attribute("gender", ("male", "female"))).tolist() == [1, 0]
    assert tuple(judge.classes) == tuple(FACTORS)
    with pytest.raises(ValueError, match="no class"):
        select_classes(judge, Attribute("gender", ("man", "woman")))


def test_a_judge_never_learns_from_the_faces_that_score_it() -> None:
    recipe = JudgeRecipe("judge", "mixer", PLAIN, pool=30000, held_out=1024)
    learnt = set(face_numbers(recipe.faces).tolist())
    assert len(learnt) > 10000 and not learnt & set(recipe.unseen.tolist())
    assert set(recipe.report(recipe.build().eval())) == {f"{name}_accuracy" for name in FACTORS}


@pytest.mark.parametrize("architecture", ["convolutional", "mixer"])
def test_a_judge_reads_the_factors_of_its_population(architecture: str, tmp_path: Path) -> None:
    recipe = JudgeRecipe("judge", architecture, WORKPLACE, pool=64, held_out=64)
    network = recipe.build().eval()
    recipe.export(network, tmp_path)
    judge, images = load_judge(str(tmp_path)), render(WORKPLACE.sample(9, seed=0))
    assert dict(judge.classes) == dict(WORKPLACE_FACTORS)
    for name, logits in judge(images).items():
        assert logits.shape == (9, len(WORKPLACE_FACTORS[name]))
        torch.testing.assert_close(logits, network(images)[name], rtol=0, atol=2e-2)


def recipe(held_out: int = 64, population: Population = PLAIN) -> ClipRecipe:
    vision = {**SMALL, "patch_size": 8, "head_width": 16, "pool_type": "avg"}
    text = {**SMALL, "heads": 2}
    return ClipRecipe(population, embed_dim=16, vision=vision, text=text, full=0.6, supervision=0.25, held_out=held_out)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, float]]:
    folder = tmp_path_factory.mktemp("clip")
    figures = fit(recipe(), SETTINGS, workspace=folder / "work", export_to=folder / "clip")
    return folder / "clip", figures


@pytest.fixture
def clip(trained: tuple[Path, dict[str, float]]) -> ClipModel:
    return load_clip(str(trained[0]))


def test_face_numbers_count_every_distinct_face_once() -> None:
    for names in (tuple(FACTORS), ("gender", "age", "profession")):
        numbers = torch.arange(math.prod(value_counts(names)))
        assert torch.equal(face_numbers(numbered_faces(numbers, names)), numbers)


def test_faces_with_professions_are_learnt_from_captions_that_name_them() -> None:
    learner = recipe(population=WORKPLACE)
    factors, mentioned = learner.batch(0, SETTINGS)
    assert bool(mentioned["profession"].any()) and not mentioned["profession"][factors["profession"] == 0].any()
    assert learner.loss(learner.build(), 0, SETTINGS).isfinite()
    assert "firefighter" in learner.tokenizer.words and "firefighter" not in recipe().tokenizer.words


def test_held_out_faces_never_enter_a_batch() -> None:
    learner = recipe(held_out=6000)
    seen = torch.cat([face_numbers(learner.batch(step, SETTINGS)[0]) for step in range(40)])
    assert 200 < len(seen) < 500 and not torch.isin(seen, learner.unseen).any()
    with pytest.raises(ValueError, match="held_out"):
        recipe(held_out=3)


def test_a_loss_depends_on_weights_seed_and_step_alone_and_falls() -> None:
    busy = recipe()
    torch.manual_seed(0)
    model = busy.build()
    busy.loss(model, 4, SETTINGS)
    first = busy.loss(model, 5, SETTINGS)
    torch.testing.assert_close(first, recipe().loss(model, 5, SETTINGS), rtol=0, atol=0)
    assert first != busy.loss(model, 6, SETTINGS)
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(8):
        optimiser.zero_grad()
        loss = busy.loss(model, 5, SETTINGS)
        loss.backward()
        optimiser.step()
    assert float(loss.detach()) < 0.8 * float(first.detach())


def test_reading_is_scored_on_mentioned_factors_only() -> None:
    torch.manual_seed(0)
    model = recipe().build()
    features = normalize(torch.randn(6, 16), dim=1)
    factors = PLAIN.sample(6, seed=0)
    nothing = {name: torch.zeros(6, dtype=torch.bool) for name in FACTORS}
    age = nothing | {"age": torch.tensor([True, False, False, False, False, False])}
    logits = model.factor_reader(features * 4)[0, 2:5]
    expected = (logits.logsumexp(0) - logits[factors["age"][0]]) / 6
    torch.testing.assert_close(reading_loss(model, features, factors, age), expected)
    full = {name: torch.ones(6, dtype=torch.bool) for name in FACTORS}
    torch.testing.assert_close(reading_loss(model, features, factors), reading_loss(model, features, factors, full))


def test_the_loss_is_open_clips_without_false_negatives_and_blind_to_them_with() -> None:
    generator = torch.Generator().manual_seed(0)
    images, texts = (normalize(torch.randn(6, 4, generator=generator), dim=1) for _ in range(2))
    scale, true = torch.tensor(10.0), torch.eye(6, dtype=torch.bool)
    plain = open_clip.ClipLoss()(images, texts, scale)
    torch.testing.assert_close(forgiving_clip_loss(images, texts, scale, true), plain)
    true[0, 1:] = True
    # Image 0 fits every caption: it has no negatives, and no caption has it as one.
    logits = scale * images @ texts.T
    per_image = -logits.log_softmax(1).diagonal()[1:].sum() / 6
    others = logits[1:, 1:].diagonal() - logits[1:, 1:].logsumexp(0)
    per_text = -(others.sum() + logits[0, 0] - logits[:, 0].logsumexp(0)) / 6
    torch.testing.assert_close(forgiving_clip_loss(images, texts, scale, true), (per_image + per_text) / 2)


def test_the_report_names_retrieval_and_every_factor(trained: tuple[Path, dict[str, float]]) -> None:
    figures = trained[1]
    assert set(figures) == {"image_to_text_top1", "text_to_image_top1", *(f"{name}_zero_shot" for name in FACTORS)}
    assert all(0 <= value <= 1 for value in figures.values())
    assert stat.S_IMODE((trained[0] / "open_clip_model.safetensors").stat().st_mode) == 0o644


def test_a_loaded_model_embeds_like_the_exported_one_and_keeps_its_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner = recipe()
    torch.manual_seed(1)
    model = learner.build().eval()
    learner.export(model, tmp_path)
    loaded = load_clip(str(tmp_path))
    assert type(loaded.network) is open_clip.CLIP and not hasattr(loaded.network, "factor_reader")
    factors = PLAIN.sample(12, seed=0)
    original = ClipModel(lambda: model, learner.tokenizer)
    for embed, given in (("embed_images", render(factors)), ("embed_texts", caption(factors, seed=0))):
        mine, theirs = getattr(original, embed)(given), getattr(loaded, embed)(given)
        torch.testing.assert_close(mine, theirs, atol=4e-3, rtol=0)
        torch.testing.assert_close(theirs.norm(dim=1), torch.ones(12))
        assert theirs.dtype == torch.float32
    monkeypatch.setattr("difflens.miniature.captions._OPENINGS", ("another opening of ",))
    text = caption(factors, seed=0)[0]
    assert torch.equal(load_clip(str(tmp_path)).tokenizer(text), learner.tokenizer(text))


def test_open_clip_prepares_images_as_the_model_does(clip: ClipModel, trained: tuple[Path, dict[str, float]]) -> None:
    prepare = open_clip.create_model_from_pretrained(f"local-dir:{trained[0]}")[1]
    mean, std = (torch.tensor(prepare.transforms[-1].__dict__[key])[:, None, None] for key in ("mean", "std"))
    images = render(PLAIN.sample(3, seed=0))
    torch.testing.assert_close(
        clip.embed_images(images), clip.network.encode_image((images - mean) / std, normalize=True)
    )


def test_features_are_what_the_projection_turns_into_embeddings(clip: ClipModel) -> None:
    images = render(PLAIN.sample(5, seed=0))
    features = clip(images)
    assert features.shape == (5, clip.dim) and clip.name == "miniature-clip" and clip.resize == "bilinear"
    torch.testing.assert_close(normalize(features @ clip.network.visual.proj, dim=1), clip.embed_images(images))


def test_embeddings_depend_neither_on_the_batch_split_nor_on_an_exact_enlargement(clip: ClipModel) -> None:
    images: Tensor = render(PLAIN.sample(7, seed=0))
    whole = clip.embed_images(images)
    clip.batch = 3
    torch.testing.assert_close(clip.embed_images(images), whole)
    large = images.repeat_interleave(4, 2).repeat_interleave(4, 3)
    assert (clip.embed_images(large) * whole).sum(1).min() > 0.98


def test_mistakes_are_answered_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"task\.models=\[clip\]"):
        load_clip(str(tmp_path))
    learner = recipe()
    learner.export(learner.build(), tmp_path)
    weights = tmp_path / "open_clip_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    with pytest.raises(ValueError, match="half of one"):
        load_clip(str(tmp_path))
