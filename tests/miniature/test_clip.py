"""The miniature CLIP is open_clip's, learns, and comes back from disk as it was."""

import math
import stat
from pathlib import Path

import open_clip
import pytest
import torch
import yaml

from difflens.miniature.captions import caption
from difflens.miniature.clip import ClipModel, load_clip
from difflens.miniature.clip_recipe import (
    ClipRecipe,
    ForgivingClipLoss,
    _reading_loss,
    face_numbers,
    numbered_faces,
    value_counts,
)
from difflens.miniature.faces import FACTORS, WORKPLACE_FACTORS, render
from difflens.miniature.fit import FitSettings, fit
from difflens.miniature.population import Population

SETTINGS = FitSettings(steps=12, batch=16, lr=2e-3, warmup=2, ema=0.5, seed=3)
SMALL = {"width": 32, "layers": 1, "mlp_ratio": 2.0}


def recipe(held_out: int = 64, population: Population | None = None) -> ClipRecipe:
    vision = {**SMALL, "patch_size": 8, "head_width": 16, "pool_type": "avg"}
    return ClipRecipe(
        population or Population(),
        embed_dim=16,
        vision=vision,
        text={**SMALL, "heads": 2},
        full=0.6,
        supervision=0.25,
        held_out=held_out,
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, float]]:
    folder = tmp_path_factory.mktemp("clip")
    figures = fit(recipe(), SETTINGS, workspace=folder / "work", export_to=folder / "clip")
    return folder / "clip", figures


def test_face_numbers_count_every_distinct_face_once():
    for names in (tuple(FACTORS), ("gender", "age", "profession")):
        numbers = torch.arange(math.prod(value_counts(names)))
        assert torch.equal(face_numbers(numbered_faces(numbers, names)), numbers)


def test_faces_with_professions_are_learnt_from_captions_that_name_them():
    population = Population({"profession": {name: 1 / 9 for name in WORKPLACE_FACTORS["profession"]}})
    learner = recipe(population=population)
    factors, mentioned = learner.batch(0, SETTINGS)
    assert bool(mentioned["profession"].any()) and not mentioned["profession"][factors["profession"] == 0].any()
    assert learner.loss(learner.build(), 0, SETTINGS).isfinite()
    assert "firefighter" in learner.tokenizer.words and "firefighter" not in recipe().tokenizer.words


def test_held_out_faces_never_enter_a_batch():
    learner = recipe(held_out=6000)
    seen = torch.cat([face_numbers(learner.batch(step, SETTINGS)[0]) for step in range(40)])
    assert 200 < len(seen) < 500 and not torch.isin(seen, learner._held_out).any()


def test_a_loss_depends_on_weights_seed_and_step_alone():
    busy = recipe()
    torch.manual_seed(0)
    model = busy.build()
    busy.loss(model, 4, SETTINGS)
    torch.testing.assert_close(busy.loss(model, 5, SETTINGS), recipe().loss(model, 5, SETTINGS), rtol=0, atol=0)
    assert busy.loss(model, 5, SETTINGS) != busy.loss(model, 6, SETTINGS)


def test_reading_is_scored_on_mentioned_factors_only():
    torch.manual_seed(0)
    model = recipe().build()
    features = torch.nn.functional.normalize(torch.randn(6, 16), dim=1)
    factors = Population().sample(6, seed=0)
    nothing = {name: torch.zeros(6, dtype=torch.bool) for name in FACTORS}
    age = nothing | {"age": torch.tensor([True, False, False, False, False, False])}
    logits = model.factor_reader(features * 4)[0, 2:5]
    expected = (logits.logsumexp(0) - logits[factors["age"][0]]) / 6
    torch.testing.assert_close(_reading_loss(model, features, factors, age), expected)
    full = {name: torch.ones(6, dtype=torch.bool) for name in FACTORS}
    torch.testing.assert_close(_reading_loss(model, features, factors), _reading_loss(model, features, factors, full))


def test_remembered_renders_are_the_renders_in_eight_bits():
    factors = Population().sample(8, seed=2)
    learner = recipe()
    first, second = learner.images(factors), learner.images(factors)
    assert torch.equal(first, second)
    torch.testing.assert_close(first, render(factors), atol=0.5 / 255 + 1e-6, rtol=0)


def test_the_loss_is_open_clips_without_false_negatives_and_blind_to_them_with():
    generator = torch.Generator().manual_seed(0)
    images, texts = (torch.nn.functional.normalize(torch.randn(6, 4, generator=generator), dim=1) for _ in range(2))
    scale = torch.tensor(10.0)
    plain = open_clip.ClipLoss()(images, texts, scale)
    torch.testing.assert_close(ForgivingClipLoss(torch.eye(6, dtype=torch.bool))(images, texts, scale), plain)
    true = torch.eye(6, dtype=torch.bool)
    true[0, 1:] = True
    # Image 0 fits every caption: it has no negatives, and no caption has it as one.
    logits = scale * images @ texts.T
    per_image = -logits.log_softmax(1).diagonal()[1:].sum() / 6
    others = torch.cat([logits[1:, 1:].diagonal()[None] - logits[1:, 1:].logsumexp(0)], 1)
    caption_0 = logits[0, 0] - logits[:, 0].logsumexp(0)
    per_text = -(others.sum() + caption_0) / 6
    torch.testing.assert_close(ForgivingClipLoss(true)(images, texts, scale), (per_image + per_text) / 2)


