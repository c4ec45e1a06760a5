"""difflens: dissect, locate and control the social biases of diffusion models.

`load_sae` and `load_features` read what a run found, `steer` edits any supported diffusers pipeline with it, and
`fairness_discrepancy` measures tensors. They are imported when first used: `import difflens` imports no torch.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"
__all__ = ["fairness_discrepancy", "load_features", "load_sae", "steer"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'difflens' has no attribute {name!r}")
    return getattr(import_module("difflens.api"), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
