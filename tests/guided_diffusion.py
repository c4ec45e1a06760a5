"""The guided-diffusion U-Net (Dhariwal & Nichol 2021, section 3) as one function of its weights, to compare conversions with.

Weights are made at random where a dictionary lacks them, so that running the function once also gives the names and shapes of
any member of the family; on the meta device that costs nothing.
"""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass
class GuidedUNet:
    channels: int = 32
    multipliers: tuple[int, ...] = (1, 2)
    resnets: int = 1
    attended: tuple[int, ...] = ()
    """Downsampling factors with attention."""
    head_channels: int = 32
    resnet_updown: bool = True
    scale_shift: bool = True
    new_attention_order: bool = False
    out_channels: int = 6
    dtype: torch.dtype = torch.float32
    state: dict[str, Tensor] = field(default_factory=dict)
    used: set[str] = field(default_factory=set)
    generator: torch.Generator = field(default_factory=lambda: torch.Generator().manual_seed(0))

    def parameter(self, name: str, shape: tuple[int, ...], like: Tensor) -> Tensor:
        self.used.add(name)
        if name not in self.state:
            scale = 1 / math.sqrt(math.prod(shape[1:])) if len(shape) > 1 else 0.3
            offset = 1.0 if len(shape) == 1 and name.endswith("weight") else 0.0
            if like.device.type == "meta":
                self.state[name] = torch.empty(shape, device="meta")
            else:
                self.state[name] = torch.randn(shape, generator=self.generator) * scale + offset
        assert self.state[name].shape == shape, name
        return self.state[name].to(self.dtype)

    def layer(self, name: str, x: Tensor, out: int, *kernel: int) -> tuple[Tensor, Tensor]:
        return self.parameter(f"{name}.weight", (out, x.shape[1], *kernel), x), self.parameter(
            f"{name}.bias", (out,), x
        )

    def convolve(self, name: str, x: Tensor, out: int, size: int = 3, stride: int = 1) -> Tensor:
        return F.conv2d(x, *self.layer(name, x, out, size, size), stride=stride, padding=size // 2)

    def normalise(self, name: str, x: Tensor) -> Tensor:
        width = (x.shape[1],)
        return F.group_norm(x, 32, self.parameter(f"{name}.weight", width, x), self.parameter(f"{name}.bias", width, x))

    def residual(self, name: str, x: Tensor, emb: Tensor, out: int, resample: str = "") -> Tensor:
        h = F.silu(self.normalise(f"{name}.in_layers.0", x))
        if resample == "down":
            h, x = F.avg_pool2d(h, 2), F.avg_pool2d(x, 2)
        if resample == "up":
            h, x = (F.interpolate(v, scale_factor=2, mode="nearest") for v in (h, x))
        h = self.convolve(f"{name}.in_layers.2", h, out)
        width = 2 * out if self.scale_shift else out
        time = F.linear(F.silu(emb), *self.layer(f"{name}.emb_layers.1", emb, width))[:, :, None, None]
        if self.scale_shift:
            h = self.normalise(f"{name}.out_layers.0", h) * (1 + time[:, :out]) + time[:, out:]
        else:
            h = self.normalise(f"{name}.out_layers.0", h + time)
        h = self.convolve(f"{name}.out_layers.3", F.silu(h), out)
        return h + (x if x.shape[1] == out else self.convolve(f"{name}.skip_connection", x, out, 1))

    def attend(self, name: str, x: Tensor) -> Tensor:
        n, width, height, _ = x.shape
        tokens = self.normalise(f"{name}.norm", x).flatten(2)
        qkv = F.conv1d(tokens, *self.layer(f"{name}.qkv", tokens, 3 * width, 1))
        heads, size = width // self.head_channels, self.head_channels
        if self.new_attention_order:
            q, k, v = qkv.view(n, 3, heads, size, -1).unbind(1)
        else:
            q, k, v = qkv.view(n, heads, 3, size, -1).unbind(2)
        weights = torch.einsum("nhct,nhcs->nhts", q, k).div(math.sqrt(size)).softmax(-1)
        mixed = torch.einsum("nhts,nhcs->nhct", weights, v).reshape(n, width, -1)
        return x + F.conv1d(mixed, *self.layer(f"{name}.proj_out", mixed, width, 1)).view(n, width, height, -1)

    def embed(self, t: Tensor) -> Tensor:
        half = self.channels // 2
        angles = t[:, None].float() * torch.exp(-math.log(10000) * torch.arange(half, device=t.device).float() / half)
        emb = torch.cat([angles.cos(), angles.sin()], 1).to(self.dtype)
        emb = F.linear(emb, *self.layer("time_embed.0", emb, 4 * self.channels))
        emb = F.silu(emb)
        return F.linear(emb, *self.layer("time_embed.2", emb, 4 * self.channels))

    def __call__(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """The output and the bottleneck."""
        emb = self.embed(t)
        widths = [self.channels * multiplier for multiplier in self.multipliers]
        h = self.convolve("input_blocks.0.0", x, widths[0])
        skips, block = [h], 1
        for level, width in enumerate(widths):
            for _ in range(self.resnets):
                h = self.residual(f"input_blocks.{block}.0", h, emb, width)
                h = self.attend(f"input_blocks.{block}.1", h) if 2**level in self.attended else h
                skips.append(h)
                block += 1
            if level < len(widths) - 1:
                if self.resnet_updown:
                    h = self.residual(f"input_blocks.{block}.0", h, emb, width, "down")
                else:
                    h = self.convolve(f"input_blocks.{block}.0.op", h, width, stride=2)
                skips.append(h)
                block += 1
        h = self.residual("middle_block.0", h, emb, widths[-1])
        h = self.attend("middle_block.1", h)
        h = middle = self.residual("middle_block.2", h, emb, widths[-1])
        block = 0
        for level, width in reversed(list(enumerate(widths))):
            for index in range(self.resnets + 1):
                h = self.residual(f"output_blocks.{block}.0", torch.cat([h, skips.pop()], 1), emb, width)
                inner = 1
                if 2**level in self.attended:
                    h, inner = self.attend(f"output_blocks.{block}.1", h), 2
                if level and index == self.resnets:
                    if self.resnet_updown:
                        h = self.residual(f"output_blocks.{block}.{inner}", h, emb, width, "up")
                    else:
                        h = F.interpolate(h, scale_factor=2, mode="nearest")
                        h = self.convolve(f"output_blocks.{block}.{inner}.conv", h, width)
                block += 1
        return self.convolve("out.2", F.silu(self.normalise("out.0", h)), self.out_channels), middle
