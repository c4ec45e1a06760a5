"""Checkpoints of the guided-diffusion family (Dhariwal & Nichol 2021; Choi et al. 2022) as a diffusers U-Net."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import UNet2DModel
from torch import Tensor
from torch.nn import functional as F

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


@dataclass(frozen=True)
class Layout:
    """What distinguishes one U-Net of the family from another; levels are counted from the finest."""

    in_channels: int
    out_channels: int
    """Twice the input's where the variance is learned."""
    embedding: int
    """Width of the sinusoidal timestep embedding (`num_channels`)."""
    time_channels: int
    widths: tuple[int, ...]
    """Channels per level (`num_channels` × `channel_mult`)."""
    attended: tuple[bool, ...]
    resnets: int
    """Residual blocks per level on the way down; one more on the way up (`num_res_blocks`)."""
    resnet_updown: bool
    """Residual blocks resample, not plain convolutions."""
    scale_shift: bool

    def place(self, side: str, level: int, part: str, index: int) -> str:
        """Where a part of a level of the diffusers U-Net lies: `input_blocks.9.1` and the like.

        Every down level is `resnets` blocks and one that downsamples, after block 0, the first convolution; every up level
        is `resnets` + 1 blocks, the last of which upsamples at its end. Attention follows its residual block.
        """
        per_level = self.resnets + 1
        if side == "down":
            block = (level + 1) * per_level if part == "downsamplers" else 1 + level * per_level + index
            return f"input_blocks.{block}.{1 if part == 'attentions' else 0}"
        if part == "upsamplers":
            return f"output_blocks.{level * per_level + self.resnets}.{2 if self.attended[-1 - level] else 1}"
        return f"output_blocks.{level * per_level + index}.{1 if part == 'attentions' else 0}"


def convert_unet(
    state: Mapping[str, Tensor],
    *,
    image_size: int,
    head_channels: int | None = None,
    num_heads: int | None = None,
    new_attention_order: bool = False,
) -> UNet2DModel:
    """The same network as a diffusers `UNet2DModel`: equal weights in float32, equal outputs, `mid_block` = `middle_block`.

    Depth, widths, residual blocks per level, attended levels, kind of resampling, scale-shift norm and learned variance
    (twice the output channels, kept) are read off the state dict; the arguments are what it does not tell.

    Args:
        state: tensors by guided-diffusion's names.
        image_size: pixels of a side.
        head_channels: channels of an attention head (`num_head_channels` there).
        num_heads: instead of it, how many heads every attention has (`num_heads` there).
        new_attention_order: `use_new_attention_order` there: queries, keys and values are split before the heads.

    Raises:
        ValueError: keys are unknown or missing, or `UNet2DModel` cannot express the network; all keys are listed.
    """
    layout = read_layout(state)
    head_channels = _head_channels(layout, head_channels, num_heads)
    # Without memory or random numbers: the converted tensors take the places of these.
    with torch.device("meta"):
        unet = UNet2DModel(**unet_arguments(layout, image_size=image_size, head_channels=head_channels))
    shapes = {key: value.shape for key, value in unet.state_dict().items()}
    sources = {key: source_key(key, layout) for key in shapes}
    # Names before shapes, which can only be compared where both tensors are there.
    refuse_keys(missing=set(sources.values()) - set(state), unknown=set(state) - set(sources.values()))
    wrong = {
        source for key, source in sources.items() if state[source].shape != _source_shape(key, shapes[key], layout)
    }
    refuse_keys(misshapen=wrong)
    # Rows of qkv: all queries, all keys, all values; in the older order, these three for each head in turn.
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
        # GroupNorm32 of guided-diffusion, of which no tensor tells.
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


def _head_channels(layout: Layout, head_channels: int | None, num_heads: int | None) -> int:
    """The one width of heads that a `UNet2DModel` has everywhere."""
    # The middle attends at the last width, whatever the levels do.
    widths = sorted({w for w, yes in zip(layout.widths, layout.attended, strict=True) if yes} | {layout.widths[-1]})
    if (head_channels is None) == (num_heads is None):
        raise ValueError(
            "give either head_channels (num_head_channels of the training) or num_heads, and null for the other."
        )
    if num_heads is not None:
        sizes = {width / max(num_heads, 1) for width in widths}
        if num_heads < 1 or len(sizes) > 1 or any(width % num_heads for width in widths):
            raise ValueError(
                f"num_heads={num_heads} at the attended widths {widths} makes heads of different widths, which a UNet2DModel "
                "cannot have; only a network with num_head_channels, or attention at one width, can be converted."
            )
        return widths[0] // num_heads
    assert head_channels is not None
    if head_channels < 1 or any(width % head_channels for width in widths):
        raise ValueError(
            f"head_channels={head_channels} does not divide the attended widths {widths}; give num_head_channels of the "
            "training (a UNet2DModel has one width of heads everywhere)."
        )
    return head_channels


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


