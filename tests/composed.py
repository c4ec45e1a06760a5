"""The configuration as the program composes it, one of equal choices composed once: it takes half a second each time."""

from copy import deepcopy
from functools import cache

from hydra import compose, initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig

from difflens.cli.usage import config_groups
from difflens.main import conf_folder

GROUPS = config_groups(conf_folder())


@cache
def _of_choices(*choices: str) -> DictConfig:
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        return compose("config", overrides=list(choices))


def composed(*overrides: str) -> DictConfig:
    """Choices of groups decide which files are read; values are set afterwards, by Hydra's own code for it."""
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    values = [each for each in parsed if each.key_or_group not in GROUPS and not each.is_hydra_override()]
    cfg = deepcopy(_of_choices(*(each.input_line for each in parsed if each not in values)))
    ConfigLoaderImpl._apply_overrides_to_config(values, cfg)
    return cfg
