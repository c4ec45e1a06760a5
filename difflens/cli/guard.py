"""What Hydra itself would build, or set in the environment, is checked before it does so."""

import codecs
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.sources_registry import SourcesRegistry
from hydra.core.plugins import Plugins
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from difflens.store.errors import UserError
from difflens.store.targets import EXTRA_VARIABLE, check_target

FACTORIES = ("()", "class")
"""Keys under which `logging.config` imports what it is told."""

LOGGING = ("logging.", "colorlog.")
"""What handlers and formatters of a log may be."""


def guard_hydra() -> None:
    """Check every configuration as Hydra composes it: its callbacks are built, and its logs are set up, right after that."""
    # Hydra has no hook between composing and building its callbacks, so the loader itself is wrapped.
    compose = ConfigLoaderImpl.load_configuration
    # Once per process: wrapped twice, it would check everything twice.
    if getattr(compose, "guarded", False):
        return

    def guarded(self: ConfigLoaderImpl, *args: Any, **more: Any) -> DictConfig:
        config = compose(self, *args, **more)
        check_hydra(config.hydra)
        check_places(config)
        return config

    Plugins.instance()  # which loads its own copy of the class that reads files
    source: Any = SourcesRegistry.instance().resolve("file")
    read = source.load_config

    def checked(self: Any, config_path: str) -> Any:
        path = Path(self.path) / self._normalize_file_name(config_path)
        check_encoding(path)
        try:
            return read(self, config_path)
        except yaml.MarkedYAMLError as error:
            line = error.problem_mark.line + 1 if error.problem_mark else 1
            # PyYAML says of a tab only that it cannot start a token.
            spaces = "; indent with spaces" if "\\t" in str(error.problem) else ""
            raise UserError(f"{path}, line {line}: {error.problem}{spaces}.") from error

    guarded.guarded = True  # type: ignore[attr-defined]
    ConfigLoaderImpl.load_configuration, source.load_config = guarded, checked


def check_encoding(path: Path) -> None:
    """Check that a file is plain UTF-8: behind a byte-order mark its first line would go unread; else UserError."""
    data = path.read_bytes() if path.is_file() else b""
    if data.startswith((codecs.BOM_UTF8, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise UserError(f"{path}, line 1: begins with a byte-order mark; save the file as plain UTF-8.")
    try:
        data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path}, line {line}: is not UTF-8 text; save the file in that encoding.") from error


def check_places(config: DictConfig) -> None:
    """Refuse with a UserError names and folders that lead out of the outputs, before Hydra makes the run's folder of them."""
    for key in ("task.name", "model.name", "attribute.name", "name", "paths.outputs", "paths.artifacts"):
        try:
            value = OmegaConf.select(config, key, default="absent")
        except OmegaConfBaseException:
            continue  # what refers to nothing is told when all is resolved
        if key.startswith("paths.") and not (isinstance(value, str) and value.strip()):
            raise UserError(f"{key} must be a folder, got {value!r}; leave it out for {key.partition('.')[2]}/.")
        if not isinstance(value, str) or (not re.fullmatch(r"[^/\\\x00-\x1f]{1,200}", value) and "name" in key):
            raise UserError(f"{key} must be a name without '/', since it names the run's folder, got {value!r}.")


def check_hydra(settings: DictConfig) -> None:
    """Check Hydra's part of a composed configuration; else UserError."""
    # A configuration that lets in packages for itself would make the list of targets no fence.
    if EXTRA_VARIABLE in (settings.job.env_set or {}):
        raise UserError(f"hydra.job.env_set may not name {EXTRA_VARIABLE}: set it before difflens is started.")
    for key, word, value in _named(settings, "hydra"):
        if word == "_target_":
            check_target(value, key)
        elif not (isinstance(value, str) and value.startswith(LOGGING)):
            raise UserError(f"{key}.{word} is {value!r}; logs are written by classes of {LOGGING[0][:-1]} alone.")


def _named(node: Any, where: str) -> Iterator[tuple[str, str, Any]]:
    """What a configuration asks to import, with its place; a reference that leads nowhere yet is followed by nobody."""
    for key in node:
        try:
            value = node[key]
        except OmegaConfBaseException:
            # Hydra fills in a few values later, such as the job's number; what is imported must be plain to see now.
            plain: Any = OmegaConf.to_container(node, resolve=False)
            value = plain[key]
        # `class` is an ordinary word elsewhere; `logging.config` imports what it names.
        if key == "_target_" or (key in FACTORIES and "logging" in where):
            yield where, str(key), value
        elif OmegaConf.is_dict(value):
            yield from _named(value, f"{where}.{key}")
        elif OmegaConf.is_list(value):
            # Texts are left alone: an override such as `lr=${other}` has nothing to refer to in Hydra's own settings.
            entries: Any = OmegaConf.to_container(value, resolve=False)
            listed = OmegaConf.create({str(i): each for i, each in enumerate(entries) if isinstance(each, dict | list)})
            yield from _named(listed, f"{where}.{key}")
