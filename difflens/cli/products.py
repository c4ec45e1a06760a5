"""Choices without a file of their own: those that would differ in one word or number, and products of attributes."""

from collections.abc import Mapping
from itertools import permutations
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore

LARGEST = 3
"""Attributes of one product at most; the classes multiply."""

TASKS = {
    "pipeline": "pipeline.pipeline",
    "activations": "stages.activations.activations",
    "sae": "stages.sae.sae",
    "probe": "stages.probe.probe",
    "attribution": "stages.attribution.attribution",
    "calibrate": "stages.calibrate.calibrate",
    "steer": "stages.generate.steer",
    "report": "stages.present.report",
    "doctor": "tasks.doctor.doctor",
}
"""Tasks without settings: the whole study (the default), its stages, and what it needs."""

SCORERS = {
    "gradient_times_activation": "GradientTimesActivation",
    "gradient_times_distance": "GradientTimesDistance",
    "mean_difference": "MeanActivation",
    "official": "OfficialIntegratedGradients",
    "random": "RandomScores",
}
"""Scorers with the settings of `integrated_gradients`."""

STRENGTHS: Mapping[str, Mapping[str, Any]] = {
    "calibrated": {"strength": "auto", "times": 1.0},
    "none": {"times": 0.0},
    "half": {"times": 0.5},
    "published": {"strength": "${published_strength}", "times": 1.0},
    "double": {"times": 2.0},
}
"""How strongly is edited: the calibrated strength or the paper's, or how often that of the configuration is applied."""

WIDTHS = (4, 8, 16, 32)
"""Common numbers of latents per channel of the SAE; any whole number up to the last can be asked for."""

TENSORBOARD = "difflens.training.loggers.tensorboard_tracker"
"""Curves and figures for TensorBoard in the run folder; needs `pip install difflens[tensorboard]`."""

PACKAGES = {"width": "sae", "strength": "mitigation", "experiment": "_global_", "tuning": "_global_"}
"""Where a group's choices stand, if not under its own name."""


def width(factor: int) -> tuple[str, Mapping[str, Any]]:
    """A choice of the group `width`: its name and its setting."""
    return f"x{factor}", {"expansion": factor}


def choices(conf: Path) -> dict[str, dict[str, Mapping[str, Any]]]:
    """What is chosen by name without a file, by group; the tables of `conf/experiment` are one for each attribute."""
    # A file such as `age_40` is another reading of an attribute, and none of a published table.
    attributes = sorted(path.stem for path in (conf / "attribute").glob("*.yaml") if "_" not in path.stem)
    return {
        "task": {name: {"_target_": f"difflens.{target}", "name": name} for name, target in TASKS.items()},
        "attribution": {
            name: {
                "defaults": ["integrated_gradients", "_self_"],
                "scorer": {"_target_": f"difflens.attribution.scorers.{scorer}"},
            }
            for name, scorer in SCORERS.items()
        },
        "strength": dict(STRENGTHS),
        "width": dict(map(width, WIDTHS)),
        "tuning": {
            # Raw neurons act when and where the method was tuned to, so that the two differ in their latents alone.
            path.stem.replace("difflens", "activation", 1): {"defaults": [path.stem]}
            for path in sorted((conf / "tuning").glob("difflens_*.yaml"))
        },
        "logger": {"tensorboard": {"defaults": ["csv", "_self_"], "_target_": TENSORBOARD}},
        "experiment": {
            f"{path.stem}_{name}": {"defaults": [path.stem, {"override /attribute": name}]}
            for path in sorted((conf / "experiment").glob("table_*.yaml"))
            for name in attributes
        },
    }


def register_products(conf: Path) -> None:
    """Make these choices, and every product of two or three files of `conf/attribute`, options of their groups."""
    store = ConfigStore.instance()
    for group, named in {**choices(conf), "width": dict(map(width, range(1, WIDTHS[-1] + 1)))}.items():
        for name, node in named.items():
            store.store(group=group, name=name, node=node, package=PACKAGES.get(group))
    files = sorted(path.stem for path in (conf / "attribute").glob("*.yaml"))
    for size in range(2, LARGEST + 1):
        # Permutations, since the order of the parts names the product's classes.
        for names in permutations(files, size):
            if len({name.partition("_")[0] for name in names}) < size:
                continue  # two readings of one attribute
            defaults = [*(f"{name}@parts.{name}" for name in names), "_self_"]
            store.store(group="attribute", name="+".join(names), node={"defaults": defaults, "name": "+".join(names)})
