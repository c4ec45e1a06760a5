"""Converted networks against the released code's own numbers, and against the family written down once more."""

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, UNet2DModel
from guided_diffusion import GuidedUNet
from safetensors.torch import load_file
from torch import Tensor

from difflens.models.guided_diffusion import convert_unet
from difflens.models.sampling import RespacedScheduler, ddim_step
from difflens.models.tensor_files import read_state_dict

FOLDER = Path(__file__).parents[1] / "fixtures" / "p2_small"


@pytest.fixture(scope="module")
def oracle() -> dict[str, Tensor]:
    return load_file(FOLDER / "oracle.safetensors")


@pytest.fixture(scope="module")
def checkpoint() -> dict[str, Tensor]:
    return read_state_dict(FOLDER / "checkpoint.pt")


@pytest.fixture(scope="module")
def converted(checkpoint: dict[str, Tensor]) -> UNet2DModel:
    return convert_unet(checkpoint, image_size=32, head_channels=32)


@torch.no_grad()
def output_and_middle(unet: UNet2DModel, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    middle: list[Tensor] = []
    hook = unet.mid_block.register_forward_hook(lambda _, __, value: middle.append(value))
    output = unet(x, t).sample
    hook.remove()
    return output, middle[0]


def test_it_computes_what_the_released_code_computes(converted: UNet2DModel, oracle: dict[str, Tensor]) -> None:
    # In double precision, so that the oracle's rounding alone is left: two processors' together may exceed the tolerance.
    exact = deepcopy(converted).double()
    output, middle = output_and_middle(exact, oracle["x"].double(), oracle["t"])
    torch.testing.assert_close(output.float(), oracle["out"], rtol=0, atol=1e-5)
    torch.testing.assert_close(middle.float(), oracle["mid"], rtol=0, atol=1e-5)


@torch.no_grad()
def test_ten_steps_of_ddim_end_where_the_released_code_ends(converted: UNet2DModel, oracle: dict[str, Tensor]) -> None:
    scheduler = DDIMScheduler(beta_start=1e-4, beta_end=0.02, beta_schedule="linear", clip_sample=True)
    scheduler.set_timesteps(10)
    assert sorted(scheduler.timesteps.tolist()) == oracle["ddim10_timesteps"].tolist()
    x = oracle["noise"]
    for t in scheduler.timesteps:
        noise_half = converted(x, t).sample[:, :3]
        x = ddim_step(scheduler, noise_half, timestep=int(t), x=x, rederive_direction=True)
    torch.testing.assert_close(x, oracle["ddim10_eta0"], rtol=0, atol=1e-4)


def test_fifty_steps_on_the_releases_own_grid_end_where_it_ends(converted: UNet2DModel) -> None:
    released = load_file(FOLDER / "respaced50_eta0.safetensors")
    scheduler = RespacedScheduler(beta_start=1e-4, beta_end=0.02, beta_schedule="linear", clip_sample=True)
    scheduler.set_timesteps(50)
    assert scheduler.timesteps.tolist() == released["network_timesteps"].tolist()
    used = scheduler.alphas_cumprod[scheduler.timesteps].double()
    torch.testing.assert_close(used, released["alphas_cumprod"], rtol=1e-5, atol=1e-9)
    x = released["noise"]
    for t in scheduler.timesteps:
        noise_half = 0.05 * converted(x, t).sample[:, :3]
        x = ddim_step(scheduler, noise_half, timestep=int(t), x=x, rederive_direction=True)
    torch.testing.assert_close(x, released["sample"], rtol=0, atol=1e-4)


def test_the_family_as_written_down_here_is_the_released_one(
    checkpoint: dict[str, Tensor], oracle: dict[str, Tensor]
) -> None:
    network = GuidedUNet(32, (1, 2, 2), 1, (2,), 32, state=dict(checkpoint))
    output, middle = network(oracle["x"], oracle["t"])
    assert network.used == set(checkpoint)
    torch.testing.assert_close(output, oracle["out"], rtol=0, atol=1e-5)
    torch.testing.assert_close(middle, oracle["mid"], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"attended": (1, 2), "resnets": 2, "new_attention_order": True},
        {"attended": (2,), "resnet_updown": False, "scale_shift": False, "multipliers": (1, 3), "head_channels": 16},
        {"attended": (1, 4), "resnet_updown": False, "multipliers": (1, 1, 2), "out_channels": 3},
        {"scale_shift": False, "multipliers": (1,), "resnets": 3},
        {"multipliers": (2, 2, 4), "resnets": 2, "attended": (4,), "head_channels": 64},
        {"channels": 64, "multipliers": (1, 1), "attended": (2,), "new_attention_order": True},
    ],
    ids=lambda options: " ".join(options) or "plain",
)
@torch.no_grad()
def test_every_member_of_the_family_converts_exactly(options: dict[str, Any]) -> None:
    network = GuidedUNet(**options, dtype=torch.float64)
    x = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    t = torch.tensor([2, 871])
    output, middle = network(x, t)
    order = {"new_attention_order": network.new_attention_order}
    unet = convert_unet(network.state, image_size=16, head_channels=network.head_channels, **order).double()
    # The sinusoids are float32 in both; where the embedding is stretched, their frequencies round differently.
    tolerance = 1e-9 if network.multipliers[0] == 1 else 1e-4
    for made, expected in zip(output_and_middle(unet, x, t), (output, middle), strict=True):
        assert expected.std() > 0.1
        torch.testing.assert_close(made, expected, rtol=0, atol=tolerance)


