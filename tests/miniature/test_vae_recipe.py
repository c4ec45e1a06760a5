"""The autoencoder learns, and its export has latents of unit size."""

import stat
from pathlib import Path

import pytest
import torch

from difflens.miniature.faces import render
from difflens.miniature.fit import FitSettings, fit
from difflens.miniature.population import Population
from difflens.miniature.vae_recipe import VaeRecipe, encode, load_vae

SMALL = {
    "sample_size": 32,
    "latent_channels": 4,
    "block_out_channels": [8, 16],
    "down_block_types": ["DownEncoderBlock2D"] * 2,
    "up_block_types": ["UpDecoderBlock2D"] * 2,
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "mid_block_add_attention": False,
}
SETTINGS = FitSettings(steps=12, batch=8, lr=4e-3, warmup=2, ema=0.5, seed=3)


def recipe() -> VaeRecipe:
    return VaeRecipe(Population(), vae=SMALL, kl=1e-4, pool=64, held_out=32)


def test_training_brings_reconstructions_closer(tmp_path: Path) -> None:
    learner = recipe()
    torch.manual_seed(SETTINGS.seed)
    before = learner.report(learner.build())["psnr"]
    figures = fit(learner, SETTINGS, workspace=tmp_path / "work", export_to=tmp_path / "vae")
    assert figures["psnr"] > before + 2
    assert stat.S_IMODE((tmp_path / "vae/diffusion_pytorch_model.safetensors").stat().st_mode) == 0o644
    images = (render(Population().sample(32, seed=3)) * 255).round().byte()
    latents = encode(load_vae(str(tmp_path / "vae")), images)
    assert latents.shape == (32, 4, 16, 16) and latents.dtype == torch.float16
    assert float(latents.float().std()) == pytest.approx(1, abs=0.02)


def test_the_loss_is_errors_plus_the_divergence_from_a_unit_normal() -> None:
    learner = recipe()
    model = learner.build()
    for parameter in model.parameters():
        parameter.data.zero_()
    # Latents are then N(0, 1), whose divergence is zero, and every pixel decodes to 0.
    seed = SETTINGS.seed * 1_000_003
    drawn = torch.randint(64, (8,), generator=torch.Generator().manual_seed(seed))
    images = render({name: index[drawn] for name, index in learner._factors.items()}) * 2 - 1
    expected = images.abs().mean() + images.square().mean()
    torch.testing.assert_close(learner.loss(model, 0, SETTINGS), expected)
    model.quant_conv.bias.data[:4] = 3.0
    torch.testing.assert_close(learner.loss(model, 0, SETTINGS), expected + 1e-4 * 4.5)


def test_an_absent_autoencoder_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nothing at"):
        load_vae(str(tmp_path / "vae"))
