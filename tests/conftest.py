"""While the tests run there is no network, and jaxtyping and beartype check shapes and types of the whole package."""

import os
import signal
import sys
from pathlib import Path

import pytest
from jaxtyping import install_import_hook
from network import refuse_network

# Containers tend to forbid Python its bytecode; every program that a test starts would then compile torch's modules anew.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False
if "PYTEST_XDIST_WORKER" in os.environ:
    # Workers that share the cores, and all programs they start, compute on one thread each.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
refuse_network()
# A suite in a shell's background is told to ignore Ctrl-C, and so would be the programs it interrupts.
signal.signal(signal.SIGINT, signal.default_int_handler)
install_import_hook("difflens", "typechecking.check")

import torch  # noqa: E402
from diffusers import DDIMScheduler, UNet2DModel  # noqa: E402
from safetensors.torch import load_file  # noqa: E402
from small_program import World  # noqa: E402

from difflens.models.model import DiffusionModel, UnconditionalPipeline  # noqa: E402


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whole programs first: files that take long do not wait until the other workers have nothing left to do."""
    items.sort(key=lambda item: "tasks" not in item.path.parts)


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


@pytest.fixture
def unet() -> UNet2DModel:
    return tiny_unet()


@pytest.fixture
def model(unet: UNet2DModel) -> DiffusionModel:
    scheduler = DDIMScheduler(prediction_type="v_prediction", timestep_spacing="trailing")
    return DiffusionModel(UnconditionalPipeline(unet, scheduler), name="tiny", steps=5, micro_batch=4)


@pytest.fixture
def difflens(tmp_path: Path) -> World:
    return World(tmp_path)


@pytest.fixture(scope="session")
def official() -> dict[str, torch.Tensor]:
    """Numbers made by the paper's released code."""
    return load_file(Path(__file__).parent / "fixtures" / "official_measures.safetensors")