def test_the_orders_of_attention_are_told_apart(checkpoint: dict[str, Tensor], oracle: dict[str, Tensor]) -> None:
    unet = convert_unet(checkpoint, image_size=32, head_channels=32, new_attention_order=True)
    assert (output_and_middle(unet, oracle["x"], oracle["t"])[1] - oracle["mid"]).abs().max() > 0.01


def test_the_full_size_celebahq_network_converts_with_no_key_left() -> None:
    network = GuidedUNet(128, (1, 1, 2, 2, 4, 4), 1, (16,), 64)
    x = torch.empty(1, 3, 256, 256, device="meta")
    output, middle = network(x, torch.zeros(1, device="meta"))
    assert output.shape == (1, 6, 256, 256) and middle.shape == (1, 512, 8, 8)
    unet = convert_unet(network.state, image_size=256, head_channels=64)
    made, bottleneck = output_and_middle(unet, x, torch.zeros(1, device="meta"))
    assert (made.shape, bottleneck.shape) == (output.shape, middle.shape)
    # The release calls it the 93-million-parameter version of ADM, with attention at 16 x 16 and in the middle alone.
    assert sum(value.numel() for value in network.state.values()) // 1_000_000 == 93
    assert sum(p.numel() for p in unet.parameters()) == sum(v.numel() for v in network.state.values())
    attended = {key.rpartition(".qkv")[0] for key in network.state if ".qkv." in key}
    assert attended == {"input_blocks.9.1", "middle_block.1", "output_blocks.2.1", "output_blocks.3.1"}


def test_a_half_precision_checkpoint_becomes_float32(checkpoint: dict[str, Tensor]) -> None:
    unet = convert_unet({key: value.half() for key, value in checkpoint.items()}, image_size=32, head_channels=32)
    assert {p.dtype for p in unet.parameters()} == {torch.float32}


MISSING = ("input_blocks.3.1.qkv.weight", "out.0.bias", "middle_block.2.out_layers.3.weight", "time_embed.2.bias")
DECISIVE = ("time_embed.0.weight", "input_blocks.0.0.weight", "input_blocks.1.0.out_layers.0.weight")


@pytest.mark.parametrize(
    ("without", "more", "message"),
    [
        (MISSING, {"label_emb.weight": (10, 128)}, "out.0.bias, time_embed.2.bias; unknown keys: label_emb"),
        *(((key,), {}, f"missing keys: {key}") for key in DECISIVE),
        (("output_blocks.5.",), {}, r"(output_blocks\.5\.\S+ ?){12}"),
        (
            (),
            {"middle_block.1.qkv.weight": (64, 64, 1), "out.0.weight": (64,)},
            r"shape: middle_block\.1\.qkv.*, out\.0",
        ),
        ((), {"time_embed.0.weight": (128, 64)}, "no multiple"),
        (("",), {"conv_in.weight": (1,)}, "not a guided-diffusion"),
    ],
)
def test_wrong_keys_are_all_listed(
    checkpoint: dict[str, Tensor], without: tuple[str, ...], more: dict[str, tuple[int, ...]], message: str
) -> None:
    state = {key: value for key, value in checkpoint.items() if not key.startswith(without)}
    state |= {key: torch.zeros(shape) for key, shape in more.items()}
    with pytest.raises(ValueError, match=message):
        convert_unet(state, image_size=32, head_channels=32)


def test_heads_that_do_not_divide_the_widths_are_refused(checkpoint: dict[str, Tensor]) -> None:
    with pytest.raises(ValueError, match=r"head_channels=48 does not divide .*64"):
        convert_unet(checkpoint, image_size=32, head_channels=48)
