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
from difflens.store.targets import allowed_prefixes

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
    probe = _class(described["class"])(**described["settings"]) if described else LinearProbe(*stored["weight"].shape)
    probe.load_state_dict({name: stored[name] for name in probe.state_dict()})
    return probe, stored["accuracy"]


def _class(dotted: str) -> type[Probe]:
    module, _, name = dotted.rpartition(".")
    found = getattr(import_module(module), name, None) if dotted.startswith(allowed_prefixes()) else None
    if not (isinstance(found, type) and issubclass(found, Probe)):
        raise ValueError(f"the saved class {dotted!r} is no Probe of a package that is let in; fit the probe again.")
    return found
