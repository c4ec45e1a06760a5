"""Photorealistic faces: the network cut to the face draws what the whole one does, and a stopped run goes on."""

from pathlib import Path

import numpy as np
import openvino as ov
import pytest
import torch
from openvino import opset13 as ops
from torch import Tensor

from difflens.miniature.diffusion_recipes import load_vae
from difflens.miniature.fit import FitSettings, fit
from difflens.miniature.photo_recipes import SHEET, PhotoRecipe, PhotoVaeRecipe, chosen
from difflens.miniature.photographs import (
    LEFT,
    MARGIN,
    SIDE,
    TOP,
    FaceNetwork,
    FaceRecipe,
    load_faces,
    load_sheet,
    mean_style,
)
from difflens.models.load import load_unconditional
from difflens.store.errors import UserError
from difflens.vocabulary import GenerationPlan


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stand-in with the published network's names and shapes: a pattern, brighter with the style, and noise upon it."""
    folder, draw = tmp_path_factory.mktemp("networks"), np.random.default_rng(0)
    variable = ops.parameter([1, 512], np.float32, name="var")
    ov.save_model(ov.Model([ops.multiply(variable, np.float32(0.5))], [variable]), folder / "MappingNetwork.xml", False)
    style = ops.parameter([1, 512], np.float32, name="style")
    level = ops.reshape(ops.reduce_mean(style, np.array([0, 1])), np.array([1, 1, 1, 1]), False)
    maps = ops.prelu(ops.add(draw.standard_normal((1, 2, 128, 128), dtype=np.float32), level), np.float32(0.2))
    maps.set_friendly_name("LeakyRelu_542")
    for size in (256, 512):
        maps = ops.interpolate(maps, np.array([2, 2], dtype=np.float32), "nearest", "scales", axes=np.array([2, 3]))
        maps = ops.add(maps, draw.standard_normal((1, 1, size, size), dtype=np.float32))
    maps = ops.convolution(
        maps, 0.1 * draw.standard_normal((12, 2, 3, 3), dtype=np.float32), [1, 1], [1, 1], [1, 1], [1, 1]
    )
    found = ops.add(maps, np.float32(0.1))
    found.set_friendly_name("Add_754")
    ov.save_model(ov.Model([ops.sigmoid(found)], [style]), folder / "SynthesisNetwork.xml", False)
    return folder


def test_the_network_cut_to_the_face_draws_what_the_whole_one_draws(networks: Path) -> None:
    mean = mean_style(networks, seed=1, draws=3)
    variables = np.random.default_rng(2).standard_normal((2, 512)).astype(np.float32)
    found = FaceNetwork(networks, mean, truncation=0.8).draw(variables)
    whole = ov.Core().read_model(networks / "SynthesisNetwork.xml")
    last = next(op for op in whole.get_ops() if op.get_friendly_name() == "Add_754")
    whole = ov.Core().compile_model(
        ov.Model([last.output(0)], whole.get_parameters()), "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
    )
    top, left, side = (4 * value for value in (TOP, LEFT, SIDE))
    for variable, face in zip(variables, found, strict=True):
        picture = whole(mean + 0.8 * (0.5 * variable[None] - mean))[0][0, :3] / 2
        inner = picture[:, top + MARGIN : top + side - MARGIN, left + MARGIN : left + side - MARGIN]
        pooled = inner.reshape(3, 96, 4, 96, 4).mean((2, 4)).clip(-1, 1)
        np.testing.assert_allclose(face, 127.5 * (pooled + 1), atol=0.51)


def test_a_stopped_run_draws_only_what_is_missing_and_the_same_faces(networks: Path, tmp_path: Path) -> None:
    recipe = FaceRecipe(str(networks), faces=6, shard=2)
    recipe.make(tmp_path)
    faces, shards = load_faces(str(tmp_path)), sorted(tmp_path.glob("faces-*.safetensors"))
    assert faces.shape == (6, 3, 96, 96) and len(shards) == 3 and len({face.numpy().tobytes() for face in faces}) == 6
    shards[1].unlink()
    kept = shards[0].stat().st_mtime_ns
    recipe.make(tmp_path)
    assert torch.equal(load_faces(str(tmp_path)), faces) and shards[0].stat().st_mtime_ns == kept


def test_what_is_missing_is_named_with_how_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"MappingNetwork.xml .*`pip download --no-deps random-face"):
        FaceRecipe(str(tmp_path), faces=2).make(tmp_path / "faces")
    with pytest.raises(ValueError, match="no faces in"):
        load_faces(str(tmp_path))


