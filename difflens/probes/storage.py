"""A saved probe: its buffers and its held-out accuracy in `probe.safetensors`, its class and settings in the header."""

import json
from importlib import import_module
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from difflens.probes.base import Probe, ProbeFit
from difflens.probes.linear import LinearProbe
from difflens.targets import allowed_prefixes

FILE = "probe.safetensors"


def save_probe(fitted: ProbeFit, folder: Path) -> None:
    """Write a fitted probe into a folder."""
    kind = type(fitted.probe)
    described = {
        "class": f"{kind.__module__}.{kind.__qualname__}",
        "settings": json.dumps(dict(fitted.probe.settings())),
    }
    measured = {"accuracy": fitted.accuracy, "images_per_class": torch.tensor(fitted.images_per_class)}
    save_file({**fitted.probe.state_dict(), **measured}, folder / FILE, metadata=described)


def load_probe(folder: Path) -> tuple[Probe, Float[Tensor, "steps"]]:
    """The probe of a folder and its held-out accuracy per step; one that names no class is linear.

    Raises:
        ValueError: its class is no probe.
    """
    stored = load_file(folder / FILE)
    with safe_open(folder / FILE, framework="pt") as file:
        described = file.metadata() or {}
    if "class" in described:
        probe = _class(described["class"])(**json.loads(described["settings"]))
    else:
        probe = LinearProbe(*stored["weight"].shape)
    probe.load_state_dict({name: stored[name] for name in probe.state_dict()})
    return probe, stored["accuracy"]


def _class(dotted: str) -> type[Probe]:
    module, _, name = dotted.rpartition(".")
    found = getattr(import_module(module), name, None) if dotted.startswith(allowed_prefixes()) else None
    if not (isinstance(found, type) and issubclass(found, Probe)):
        raise ValueError(f"the saved class {dotted!r} is no Probe of a package that is let in; fit the probe again.")
    return found
