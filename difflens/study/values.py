"""Values of the configuration: as plain containers, and who is to blame for one that does not work."""

import itertools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from omegaconf import DictConfig, OmegaConf

from difflens.store.errors import one_line
from difflens.store.targets import build
from difflens.vocabulary import Attribute, product


@contextmanager
def blaming(key: str) -> Iterator[None]:
    """Turn whatever is said about a value in the block into a mistake in the configuration that names its key.

    Raises:
        ValueError: an exception was raised in the block.
    """
    try:
        yield
    except Exception as error:
        # Imported by need: what measures folders of images has no room for Lightning beside its networks.
        from lightning.fabric.utilities.exceptions import MisconfigurationException

        # What constructors say of bad values; a full disk or memory is nobody's setting.
        if not isinstance(error, TypeError | ValueError | ImportError | RuntimeError | MisconfigurationException):
            raise
        raise ValueError(f"{key}: {one_line(error)}") from error


def plain(node: Any) -> Any:
    """A configuration node as plain containers, for artifact specs."""
    return OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node


def built(cfg: DictConfig, key: str, *args: Any, **more: Any) -> Any:
    """The object that the configuration describes at a dotted key (see `build`), None where it describes none."""
    described = plain(OmegaConf.select(cfg, key))
    return None if described is None else build(described, key, *args, **more)


Described = Mapping[str, Any]


def read_attribute(described: Described) -> Attribute:
    """The attribute of a file, or the product of those under `parts`."""
    if "parts" in described:
        return product([read_attribute(part) for part in described["parts"].values()])
    return Attribute(described["name"], tuple(described["classes"]))


def class_words(described: Described) -> tuple[str, ...]:
    """How prompts name each class (see `config.check_prompts`); a product's words stand in the order of their `place`."""
    parts = list(described.get("parts", {"": described}).values())
    words = [[part["words"][name] for name in part["classes"]] for part in parts]
    # Classes keep the order of the command line, words that of English: `old female`, not `female old`.
    order = sorted(range(len(parts)), key=lambda i: parts[i].get("place") or 0)
    return tuple(" ".join(combination[i] for i in order) for combination in itertools.product(*words))
