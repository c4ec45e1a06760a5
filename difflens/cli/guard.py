"""What Hydra itself would build, or set in the environment, is checked before it does so."""

from collections.abc import Iterator
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
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
    compose = ConfigLoaderImpl.load_configuration
    if getattr(compose, "guarded", False):
        return

    def guarded(self: ConfigLoaderImpl, *args: Any, **more: Any) -> DictConfig:
        config = compose(self, *args, **more)
        check_hydra(config.hydra)
        return config

    guarded.guarded = True  # type: ignore[attr-defined]
    ConfigLoaderImpl.load_configuration = guarded


def check_hydra(settings: DictConfig) -> None:
    """Check Hydra's part of a composed configuration.

    Raises:
        UserError: it names an object that is none of Hydra's own, or sets what the user's environment alone may say.
    """
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
        if key == "_target_" or (key in FACTORIES and "logging" in where):
            yield where, str(key), value
        elif OmegaConf.is_dict(value):
            yield from _named(value, f"{where}.{key}")
        elif OmegaConf.is_list(value):
            # Texts are left alone: an override such as `lr=${other}` has nothing to refer to in Hydra's own settings.
            entries: Any = OmegaConf.to_container(value, resolve=False)
            listed = OmegaConf.create({str(i): each for i, each in enumerate(entries) if isinstance(each, dict | list)})
            yield from _named(listed, f"{where}.{key}")