def test_a_few_steps_lower_the_loss():
    learner = recipe()
    torch.manual_seed(0)
    model = learner.build()
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(8):
        loss = learner.loss(model, 0, SETTINGS)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.8 * losses[0]


def test_the_report_names_retrieval_and_every_factor(trained: tuple[Path, dict[str, float]]):
    figures = trained[1]
    assert set(figures) == {"image_to_text_top1", "text_to_image_top1", *(f"{name}_zero_shot" for name in FACTORS)}
    assert all(0 <= value <= 1 for value in figures.values())


def test_the_shipped_configuration_is_an_open_clip_model_of_at_most_three_million_parameters():
    path = Path(__file__).parents[2] / "conf/recipe/clip.yaml"
    settings = yaml.safe_load(path.read_text())["recipe"]
    del settings["_target_"]
    learner = ClipRecipe(Population(), **settings)
    model = learner.build()
    assert type(model) is open_clip.CLIP
    assert sum(parameter.numel() for parameter in model.parameters()) <= 3_000_000
    assert model.visual.grid_size == (8, 8)


def test_a_loaded_model_embeds_like_the_exported_one(tmp_path: Path):
    learner = recipe()
    torch.manual_seed(1)
    model = learner.build().eval()
    learner.export(model, tmp_path)
    loaded = load_clip(str(tmp_path))
    assert type(loaded.network) is open_clip.CLIP and not hasattr(loaded.network, "factor_reader")
    assert stat.S_IMODE((tmp_path / "open_clip_model.safetensors").stat().st_mode) == 0o644
    factors = Population().sample(12, seed=0)
    images, texts = render(factors), caption(factors, seed=0)
    original = ClipModel(lambda: model, learner.tokenizer)
    for embed, given in (("embed_images", images), ("embed_texts", texts)):
        mine, theirs = getattr(original, embed)(given), getattr(loaded, embed)(given)
        torch.testing.assert_close(mine, theirs, atol=4e-3, rtol=0)
        torch.testing.assert_close(theirs.norm(dim=1), torch.ones(12))
        assert theirs.dtype == torch.float32


def test_a_loaded_model_keeps_the_words_it_was_trained_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    learner = recipe()
    learner.export(learner.build(), tmp_path)
    monkeypatch.setattr("difflens.miniature.captions._OPENINGS", ("another opening of ",))
    text = caption(Population().sample(1, seed=0), seed=0)[0]
    assert torch.equal(load_clip(str(tmp_path)).tokenizer(text), learner.tokenizer(text))


def test_open_clip_prepares_images_as_the_model_does(trained: tuple[Path, dict[str, float]]):
    clip = load_clip(str(trained[0]))
    prepare = open_clip.create_model_from_pretrained(f"local-dir:{trained[0]}")[1]
    mean, std = (torch.tensor(prepare.transforms[-1].__dict__[key]) for key in ("mean", "std"))
    images = render(Population().sample(3, seed=0))
    by_open_clip = clip.network.encode_image((images - mean[:, None, None]) / std[:, None, None], normalize=True)
    torch.testing.assert_close(clip.embed_images(images), by_open_clip)


def test_features_are_what_the_projection_turns_into_embeddings(trained: tuple[Path, dict[str, float]]):
    clip = load_clip(str(trained[0]))
    images = render(Population().sample(5, seed=0))
    features = clip(images)
    assert features.shape == (5, clip.dim) and clip.name == "miniature-clip" and clip.resize == "bilinear"
    projected = torch.nn.functional.normalize(features @ clip.network.visual.proj, dim=1)
    torch.testing.assert_close(projected, clip.embed_images(images))


def test_embeddings_depend_neither_on_the_batch_split_nor_on_an_exact_enlargement(
    trained: tuple[Path, dict[str, float]],
):
    clip = load_clip(str(trained[0]))
    images = render(Population().sample(7, seed=0))
    whole = clip.embed_images(images)
    clip.batch = 3
    torch.testing.assert_close(clip.embed_images(images), whole)
    large = images.repeat_interleave(4, 2).repeat_interleave(4, 3)
    assert (clip.embed_images(large) * whole).sum(1).min() > 0.98


def test_mistakes_are_answered_with_the_remedy(tmp_path: Path):
    with pytest.raises(ValueError, match=r"task\.models=\[clip\]"):
        load_clip(str(tmp_path))
    learner = recipe()
    learner.export(learner.build(), tmp_path)
    weights = tmp_path / "open_clip_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    with pytest.raises(ValueError, match="half of one"):
        load_clip(str(tmp_path))
    with pytest.raises(ValueError, match="held_out"):
        recipe(held_out=3)
