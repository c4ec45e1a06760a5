"""Blocks of transformers are read and edited through maps, so that an SAE and an edit never learn which network they meet."""

from typing import Any

import pytest
import torch
from diffusers import DiTTransformer2DModel, PixArtTransformer2DModel, SD3Transformer2DModel
from torch import Tensor, nn

from difflens.attribution.statistics import CodeStatistics
from difflens.methods.difflens import FeatureEdit
from difflens.models.hooks import SiteHooks
from difflens.sae.topk import TopKAutoencoder
from difflens.vocabulary import Attribute, FeatureSet, PerImage, Site

X = torch.randn(2, 4, 8, 12, generator=torch.Generator().manual_seed(0))
SMALL = {"sample_size": 12, "patch_size": 2, "in_channels": 4, "num_layers": 2, "num_attention_heads": 2}
SMALL |= {"attention_head_dim": 8}


def dit() -> tuple[nn.Module, dict[str, Any]]:
    model = DiTTransformer2DModel(**SMALL, out_channels=4, num_embeds_ada_norm=1000, norm_num_groups=4)
    return model, {"class_labels": torch.tensor([1, 2])}


def pixart() -> tuple[nn.Module, dict[str, Any]]:
    model = PixArtTransformer2DModel(**SMALL, out_channels=4, cross_attention_dim=16, caption_channels=6)
    more = {
        "encoder_hidden_states": torch.ones(2, 5, 6),
        "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
    }
    return model, more


def sd3() -> tuple[nn.Module, dict[str, Any]]:
    sizes = {
        "joint_attention_dim": 6,
        "caption_projection_dim": 16,
        "pooled_projection_dim": 6,
        "pos_embed_max_size": 8,
    }
    return SD3Transformer2DModel(**SMALL, **sizes, out_channels=4), {
        "encoder_hidden_states": torch.ones(2, 5, 6),
        "pooled_projections": torch.ones(2, 6),
    }


MODELS = {"DiT": dit, "PixArt": pixart, "SD3": sd3}


def edit() -> FeatureEdit:
    """Removes what the codes of one feature give, where an image has a target."""
    torch.manual_seed(0)
    features = FeatureSet(Attribute("gender", ("female", "male")), {"female": (1,), "male": (2,)})
    usual = CodeStatistics(torch.tensor([1, 2]), torch.ones(2, 1, 2, 4, 6), torch.ones(1, 2))
    sae = TopKAutoencoder(16, expansion=2, k=4)
    made = FeatureEdit(sae, features, usual, site=Site("transformer_blocks.0"), mode="add", update="symmetric")
    return made.with_strength(torch.tensor([2.0, 2.0]))


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_a_transformers_block_is_read_and_edited_as_a_map(name: str) -> None:
    torch.manual_seed(0)
    model, more = MODELS[name]()
    for parameter in model.eval().parameters():
        parameter.normal_(std=0.2)
    tokens: list[Tensor] = []
    block = model.get_submodule("transformer_blocks.0")
    handle = block.register_forward_hook(lambda _, __, out: tokens.append(out[-1] if isinstance(out, tuple) else out))

    def run(targets: tuple[int, int]) -> tuple[Tensor, Tensor]:
        change, maps, images = edit(), [], PerImage(torch.tensor(targets))
        hooks = {"read": lambda step, h: maps.append(h), "change": lambda h, step: change(h, step, images)}
        with SiteHooks(model, change.site, timesteps=[500], **hooks):
            made = model(X, timestep=torch.tensor([500, 500]), **more).sample
        return made, maps[0]

    plain = model(X, timestep=torch.tensor([500, 500]), **more).sample
    neutral, h = run((-1, -1))
    assert torch.equal(neutral, plain) and h.shape == (2, 16, 4, 6)
    assert torch.equal(h[1, :, 2, 3], tokens[0][1, 2 * 6 + 3])
    codes = edit().sae.encode(h.movedim(1, -1).flatten(0, 2))
    assert len(codes.indices) == 2 * 4 * 6
    made, _ = run((-1, 0))
    torch.testing.assert_close(made[0], plain[0], rtol=0, atol=1e-5)
    assert (made[1] - plain[1]).abs().max() > 1e-4
    handle.remove()
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    with pytest.raises(ValueError, match="only update=symmetric"):
        SiteHooks(model, edit().site, timesteps=[500], fork=True)
