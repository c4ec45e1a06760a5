"""The text-to-image recipe learns from prompts and exports a pipeline that diffusers loads and runs by itself."""

import stat
from pathlib import Path

import pytest
import torch
import yaml
from diffusers import AutoencoderKL, StableDiffusionPipeline
from hydra.utils import instantiate

from difflens.miniature.faces import WORKPLACE_FACTORS
from difflens.miniature.fit import FitSettings, fit
from difflens.miniature.judges import ConvolutionalJudge, MiniatureJudge
from difflens.miniature.pipeline_recipe import PipelineRecipe

VAE = {
    "latent_channels": 8,
    "block_out_channels": [8, 8, 16],
    "down_block_types": ["DownEncoderBlock2D"] * 3,
    "up_block_types": ["UpDecoderBlock2D"] * 3,
    "norm_num_groups": 4,
    "mid_block_add_attention": False,
}
CONF = Path(__file__).parents[2] / "conf"
SETTINGS = FitSettings(steps=2, batch=8, lr=2e-3, warmup=1, ema=0.5, seed=3)


def recipe(pool: int = 24) -> PipelineRecipe:
    settings = yaml.safe_load((CONF / "recipe/text_to_image.yaml").read_text())["recipe"]
    torch.manual_seed(0)
    settings["unet"] |= {"block_out_channels": [16, 16], "cross_attention_dim": 16, "norm_num_groups": 4}
    settings["text"] |= {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2}
    settings |= {
        "population": instantiate(yaml.safe_load((CONF / "population/workplace.yaml").read_text()), _convert_="all"),
        "vae": AutoencoderKL(**VAE, scaling_factor=0.5).eval().requires_grad_(False),
        "judge": MiniatureJudge(ConvolutionalJudge(WORKPLACE_FACTORS, width=8), "judge"),
        "pool": pool,
        "watched": 2,
        "watched_steps": 2,
    }
    del settings["_target_"]
    return PipelineRecipe(**settings)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, float]]:
    folder = tmp_path_factory.mktemp("pipeline")
    return folder / "out", fit(recipe(), SETTINGS, workspace=folder / "work", export_to=folder / "out")


def test_prompts_and_latents_belong_to_the_same_faces() -> None:
    learner = recipe()
    read = [learner.tokenizer.decode(row, skip_special_tokens=True) for row in learner.tokens]
    assert read == [prompt.lower() for prompt in learner.faces.prompts]
    assert learner.tokens.shape[1] == 24 and learner.latents.shape == (24, 8, 8, 8)
    row = int((learner.faces.prompt == 1).nonzero()[0, 0])
    assert (
        learner.faces.prompts[1].split()[-1]
        == WORKPLACE_FACTORS["profession"][learner.faces.factors["profession"][row]]
    )


def test_the_loss_sees_the_prompt_and_depends_on_weights_seed_and_step_alone() -> None:
    learner = recipe()
    model = learner.build()
    first = learner.loss(model, 1, SETTINGS)
    torch.testing.assert_close(learner.loss(model, 1, SETTINGS), first, rtol=0, atol=0)
    assert learner.loss(model, 2, SETTINGS) != first
    first.backward()
    assert float(model.text_encoder.get_input_embeddings().weight.grad.abs().sum()) > 0
    learner.faces.prompt.copy_(learner.faces.prompt.roll(1))
    assert learner.loss(model, 1, SETTINGS) != first


def test_the_target_is_the_velocity() -> None:
    learner = recipe()
    face = learner.latents[:1].float()
    learner.latents = learner.latents[:1].expand(24, -1, -1, -1)
    alphas = learner.scheduler.alphas_cumprod

    class Exact(torch.nn.Module):
        def forward(self, noisy: torch.Tensor, t: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
            signal, noise = (a.sqrt()[:, None, None, None] for a in (alphas[t], 1 - alphas[t]))
            # With one face alone, x_t = √ᾱ x_0 + √(1 − ᾱ) ε gives the noise, and v = √ᾱ ε − √(1 − ᾱ) x_0.
            return signal * (noisy - signal * face) / noise - noise * face

    assert float(learner.loss(Exact(), 0, SETTINGS)) < 1e-6


def test_reports_name_shares_and_obedience(exported: tuple[Path, dict[str, float]]) -> None:
    figures = exported[1]
    for name in ("firefighter", "doctor", "receptionist", "nurse"):
        assert figures[f"{name}_female"] + figures[f"{name}_male"] == 1
        assert figures[f"{name}_gender_off"] >= 0 and f"{name}_obeyed" in figures
    assert {f"named_{name}_obeyed" for name in ("profession", "gender", "age", "race")} <= set(figures)


def test_diffusers_loads_and_runs_the_export_by_itself(exported: tuple[Path, dict[str, float]]) -> None:
    folder = exported[0]
    assert all(stat.S_IMODE(file.stat().st_mode) == 0o644 for file in folder.rglob("*") if file.is_file())
    pipeline = StableDiffusionPipeline.from_pretrained(folder, local_files_only=True)
    assert {part.dtype for part in (pipeline.unet, pipeline.vae, pipeline.text_encoder)} == {torch.float32}
    pipeline.set_progress_bar_config(disable=True)
    prompts = ["A face of a doctor", "a face of a nurse"]
    generators = [torch.Generator().manual_seed(i) for i in range(2)]
    images = pipeline(prompts, num_inference_steps=2, guidance_scale=3, generator=generators, output_type="pt").images
    assert images.shape == (2, 3, 32, 32)
    assert pipeline.scheduler.config.prediction_type == "v_prediction"
