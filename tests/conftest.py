"""While the tests run there is no network, and jaxtyping and beartype check shapes and types of the whole package."""

import os
import signal
import sys
from pathlib import Path

import program
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
from diffusers import UNet2DModel  # noqa: E402
from safetensors.torch import load_file  # noqa: E402
from small_program import World  # noqa: E402
from tiny_pipeline import tiny_unconditional, tiny_unet  # noqa: E402

from difflens.cli.products import register_products  # noqa: E402
from difflens.main import conf_folder  # noqa: E402
from difflens.models.model import DiffusionModel  # noqa: E402

register_products(conf_folder())


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whole programs first: files that take long do not wait until the other workers have nothing left to do."""
    items.sort(key=lambda item: "tasks" not in item.path.parts)


@pytest.fixture(scope="session", autouse=True)
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> None:
    base = tmp_path_factory.getbasetemp()
    program.SHARED[:] = [base.parent if "PYTEST_XDIST_WORKER" in os.environ else base]


@pytest.fixture(autouse=True)
def same_random_numbers() -> None:
    """Every test draws the same numbers whichever worker runs it, and whatever ran there before."""
    torch.manual_seed(0)


@pytest.fixture
def unet() -> UNet2DModel:
    return tiny_unet()


@pytest.fixture
def model() -> DiffusionModel:
    return tiny_unconditional()


@pytest.fixture
def difflens(tmp_path: Path) -> World:
    return World(tmp_path)


@pytest.fixture(scope="session")
def official() -> dict[str, torch.Tensor]:
    """Numbers made by the paper's released code."""
    return load_file(Path(__file__).parent / "fixtures" / "official_measures.safetensors")
