"""What a configuration leaves open by the word `auto`: the site and the window of an edit, which `task=localise` finds."""

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

from omegaconf import DictConfig, OmegaConf

AUTO = "auto"

MEANWHILE: Mapping[str, Mapping[str, Any]] = {
    "data.site": {"_target_": "difflens.vocabulary.Site", "module": "mid_block", "tensor": "output", "branch": "none"},
    "mitigation.window": {"_target_": "difflens.methods.base.Window", "start": 0.0, "stop": 1.0},
}
"""What may be left open, and what stands there until it is found, so that all else can be checked at once."""

WITHOUT_A_SITE = frozenset(
    ("aggregate", "audit", "convert", "dashboard", "doctor", "evaluate", "localise", "miniature")
)
"""Tasks that edit at no configured site: nothing is found for them."""


def left_open(cfg: DictConfig) -> tuple[DictConfig, frozenset[str]]:
    """A configuration that resolves, with a value wherever it says `auto`, and the keys that do."""
    asked = frozenset(key for key in MEANWHILE if OmegaConf.select(cfg, key) == AUTO)
    if asked:
        cfg = deepcopy(cfg)
        for key in asked:
            OmegaConf.update(cfg, key, dict(MEANWHILE[key]), force_add=True)
    return cfg, asked
