"""Choices that have no file of their own: products of attributes (`gender+age`), single stages and widths of the SAE."""

from itertools import permutations
from pathlib import Path

from hydra.core.config_store import ConfigStore

LARGEST = 3
"""Attributes of one product at most; the classes multiply."""

STAGES = {
    "activations": "activations.activations",
    "sae": "sae.sae",
    "probe": "probe.probe",
    "attribution": "attribution.attribution",
    "calibrate": "calibrate.calibrate",
    "steer": "generate.steer",
    "report": "present.report",
}
"""What `task=<name>` calls, in `difflens.stages`."""

WIDTHS = (4, 8, 16, 32)
"""Latents per channel that `width=x<number>` chooses."""

REGISTERED = {"task": tuple(STAGES), "width": tuple(f"x{factor}" for factor in WIDTHS)}
"""Choices without a file that the help lists."""


def register_products(conf: Path) -> None:
    """Make every stage, every width and every product of two or three files of `conf/attribute` an option of its group."""
    store = ConfigStore.instance()
    for name, function in STAGES.items():
        store.store(group="task", name=name, node={"_target_": f"difflens.stages.{function}", "name": name})
    for factor in WIDTHS:
        store.store(group="width", name=f"x{factor}", node={"expansion": factor}, package="sae")
    files = sorted(path.stem for path in (conf / "attribute").glob("*.yaml"))
    for size in range(2, LARGEST + 1):
        for names in permutations(files, size):
            defaults = [*(f"{name}@parts.{name}" for name in names), "_self_"]
            store.store(group="attribute", name="+".join(names), node={"defaults": defaults, "name": "+".join(names)})