def refuse_keys(*, missing: Iterable[str] = (), unknown: Iterable[str] = (), misshapen: Iterable[str] = ()) -> None:
    """Check that no keys are wrong (ValueError: some are; every one is listed)."""
    wrong = {"missing keys": missing, "unknown keys": unknown, "keys of unfitting shape": misshapen}
    lists = [f"{what}: {', '.join(sorted(keys))}" for what, keys in wrong.items() if keys]
    if lists:
        raise ValueError(f"the checkpoint is not a guided-diffusion U-Net that can be converted; {'; '.join(lists)}.")


def read_layout(state: Mapping[str, Tensor]) -> Layout:
    """The layout of the U-Net whose tensors these are.

    Raises:
        ValueError: tensors that decide it are missing, or a `UNet2DModel` cannot have this layout.
    """
    # Down and up have equally many blocks, so that a side tells which keys the other lacks.
    blocks = 1 + max((int(match[1]) for match in _matches(r"(?:in|out)put_blocks\.(\d+)\.", state)), default=-1)
    upsampling = sorted(int(m[1]) for m in _matches(r"output_blocks\.(\d+)\.[12]\.(?:\w+_layers|conv)\.", state))
    # The first block that upsamples is the last of its level; a single level has none.
    resnets = upsampling[0] if upsampling else blocks - 1
    refuse_keys(missing={"output_blocks.0.0.in_layers.0.weight"} if resnets < 1 else ())
    levels, rest = divmod(blocks, resnets + 1)
    if rest:
        raise ValueError(f"{blocks} output blocks are no whole number of levels of {resnets + 1} blocks.")
    firsts = [1 + level * (resnets + 1) for level in range(levels)]
    widths = tuple(_rows(state, f"input_blocks.{first}.0.out_layers.0") for first in firsts)
    embedding = _embedding(state, widths[0])
    return Layout(
        in_channels=_columns(state, "input_blocks.0.0.weight"),
        out_channels=_rows(state, "out.2"),
        embedding=embedding,
        time_channels=_rows(state, "time_embed.0"),
        widths=widths,
        attended=tuple(_attended(state, first, resnets) for first in firsts),
        resnets=resnets,
        # Only a convolution that downsamples is called `op`.
        resnet_updown=not _matches(r"input_blocks\.\d+\.0\.op\.", state),
        # The embedding then gives each channel a scale and a shift.
        scale_shift=_rows(state, "middle_block.0.emb_layers.1") == 2 * widths[-1],
    )


def _embedding(state: Mapping[str, Tensor], first_width: int) -> int:
    width = _columns(state, "time_embed.0.weight")
    if first_width % width:
        raise ValueError(
            f"the first level has {first_width} channels, which is no multiple of the timestep embedding's {width}; "
            "a UNet2DModel cannot have a wider embedding than its first level."
        )
    return width


def _attended(state: Mapping[str, Tensor], first: int, resnets: int) -> bool:
    blocks = "|".join(str(first + index) for index in range(resnets))
    return bool(_matches(rf"input_blocks\.(?:{blocks})\.1\.", state))


def _matches(pattern: str, state: Mapping[str, Tensor]) -> list[re.Match[str]]:
    return [match for key in state if (match := re.match(pattern, key)) is not None]


def _rows(state: Mapping[str, Tensor], module: str) -> int:
    """Length of a module's weight or bias, whichever is there."""
    found = [state[key] for key in (f"{module}.weight", f"{module}.bias") if key in state]
    refuse_keys(missing=() if found else {f"{module}.weight", f"{module}.bias"})
    return len(found[0])


def _columns(state: Mapping[str, Tensor], key: str) -> int:
    refuse_keys(missing=() if key in state else {key})
    return state[key].shape[1]
