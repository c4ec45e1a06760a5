"""Random pipelines of a few channels, built without a download, a tiny edit, and what it makes of them."""

from collections.abc import Callable
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel, UNet2DModel
from torch import Tensor

from difflens.models.model import DiffusionModel, UnconditionalPipeline
from difflens.vocabulary import GenerationPlan, PerImage, Site

MIDDLE = Site("mid_block", branch="cond")
TEXTS = ("a face of a doctor", "a face of a nurse")


def tiny_pipeline(kind: Any = None, **scheduler: Any) -> Any:
    """Images of 16×16, latents of 8×8 and a bottleneck of 16×4×4 with cross-attention."""
    # Imported by need: most tests have none of transformers.
    from diffusers import StableDiffusionPipeline
    from transformers import CLIPTextConfig, CLIPTextModel

    from difflens.models.random_pipeline import byte_tokenizer

    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=12,
        attention_head_dim=2,
        norm_num_groups=4,
    )
    vae = AutoencoderKL(
        block_out_channels=(4, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=16,
    )
    text = CLIPTextConfig(
        vocab_size=514,
        hidden_size=12,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=24,
        bos_token_id=512,
        eos_token_id=513,
        pad_token_id=513,
    )
    usual = {"clip_sample": False, "prediction_type": "v_prediction", "timestep_spacing": "trailing", "steps_offset": 1}
    return (kind or StableDiffusionPipeline)(
        vae=vae.eval(),
        text_encoder=CLIPTextModel(text).eval(),
        tokenizer=byte_tokenizer(pad_token="<|endoftext|>", length=24),
        unet=unet.eval(),
        scheduler=DDIMScheduler(**{**usual, **scheduler}),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def tiny_text_to_image(pipeline: Any = None, **settings: Any) -> DiffusionModel:
    """The pipeline as a model of 4 steps, guidance 3 and micro-batches of 2."""
    usual = {"name": "tiny", "steps": 4, "micro_batch": 2, "guidance": 3.0}
    return DiffusionModel(pipeline or tiny_pipeline(), **{**usual, **settings})


def tiny_unet() -> UNet2DModel:
    """A random U-Net of 8×8 images with attention in its 4×4 bottleneck."""
    torch.manual_seed(0)
    return UNet2DModel(
        sample_size=8,
        in_channels=3,
        out_channels=3,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        attention_head_dim=8,
        norm_num_groups=4,
    ).eval()


def tiny_unconditional(**settings: Any) -> DiffusionModel:
    """A model of 5 steps and micro-batches of 4."""
    scheduler = DDIMScheduler(prediction_type="v_prediction", timestep_spacing="trailing")
    usual = {"name": "tiny", "steps": 5, "micro_batch": 4}
    return DiffusionModel(UnconditionalPipeline(tiny_unet(), scheduler), **{**usual, **settings})


class Shift:
    """Adds an amount to the activations of touched rows, from the second step on."""

    def __init__(self, amount: float | Callable[[Tensor], Tensor], update: str = "asymmetric", site: Site = MIDDLE):
        self.amount, self.update, self.site, self.steps, self.shapes = amount, update, site, [], []

    def active(self, step: int, steps: int) -> bool:
        return step > 0

    def __call__(self, h: Tensor, step: int, images: PerImage) -> Tensor:
        self.steps.append(step)
        self.shapes.append(tuple(h.shape))
        edited = self.amount(h) if callable(self.amount) else h + self.amount
        return torch.where((images.target >= 0)[:, None, None, None], edited, h)


def plan(ids: list[int], targets: list[int] | None = None, prompts: tuple[str, ...] | None = None) -> GenerationPlan:
    wanted = None if targets is None else torch.tensor(targets)
    return GenerationPlan(3, torch.tensor(ids), wanted, prompts or tuple(TEXTS[i % 2] for i in ids))


def images(model: DiffusionModel, made: GenerationPlan, **settings: Any) -> dict[int, Tensor]:
    found: dict[int, Tensor] = {}
    for batch in model.sample(made, **settings):
        found |= dict(zip(batch.image_ids.tolist(), batch.images, strict=True))
    return found


def hook_free(model: DiffusionModel) -> bool:
    modules = model.unet.modules()
    return not any(module._forward_hooks or module._forward_pre_hooks for module in modules)
