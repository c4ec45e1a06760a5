"""Several attributes at once: `attribute=gender+age` is composed of the files of its parts, and has none of its own."""

from itertools import permutations
from pathlib import Path

from hydra.core.config_store import ConfigStore

LARGEST = 3
"""Attributes of one product at most; the classes multiply."""


def register_products(conf: Path) -> None:
    """Make every product of two or three files of `conf/attribute` an option of that group."""
    store = ConfigStore.instance()
    files = sorted(path.stem for path in (conf / "attribute").glob("*.yaml"))
    for size in range(2, LARGEST + 1):
        for names in permutations(files, size):
            defaults = [*(f"{name}@parts.{name}" for name in names), "_self_"]
            store.store(group="attribute", name="+".join(names), node={"defaults": defaults, "name": "+".join(names)})
