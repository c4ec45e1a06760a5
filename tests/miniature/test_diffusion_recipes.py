"""The diffusion models learn velocities, the autoencoder reconstructs, and diffusers runs what is exported by itself."""

import stat
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from diffusers import AutoencoderKL, DDIMPipeline, StableDiffusionPipeline
from torch import Tensor, nn

from difflens.miniature.diffusion_recipes import GeneratorRecipe, PipelineRecipe, VaeRecipe, encode, load_vae
from difflens.miniature.faces import WORKPLACE_FACTORS, render
from difflens.miniature.fit import FitSettings, fit
from difflens.miniature.judges import ConvolutionalJudge, MiniatureJudge
from difflens.miniature.population import POPULATIONS, Population

CONF = Path(__file__).parents[2] / "conf"
SHIPPED: dict[str, Any] = yaml.safe_load((CONF / "task/miniature.yaml").read_text())["recipes"]
VAE = {
    "sample_size": 32,
    "latent_channels": 4,
    "block_out_channels": [8, 16],
    "down_block_types": ["DownEncoderBlock2D"] * 2,
    "up_block_types": ["UpDecoderBlock2D"] * 2,
    "norm_num_groups": 4,
    "mid_block_add_attention": False,
}
EIGHT = {
    "latent_channels": 8,
    "block_out_channels": [8, 8, 16],
    "down_block_types": ["DownEncoderBlock2D"] * 3,
    "up_block_types": ["UpDecoderBlock2D"] * 3,
}
SETTINGS = FitSettings(steps=2, batch=8, lr=2e-3, warmup=1, ema=0.5, seed=3)
TINY = {"pool": 24, "watched": 2, "watched_steps": 2}


def shipped(name: str, **changes: Any) -> dict[str, Any]:
    """The settings of a shipped recipe, but for what these tests make small; mappings are merged."""
    settings = {key: value for key, value in SHIPPED[name]["recipe"].items() if key != "kind"}
    return settings | {key: {**settings[key], **new} if isinstance(new, dict) else new for key, new in changes.items()}


def generator() -> GeneratorRecipe:
    judge = MiniatureJudge(ConvolutionalJudge(width=8), "judge")
    widths = {"block_out_channels": [16, 16, 16], "attention_head_dim": 8}
    return GeneratorRecipe(**shipped("generator", population=POPULATIONS["biased"], judge=judge, unet=widths, **TINY))


def pipeline() -> PipelineRecipe:
    torch.manual_seed(0)
    small: dict[str, Any] = {
        "unet": {"block_out_channels": [16, 16], "cross_attention_dim": 16, "norm_num_groups": 4},
        "text": {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2},
        "population": POPULATIONS["workplace"],
        "autoencoder": AutoencoderKL(**{**VAE, **EIGHT}, scaling_factor=0.5).eval().requires_grad_(False),
        "judge": MiniatureJudge(ConvolutionalJudge(WORKPLACE_FACTORS, width=8), "judge"),
    }
    return PipelineRecipe(**shipped("text_to_image", **small, **TINY))


def vae() -> VaeRecipe:
    return VaeRecipe(Population(), vae=VAE, kl=1e-4, pool=64, held_out=32)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, float]]:
    folder = tmp_path_factory.mktemp("pipeline")
    return folder / "out", fit(pipeline(), SETTINGS, workspace=folder / "work", export_to=folder / "out")


def test_prompts_and_latents_belong_to_the_same_faces() -> None:
    learner = pipeline()
    read = [learner.tokenizer.decode(row, skip_special_tokens=True) for row in learner.tokens]
    assert read == [prompt.lower() for prompt in learner.faces.prompts]
    assert learner.tokens.shape[1] == 24 and learner.latents.shape == (24, 8, 8, 8)
    row = int((learner.faces.prompt == 1).nonzero()[0, 0])
    profession = WORKPLACE_FACTORS["profession"][learner.faces.factors["profession"][row]]
    assert learner.faces.prompts[1].split()[-1] == profession


def test_the_loss_sees_the_prompt_and_depends_on_weights_seed_and_step_alone() -> None:
    learner = pipeline()
    model = learner.build()
    first = learner.loss(model, 1, SETTINGS)
    torch.testing.assert_close(learner.loss(model, 1, SETTINGS), first, rtol=0, atol=0)
    assert learner.loss(model, 2, SETTINGS) != first
    first.backward()
    assert float(model.text_encoder.get_input_embeddings().weight.grad.abs().sum()) > 0
    learner.faces.prompt.copy_(learner.faces.prompt.roll(1))
    assert learner.loss(model, 1, SETTINGS) != first


