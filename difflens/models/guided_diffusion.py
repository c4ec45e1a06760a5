"""Checkpoints of the guided-diffusion family (Dhariwal & Nichol 2021; Choi et al. 2022) as a diffusers U-Net."""

import re
from collections.abc import Mapping
from typing import Any

import torch
from diffusers import UNet2DModel
from torch import Tensor
from torch.nn import functional as F

from difflens.models.guided_diffusion_layout import Layout, read_layout, refuse_keys

NAMES = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
    "group_norm": "norm",
    "to_q": "qkv",
    "to_k": "qkv",
    "to_v": "qkv",
    "to_out.0": "proj_out",
}
"""What diffusers calls the layers of residual and attention blocks, and what guided-diffusion calls them."""

SINGLE = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "mid_block.resnets.0": "middle_block.0",
    "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
"""The modules outside of the levels."""

QKV = re.compile(r"\.to_([qkv])\.")
CONVOLVED = re.compile(r"\.(?:to_[qkv]|to_out\.0)\.weight$")
"""Linear layers that guided-diffusion writes as convolutions of length 1."""


def convert_unet(
    state: Mapping[str, Tensor], *, image_size: int, head_channels: int, new_attention_order: bool = False
) -> UNet2DModel:
    """The same network as a diffusers `UNet2DModel`: equal weights in float32, equal outputs, `mid_block` = `middle_block`.

    Depth, widths, residual blocks per level, attended levels, kind of resampling, scale-shift norm and learned variance
    (twice the output channels, kept) are read off the state dict; the arguments are what it does not tell.

    Args:
        state: tensors by guided-diffusion's names.
        image_size: pixels of a side.
        head_channels: channels of an attention head (`num_head_channels` there, or channels / `num_heads`).
        new_attention_order: `use_new_attention_order` there: queries, keys and values are split before the heads.

    Raises:
        ValueError: keys are unknown or missing, or `UNet2DModel` cannot express the network; all keys are listed.
    """
    layout = read_layout(state)
    _check_heads(layout, head_channels)
    with torch.device("meta"):
        unet = UNet2DModel(**unet_arguments(layout, image_size=image_size, head_channels=head_channels))
    shapes = {key: value.shape for key, value in unet.state_dict().items()}
    sources = {key: source_key(key, layout) for key in shapes}
    refuse_keys(missing=set(sources.values()) - set(state), unknown=set(state) - set(sources.values()))
    wrong = {
        source for key, source in sources.items() if state[source].shape != _source_shape(key, shapes[key], layout)
    }
    refuse_keys(misshapen=wrong)
    split = (1, 3, -1) if new_attention_order else (-1, 3, head_channels)
    tensors = {key: _value(state[source], key, layout, split=split) for key, source in sources.items()}
    unet.load_state_dict(tensors, assign=True)
    return unet.eval()


def unet_arguments(layout: Layout, *, image_size: int, head_channels: int) -> dict[str, Any]:
    """The constructor's arguments of the `UNet2DModel` that has this layout."""
    plain = (
        ("ResnetDownsampleBlock2D", "ResnetUpsampleBlock2D") if layout.resnet_updown else ("DownBlock2D", "UpBlock2D")
    )
    resampling = "resnet" if layout.resnet_updown else "conv"
    return {
        "sample_size": image_size,
        "in_channels": layout.in_channels,
        "out_channels": layout.out_channels,
        "block_out_channels": layout.widths,
        "layers_per_block": layout.resnets,
        "down_block_types": tuple("AttnDownBlock2D" if attended else plain[0] for attended in layout.attended),
        "up_block_types": tuple("AttnUpBlock2D" if attended else plain[1] for attended in reversed(layout.attended)),
        "downsample_type": resampling,
        "upsample_type": resampling,
        "resnet_time_scale_shift": "scale_shift" if layout.scale_shift else "default",
        "attention_head_dim": head_channels,
        # Named, because with scale-shift norm diffusers leaves the norm out of the attention in the middle.
        "attn_norm_num_groups": 32,
        "norm_num_groups": 32,
        "norm_eps": 1e-5,
        "time_embedding_dim": layout.time_channels,
        # Cosines first, the lowest frequency at 1/10000 · 10000^(2/channels).
        "flip_sin_to_cos": True,
        "freq_shift": 0,
    }


def source_key(key: str, layout: Layout) -> str:
    """The name that guided-diffusion gives to a tensor of the U-Net."""
    path, _, kind = key.rpartition(".")
    if path in SINGLE:
        return f"{SINGLE[path]}.{kind}"
    block = next((name for name in SINGLE if path.startswith(f"{name}.")), None)
    if block is not None:
        return f"{SINGLE[block]}.{NAMES[path.removeprefix(f'{block}.')]}.{kind}"
    match = re.fullmatch(r"(down|up)_blocks\.(\d+)\.(\w+)\.(\d+)\.(.+)", path)
    assert match is not None, key
    side, level, part, index = match[1], int(match[2]), match[3], int(match[4])
    inner = {"down": "op", "up": "conv"}[side] if match[5] == "conv" else NAMES[match[5]]
    return f"{layout.place(side, level, part, index)}.{inner}.{kind}"


def _check_heads(layout: Layout, head_channels: int) -> None:
    attended = {width for width, yes in zip(layout.widths, layout.attended, strict=True) if yes} | {layout.widths[-1]}
    if head_channels < 1 or any(width % head_channels for width in attended):
        raise ValueError(
            f"head_channels={head_channels} does not divide the attended widths {sorted(attended)}; "
            "give num_head_channels of the training (a UNet2DModel has one width of heads everywhere)."
        )


def _source_shape(key: str, shape: torch.Size, layout: Layout) -> tuple[int, ...]:
    """The shape that guided-diffusion gives to what becomes a tensor of the U-Net."""
    if key == "time_embedding.linear_1.weight":
        return shape[0], layout.embedding
    rows = shape[0] * (3 if QKV.search(key) else 1)
    return (rows, *shape[1:], *((1,) if CONVOLVED.search(key) else ()))


def _value(value: Tensor, key: str, layout: Layout, *, split: tuple[int, int, int]) -> Tensor:
    """A tensor of the U-Net in float32; `split` is how rows are arranged, the middle of it being queries, keys, values."""
    value = value.float()
    which = QKV.search(key)
    if which is not None:
        value = value.unflatten(0, split)[:, "qkv".index(which[1])].flatten(0, 1)
    if key == "time_embedding.linear_1.weight":
        # The U-Net's embedding is as wide as its first level; every stretch-th frequency of it is one of the original's.
        stretch = layout.widths[0] // layout.embedding
        value = F.pad(value[..., None], (0, stretch - 1)).flatten(1)
    return (value[..., 0] if CONVOLVED.search(key) else value).contiguous()
