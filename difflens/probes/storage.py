"""A saved probe: its buffers and its held-out accuracy in `probe.safetensors`, its class and settings in the header."""

import json
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from difflens.probes.base import Probe, ProbeFit
from difflens.probes.linear import LinearProbe
from difflens.store.targets import saved_class

FILE = "probe.safetensors"


def save_probe(fitted: ProbeFit, folder: Path) -> None:
    """Write a fitted probe into a folder."""
    kind = type(fitted.probe)
    described = {"class": f"{kind.__module__}.{kind.__qualname__}", "settings": dict(fitted.probe.settings())}
    measured = {"accuracy": fitted.accuracy, "images_per_class": torch.tensor(fitted.images_per_class)}
    # One entry: of several the header's order would differ from file to file.
    save_file({**fitted.probe.state_dict(), **measured}, folder / FILE, metadata={"probe": json.dumps(described)})


def load_probe(folder: Path) -> tuple[Probe, Float[Tensor, "steps"]]:
    """The probe of a folder and its held-out accuracy per step; one that names no class is linear.

    Raises:
        ValueError: its class is no probe.
    """
    stored = load_file(folder / FILE)
    with safe_open(folder / FILE, framework="pt") as file:
        described = json.loads((file.metadata() or {}).get("probe", "{}"))
    if described:
        kind: type[Probe] = saved_class(described["class"], Probe)  # type: ignore[type-abstract]
        probe = kind(**described["settings"])
    else:
        probe = LinearProbe(*stored["weight"].shape)
    # The file also holds what was measured, which is no buffer of the probe.
    probe.load_state_dict({name: stored[name] for name in probe.state_dict()})
    return probe, stored["accuracy"]
