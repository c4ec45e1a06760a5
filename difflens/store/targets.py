"""Which `_target_` a configuration may name: it can run anything, so only known packages are let through."""

import importlib.util
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from difflens.store.errors import UserError

ALLOWED = (
    "difflens.",
    "diffusers.",
    "lightning.",
    "open_clip.",
    "torch.nn.",
    "torch.optim.",
    "torch.utils.data.",
    "torchmetrics.",
    "torchvision.",
    "transformers.",
)
EXTRA_VARIABLE = "DIFFLENS_ALLOW_TARGETS"
"""Environment variable with further prefixes, comma-separated: how a package of one's own is let in."""


def allowed_prefixes() -> tuple[str, ...]:
    """The prefixes of this package and those named in the environment, each ending in a dot."""
    extra = [part.strip() for part in os.environ.get(EXTRA_VARIABLE, "").split(",") if part.strip()]
    return (*ALLOWED, *(f"{part.rstrip('.')}." for part in extra))


def find_targets(node: Any, where: str = "") -> Iterator[tuple[str, Any]]:
    """Every `_target_` of a resolved configuration with the dotted path of the node that holds it."""
    if isinstance(node, Mapping):
        if "_target_" in node:
            yield where or "the top level", node["_target_"]
        for key, value in node.items():
            yield from find_targets(value, f"{where}.{key}".lstrip("."))
    elif isinstance(node, Sequence) and not isinstance(node, str):
        for i, value in enumerate(node):
            yield from find_targets(value, f"{where}.{i}".lstrip("."))


def inside_modules(parts: list[str]) -> list[str]:
    """What is left of a dotted path below its last real module, found on disk without importing anything."""
    spec = importlib.util.find_spec(parts[0])
    folders = [Path(folder) for folder in (spec.submodule_search_locations if spec else None) or []]
    rest = parts[1:]
    while rest and folders:
        packages = [folder / rest[0] for folder in folders if (folder / rest[0]).is_dir()]
        if not packages and not any((folder / f"{rest[0]}.py").is_file() for folder in folders):
            break
        folders, rest = packages, rest[1:]
    return rest


def names_something_inside(target: str) -> bool:
    """Whether a path stays in its package: modules, then a function, a class or a class's method.

    A prefix alone is no fence: `torch.nn.functional.importlib.import_module` climbs out through a module's imports.
    """
    parts = target.split(".")
    if any(not part.isidentifier() or part.startswith("_") for part in parts):
        return False
    inside = inside_modules(parts)
    if inside and inside[0] in sys.stdlib_module_names:
        return False
    return len(inside) == 1 or (len(inside) == 2 and inside[0][0].isupper())


def check_targets(config: Any, allowed: tuple[str, ...] | None = None) -> None:
    """Check every `_target_` of a resolved configuration, before anything is instantiated.

    Raises:
        UserError: one is outside the allowed packages, or reaches out of its package through an imported module.
    """
    prefixes = allowed_prefixes() if allowed is None else allowed
    for where, target in find_targets(config):
        if not isinstance(target, str) or not target.startswith(prefixes):
            raise UserError(
                f"_target_ of {where} is {target!r}; allowed are names under {', '.join(p[:-1] for p in prefixes)}. "
                f"To use a package of your own, set {EXTRA_VARIABLE}=<package>."
            )
        if not names_something_inside(target):
            raise UserError(f"_target_ of {where} is {target!r}, which names no class or function of that package.")