@pytest.mark.parametrize("make", [generator, pipeline])
def test_the_target_is_the_velocity(make: Any) -> None:
    learner = make()
    name = "images" if make is generator else "latents"
    setattr(learner, name, getattr(learner, name)[:1].expand(24, -1, -1, -1))
    face, alphas = learner.clean(torch.tensor([0])), learner.schedule.alphas_cumprod

    class Exact(nn.Module):
        def forward(self, noisy: Tensor, t: Tensor, tokens: Tensor | None = None) -> Any:
            signal, noise = (a.sqrt()[:, None, None, None] for a in (alphas[t], 1 - alphas[t]))
            # With one face alone, x_t = √ᾱ x_0 + √(1 − ᾱ) ε gives the noise, and v = √ᾱ ε − √(1 − ᾱ) x_0.
            found = signal * (noisy - signal * face) / noise - noise * face
            return found if tokens is not None else type("Output", (), {"sample": found})

    assert float(learner.loss(Exact(), 0, SETTINGS)) < 1e-6


def test_reports_name_shares_and_obedience(exported: tuple[Path, dict[str, float]]) -> None:
    figures = exported[1]
    for name in ("firefighter", "doctor", "receptionist", "nurse"):
        assert figures[f"{name}_female"] + figures[f"{name}_male"] == 1
        assert figures[f"{name}_gender_off"] >= 0 and f"{name}_obeyed" in figures
    assert {f"named_{name}_obeyed" for name in ("profession", "gender", "age", "race")} <= set(figures)


def test_diffusers_loads_and_runs_the_exports_by_itself(
    exported: tuple[Path, dict[str, float]], tmp_path: Path
) -> None:
    folder = exported[0]
    assert all(stat.S_IMODE(file.stat().st_mode) == 0o644 for file in folder.rglob("*") if file.is_file())
    loaded = StableDiffusionPipeline.from_pretrained(folder, local_files_only=True)
    assert {part.dtype for part in (loaded.unet, loaded.vae, loaded.text_encoder)} == {torch.float32}
    loaded.set_progress_bar_config(disable=True)
    options = {"num_inference_steps": 2, "generator": [torch.Generator().manual_seed(i) for i in range(2)]}
    prompts = ["A face of a doctor", "a face of a nurse"]
    assert loaded(prompts, guidance_scale=3, output_type="pt", **options).images.shape == (2, 3, 32, 32)
    assert loaded.scheduler.config.prediction_type == "v_prediction"
    figures = fit(generator(), SETTINGS, workspace=tmp_path / "work", export_to=tmp_path / "out")
    assert figures["gender_0"] + figures["gender_1"] == 1 and 0 <= figures["race_off"] <= 1
    plain = DDIMPipeline.from_pretrained(tmp_path / "out", local_files_only=True)
    plain.set_progress_bar_config(disable=True)
    assert plain(batch_size=2, output_type="np", **options).images.shape == (2, 32, 32, 3)


def test_training_brings_reconstructions_closer_and_latents_to_unit_size(tmp_path: Path) -> None:
    learner, settings = vae(), FitSettings(steps=12, batch=8, lr=4e-3, warmup=2, ema=0.5, seed=3)
    torch.manual_seed(settings.seed)
    before = learner.report(learner.build())["psnr"]
    figures = fit(learner, settings, workspace=tmp_path / "work", export_to=tmp_path / "vae")
    assert figures["psnr"] > before + 2
    images = (render(Population().sample(32, seed=3)) * 255).round().byte()
    latents = encode(load_vae(str(tmp_path / "vae")), images)
    assert latents.shape == (32, 4, 16, 16) and latents.dtype == torch.float16
    assert float(latents.float().std()) == pytest.approx(1, abs=0.02)
    with pytest.raises(ValueError, match="nothing at"):
        load_vae(str(tmp_path / "none"))


def test_the_autoencoders_loss_is_errors_plus_the_divergence_from_a_unit_normal() -> None:
    learner = vae()
    model = learner.build()
    for parameter in model.parameters():
        parameter.data.zero_()
    # Latents are then N(0, 1), whose divergence is zero, and every pixel decodes to 0.
    drawn = torch.randint(64, (8,), generator=SETTINGS.generator(0))
    images = render({name: index[drawn] for name, index in learner.faces.items()}) * 2 - 1
    expected = images.abs().mean() + images.square().mean()
    torch.testing.assert_close(learner.loss(model, 0, SETTINGS), expected)
    model.quant_conv.bias.data[:4] = 3.0
    torch.testing.assert_close(learner.loss(model, 0, SETTINGS), expected + 1e-4 * 4.5)
