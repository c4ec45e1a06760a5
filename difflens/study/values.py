"""Values of the configuration: as plain containers, and who is to blame for one that does not work."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from omegaconf import DictConfig, OmegaConf

from difflens.store.errors import one_line
from difflens.store.targets import build


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