class Brightness:
    """A judge that takes bright faces for men; `doubt` is how much."""

    def __init__(self, classes: tuple[str, str], *, doubt: float = 0.0) -> None:
        self.classes, self.doubt, self.name = {"gender": classes}, doubt, "brightness"
        self.fingerprint = f"brightness {doubt}"

    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        bright = 40 * (images.mean((1, 2, 3)) - 0.5 - self.doubt)
        order = [bright if name == "male" else -bright for name in self.classes["gender"]]
        return {"gender": torch.stack(order, 1)}


def test_faces_are_those_of_which_both_judges_are_sure_in_the_shares_asked_for() -> None:
    classes, sure = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1]), torch.tensor([1, 0, 1, 1, 1, 1, 0, 1]).bool()
    assert chosen(classes, sure, {"a": 1 / 3, "b": 2 / 3}, ("a", "b")).tolist() == [0, 4, 5, 7]
    assert chosen(classes, sure, {"a": 0.5, "b": 0.5}, ("a", "b"), at_most=2).tolist() == [0, 4]
    with pytest.raises(ValueError, match="are sure"):
        chosen(classes, torch.zeros(8, dtype=torch.bool), {"a": 0.5, "b": 0.5}, ("a", "b"))
    with pytest.raises(ValueError, match="shares of gender"):
        chosen(classes, sure, {"a": 1.0}, ("a", "b"))


def test_the_model_of_photographs_learns_latents_and_is_exported_as_a_pipeline(tmp_path: Path) -> None:
    torch.manual_seed(0)
    levels = torch.linspace(0, 255, 24)[torch.randperm(24)].view(24, 1, 1, 1)
    faces = (levels + 20 * torch.randn(24, 3, 96, 96)).clamp(0, 255).byte()
    blocks = {"down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2}
    small = {"layers_per_block": 1, "norm_num_groups": 8, "block_out_channels": [8, 8]}
    autoencoder = PhotoVaeRecipe(
        faces, 16, vae={"latent_channels": 4, "sample_size": 16, **blocks, **small}, kl=1e-4, held_out=4
    )
    generator = torch.Generator().manual_seed(0)
    drawn = autoencoder.images(64, generator)
    pictures = autoencoder.pictures[:20].float() / 127.5 - 1
    both = torch.cat([pictures, pictures.flip(-1)])
    assert all(bool((image == both).flatten(1).all(1).any()) for image in drawn)
    assert any(bool((image == pictures.flip(-1)).flatten(1).all(1).any()) for image in drawn)
    # Long enough to give brightness back, by which the judges below tell.
    fit(
        autoencoder, FitSettings(200, 8, 1e-2, ema=0.9, warmup=10), workspace=tmp_path / "w", export_to=tmp_path / "vae"
    )
    recipe = PhotoRecipe(
        faces,
        16,
        shares={"female": 0.75, "male": 0.25},
        labels=Brightness(("male", "female")),
        scores=Brightness(("female", "male"), doubt=0.1),
        sure=0.8,
        autoencoder=load_vae(str(tmp_path / "vae")),
        unet={
            "sample_size": 8, "in_channels": 4, "out_channels": 4, "down_block_types": ["DownBlock2D"],
            "up_block_types": ["UpBlock2D"], "layers_per_block": 1, "norm_num_groups": 8, "block_out_channels": [8],
        },
        scheduler={"num_train_timesteps": 10, "prediction_type": "v_prediction", "clip_sample": False},
        watched=6,
        watched_steps=2,
        reference=4,
    )  # fmt: skip
    classes, sure = recipe.seen
    assert 0 < int(sure.sum()) < 24, "of some the judges say different things"
    assert recipe.pool == 2 * len(recipe.drawn(recipe.shares)) and recipe.latents.shape[1:] == (4, 8, 8)
    figures = fit(recipe, FitSettings(2, 4, 1e-3), workspace=tmp_path / "g", export_to=tmp_path / "photo")
    assert figures["male"] + figures["female"] == pytest.approx(1) and 0 <= figures["sure"] <= 1
    kept = load_sheet(str(tmp_path / "photo" / SHEET), side=16, images=4)
    of_whom = [int((recipe.pictures == face).flatten(1).all(1).nonzero()[0]) for face in kept]
    assert bool(sure[of_whom].all()) and sorted(classes[of_whom].tolist()) == [0, 0, 1, 1]
    with pytest.raises(ValueError, match="4 pictures"):
        load_sheet(str(tmp_path / "photo" / SHEET), side=16, images=5)
    model = load_unconditional(str(tmp_path / "photo"), name="mini_photo", steps=2, micro_batch=2)
    made = torch.cat([batch.images for batch in model.sample(GenerationPlan(1, torch.arange(2)))])
    assert made.shape == (2, 3, 16, 16)
