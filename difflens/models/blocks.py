"""A denoiser's modules by name: blocks, and the module a site names."""

import difflib

from torch import nn

from difflens.vocabulary import Site


def find_module(denoiser: nn.Module, site: Site) -> nn.Module:
    """The module a site names.

    Raises:
        ValueError: the denoiser has no such module; the message names the nearest ones.
    """
    modules = dict(denoiser.named_modules())
    if site.module in modules and site.module:
        return modules[site.module]
    near = difflib.get_close_matches(site.module, modules, n=3, cutoff=0.3) if site.module else []
    hint = f"did you mean {', '.join(near)}?" if near else f"its blocks are {', '.join(top_blocks(denoiser))}."
    raise ValueError(f"the denoiser has no module {site.module!r}; {hint}")


def top_blocks(denoiser: nn.Module) -> list[str]:
    """Dotted names of the U-Net's blocks: `down_blocks.0` …, `mid_block`, `up_blocks.0` …."""
    names = [f"down_blocks.{i}" for i in range(len(getattr(denoiser, "down_blocks", ())))]
    names += ["mid_block"] if getattr(denoiser, "mid_block", None) is not None else []
    return names + [f"up_blocks.{i}" for i in range(len(getattr(denoiser, "up_blocks", ())))]


def inside(module: str, block: str) -> bool:
    """Whether a module is the block or lies in it."""
    return module == block or module.startswith(f"{block}.")
