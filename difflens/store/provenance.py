"""Where a result comes from: commit, versions, machine, seeds, memory."""

import importlib.metadata
import os
import platform
import resource
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from difflens import __version__

PACKAGES = (
    "torch torchvision lightning hydra-core omegaconf diffusers transformers safetensors torchmetrics clean-fid "
    "open_clip_torch wandb numpy"
)


def version_of(package: str) -> str | None:
    """The installed version of a package, read without importing it."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def git(folder: Path, *words: str) -> str | None:
    """Output of a git command in `folder`; None without git, without a repository, or when it fails."""
    try:
        done = subprocess.run(["git", "-C", str(folder), *words], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def git_state() -> dict[str, Any]:
    """Commit of the source checkout and whether it has changes; both None for an installed wheel.

    An installed package may lie inside an unrelated repository, whose commit would be a lie: only a folder that holds
    this project's conf/ next to the package counts as its checkout.
    """
    checkout = Path(__file__).parents[2]
    if not (checkout / "conf" / "config.yaml").is_file():
        return {"commit": None, "dirty": None}
    changes = git(checkout, "status", "--porcelain")
    return {"commit": git(checkout, "rev-parse", "HEAD"), "dirty": None if changes is None else bool(changes)}


def seeds(node: Any, where: str = "") -> Iterator[tuple[str, int]]:
    """Every seed in a configuration by dotted path: keys `seed` and `…_seed`."""
    if isinstance(node, Mapping):
        for key, value in node.items():
            path = f"{where}.{key}".lstrip(".")
            if isinstance(value, int) and (key == "seed" or str(key).endswith("_seed")):
                yield path, value
            yield from seeds(value, path)
    elif isinstance(node, Sequence) and not isinstance(node, str):
        for i, value in enumerate(node):
            yield from seeds(value, f"{where}.{i}".lstrip("."))


def main_memory() -> int:
    """Bytes of main memory that the machine has."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def peak_memory() -> dict[str, float]:
    """Largest resident memory of this process so far in MiB, and of its GPU tensors if torch has used one."""
    # `ru_maxrss` is in bytes on macOS and in KiB on Linux.
    unit = 2**20 if sys.platform == "darwin" else 2**10
    peaks = {"peak_memory_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit, 1)}
    # Only if somebody else has imported it: reports and checks run without torch.
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        peaks["peak_gpu_memory_mib"] = round(torch.cuda.max_memory_allocated() / 2**20, 1)
    return peaks


def provenance(config: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """What a run's manifest says at its start."""
    return {
        "git": git_state(),
        "versions": {"difflens": __version__, **{name: version_of(name) for name in PACKAGES.split()}},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "command": list(sys.argv),
        "overrides": list(overrides),
        "seeds": dict(seeds(config)),
    }
