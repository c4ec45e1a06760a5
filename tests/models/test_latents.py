"""Unconditional models of latents: the noise becomes what diffusers' own pipeline makes of it, and their decoder counts."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny, DDIMScheduler, LDMPipeline, VQModel
from tiny_pipeline import Shift, tiny_unet

from difflens.models.load import load_unconditional
from difflens.models.model import DiffusionModel
from difflens.models.sampling import image_generator
from difflens.models.steered import edited_pipeline
from difflens.vocabulary import GenerationPlan, Site

MIDDLE = Site("mid_block")
SETTINGS: dict[str, Any] = {"name": "latents", "steps": 3, "micro_batch": 2}
BLOCKS = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}


def vq() -> VQModel:
    torch.manual_seed(1)
    made = VQModel(block_out_channels=(8, 16), norm_num_groups=4, latent_channels=3, num_vq_embeddings=512, **BLOCKS)
    # Untrained codes lie so near to each other that all latents would give one picture.
    made.quantize.embedding.weight.data.normal_()
    return made


def kl() -> AutoencoderKL:
    return AutoencoderKL(block_out_channels=(8, 16), norm_num_groups=4, latent_channels=3, **BLOCKS)


def tiny() -> AutoencoderTiny:
    blocks = {"num_encoder_blocks": (1, 1), "num_decoder_blocks": (1, 1)}
    channels = {"encoder_block_out_channels": (8, 8), "decoder_block_out_channels": (8, 8)}
    return AutoencoderTiny(latent_channels=3, **channels, **blocks)


@pytest.fixture(scope="module", params=[vq, kl, tiny], ids=["vq", "kl", "tiny"])
def pipeline(request: pytest.FixtureRequest) -> LDMPipeline:
    torch.manual_seed(0)
    made = LDMPipeline(request.param().eval(), tiny_unet(), DDIMScheduler(clip_sample=False))
    made.set_progress_bar_config(disable=True)
    return made


@pytest.fixture(scope="module")
def model(pipeline: LDMPipeline, tmp_path_factory: pytest.TempPathFactory) -> DiffusionModel:
    folder = tmp_path_factory.mktemp("latents")
    pipeline.save_pretrained(folder)
    return load_unconditional(str(folder), **SETTINGS)


def test_samples_are_those_of_the_pipeline_itself(pipeline: LDMPipeline, model: DiffusionModel) -> None:
    assert (model.height, model.width, model.latent_shape) == (16, 16, (3, 8, 8))
    noise = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    images = model.pipeline(latents=noise, num_inference_steps=3).images
    theirs = pipeline(2, torch.Generator().manual_seed(1), num_inference_steps=3, output_type="np").images
    torch.testing.assert_close(images.permute(0, 2, 3, 1), torch.from_numpy(theirs), rtol=0, atol=1e-6)
    (made,) = model.sample(GenerationPlan(0, torch.tensor([0, 1])), record=MIDDLE)
    assert made.images.shape == (2, 3, 16, 16) and made.activations is not None


def test_the_pipeline_itself_is_steered(pipeline: LDMPipeline, model: DiffusionModel) -> None:
    edit = Shift(1.5, site=MIDDLE)
    (wanted,) = model.sample(GenerationPlan(3, torch.arange(2), torch.tensor([0, 0])), method=edit)
    (plain,) = model.sample(GenerationPlan(3, torch.arange(2)))
    with edited_pipeline(pipeline, edit, timesteps=model.timesteps, assign=lambda n: torch.zeros(n, dtype=torch.int64)):
        generators = [image_generator(3, image_id) for image_id in range(2)]
        images = pipeline(2, generators, num_inference_steps=3, output_type="np").images
    torch.testing.assert_close(torch.from_numpy(images).permute(0, 3, 1, 2), wanted.images, rtol=0, atol=1e-5)
    assert not torch.allclose(plain.images, wanted.images, atol=1e-3)


def test_losses_are_of_latents(model: DiffusionModel) -> None:
    images = torch.rand(2, 3, 16, 16)
    losses = [model.denoising_loss(images, step, site=MIDDLE) for step in (0, 2)]
    assert all(loss.shape == (2,) and bool(loss.isfinite().all()) for loss in losses)
    changed = model.denoising_loss(images, 2, site=MIDDLE, change=torch.zeros_like)
    assert not torch.allclose(changed, losses[1])


def test_another_decoder_is_another_model(tmp_path: Path) -> None:
    found = set()
    for seed in (0, 1):
        decoder = vq()
        decoder.quantize.embedding.weight.data.add_(seed)
        LDMPipeline(decoder, tiny_unet(), DDIMScheduler()).save_pretrained(tmp_path / str(seed))
        spec = load_unconditional(str(tmp_path / str(seed)), **SETTINGS).spec()
        found.add((spec["weights"], spec["vae"]))
    assert len({unet for unet, _ in found}) == 1 and len({decoder for _, decoder in found}) == 2


def test_decoders_that_are_unknown_or_lack_weights_are_named(tmp_path: Path) -> None:
    LDMPipeline(vq(), tiny_unet(), DDIMScheduler()).save_pretrained(tmp_path)
    config = tmp_path / "vqvae" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"_class_name": "AutoencoderOobleck"}))
    with pytest.raises(ValueError, match="belong to a AutoencoderOobleck; known here are VQModel"):
        load_unconditional(str(tmp_path), **SETTINGS)
    for file in (tmp_path / "vqvae").glob("*.safetensors"):
        file.unlink()
    with pytest.raises(ValueError, match=r"incomplete \(no weights beside vqvae/config.json\)"):
        load_unconditional(str(tmp_path), **SETTINGS)


def test_pixels_have_no_decoder(tmp_path: Path) -> None:
    tiny_unet().save_pretrained(tmp_path / "unet")
    DDIMScheduler().save_pretrained(tmp_path / "scheduler")
    assert "vae" not in load_unconditional(str(tmp_path), **SETTINGS).spec()
