"""Settings that nothing reads: a misspelt key that `+key=value` or an experiment's file adds would silently do nothing."""

from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from difflens.store.errors import UserError
from difflens.store.exits import nearest

GROUPS = ("attribution", "data", "judge", "metric", "mitigation", "paths", "probe")
"""Groups whose files name every key. Not looked at are `attribute` (products have no file), `task`, and what is built from a
`_target_` before the first stage, whose class refuses what it does not take."""

GLOBAL = "# @package _global_"
"""First line of a file whose keys stand at the top."""


def check_keys(config: Mapping[str, Any], folders: tuple[Path, ...]) -> None:
    """Refuse keys that no file of their group has.

    Args:
        config: the composed configuration, unresolved.
        folders: what it is composed from: this program's folder, and the user's (`--config-dir`).

    Raises:
        UserError: with the nearest key there is.
    """
    for group, known in _known(folders).items():
        for where, there in _unknown(config.get(group) or {} if group else config, known, group):
            raise UserError(f"nothing reads {where!r}; take it away.{nearest(where, there)}")


@cache
def _known(folders: tuple[Path, ...]) -> dict[str, dict[str, Any]]:
    """By group, "" for the top level, the tree of all keys that its files have; other values than mappings are left out."""
    paths = {path: path.relative_to(folder).parts for folder in folders for path in sorted(folder.glob("**/*.yaml"))}
    tasks = [
        path for path, (group, *_) in paths.items() if group == "task" and path.read_text("utf-8").startswith(GLOBAL)
    ]
    top = _tree([path for path, parts in paths.items() if parts == ("config.yaml",)]) | _tree(tasks)
    groups = [parts[0] for parts in paths.values() if len(parts) > 1]
    files = {group: [path for path, parts in paths.items() if parts[:-1] == (group,)] for group in GROUPS}
    # What the groups' files hold is not looked at from the top.
    trees = {group: _tree(own) for group, own in files.items()}
    for group, shared in top.items():
        if group in trees and isinstance(shared, dict):
            # What all choices of a group share stands in the primary file.
            _merge(trees[group], shared)
    return {"": dict.fromkeys([*top, *groups])} | trees


def _tree(paths: list[Path]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for path in paths:
        content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        content.pop("defaults", None)
        _merge(found, content)
    return found


def _merge(found: dict[str, Any], content: Mapping[str, Any]) -> None:
    for key, value in content.items():
        if isinstance(value, Mapping) and "_target_" not in value:
            below = found.get(key)
            found[key] = below if isinstance(below, dict) else {}
            _merge(found[key], value)
        else:
            found.setdefault(key, None)


def _unknown(node: Mapping[str, Any], known: Mapping[str, Any], where: str) -> Iterator[tuple[str, list[str]]]:
    """The path of every key that the tree lacks, and the paths beside it there; not below what has a `_target_`."""
    for key, value in node.items():
        path = f"{where}.{key}".lstrip(".")
        if key not in known:
            yield path, [f"{where}.{name}".lstrip(".") for name in known]
        elif known[key] is not None and isinstance(value, Mapping) and "_target_" not in value:
            yield from _unknown(value, known[key], path)
