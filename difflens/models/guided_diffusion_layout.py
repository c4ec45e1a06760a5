"""The shape of a guided-diffusion U-Net, read off the names and sizes of its tensors."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor


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


def refuse_keys(*, missing: Iterable[str] = (), unknown: Iterable[str] = (), misshapen: Iterable[str] = ()) -> None:
    """Check that no keys are wrong.

    Raises:
        ValueError: some are; every one is listed.
    """
    wrong = {"missing keys": missing, "unknown keys": unknown, "keys of unfitting shape": misshapen}
    lists = [f"{what}: {', '.join(sorted(keys))}" for what, keys in wrong.items() if keys]
    if lists:
        raise ValueError(f"the checkpoint is not a guided-diffusion U-Net that can be converted; {'; '.join(lists)}.")


def read_layout(state: Mapping[str, Tensor]) -> Layout:
    """The layout of the U-Net whose tensors these are.

    Raises:
        ValueError: tensors that decide it are missing, or a `UNet2DModel` cannot have this layout.
    """
    blocks = 1 + max((int(match[1]) for match in _matches(r"(?:in|out)put_blocks\.(\d+)\.", state)), default=-1)
    upsampling = sorted(int(m[1]) for m in _matches(r"output_blocks\.(\d+)\.[12]\.(?:\w+_layers|conv)\.", state))
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
        resnet_updown=not _matches(r"input_blocks\.\d+\.0\.op\.", state),
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
