"""Reading and editing activations by hooks that live inside a context manager, on an unmodified denoiser."""

import difflib
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from difflens.types import Site

Read = Callable[[int, Tensor], None]
Change = Callable[[Tensor, int], Tensor | None]


def find_module(denoiser: nn.Module, site: Site) -> nn.Module:
    """The module a site names.

    Raises:
        ValueError: the denoiser has no such module; the message names the nearest ones.
    """
    modules = dict(denoiser.named_modules())
    if site.module in modules and site.module:
        return modules[site.module]
    near = difflib.get_close_matches(site.module, modules, n=3, cutoff=0.3)
    hint = f"did you mean {', '.join(near)}?" if near else f"its blocks are {', '.join(top_blocks(denoiser))}."
    raise ValueError(f"the denoiser has no module {site.module!r}; {hint}")


def top_blocks(denoiser: nn.Module) -> list[str]:
    """Dotted names of the U-Net's blocks: `down_blocks.0` …, `mid_block`, `up_blocks.0` …."""
    names = [f"down_blocks.{i}" for i in range(len(getattr(denoiser, "down_blocks", ())))]
    names += ["mid_block"] if getattr(denoiser, "mid_block", None) is not None else []
    return names + [f"up_blocks.{i}" for i in range(len(getattr(denoiser, "up_blocks", ())))]


class SiteHooks:
    """Hooks on one site of a denoiser for the length of a `with` block.

    With `fork`, the batch grows at the site by one edited copy of each row in `rows`, so that everything before the site
    is computed once and serves both the unedited and the edited estimate; the denoiser's output then has
    batch + len(rows) rows. Without it the edited activations replace the originals.

    Args:
        denoiser: called as `denoiser(sample, timestep, …)`.
        site: where to read and edit.
        timesteps: the sampling grid; the step index is looked up in it, never counted.
        read: called with (step, activations of `rows`).
        change: maps (activations of `rows`, step) to edited ones, or None where the step is not edited.
        fork: keep the unedited rows and append the edited ones.
        rows: which rows of the batch the site's branch holds.

    Raises:
        ValueError: the site does not exist.
        RuntimeError: on leaving, if the hook did not fire exactly once per denoiser call.
    """

    def __init__(
        self,
        denoiser: nn.Module,
        site: Site,
        *,
        timesteps: Sequence[int],
        read: Read | None = None,
        change: Change | None = None,
        fork: bool = False,
        rows: slice = slice(None),
    ) -> None:
        self.denoiser, self.site, self.module = denoiser, site, find_module(denoiser, site)
        self._step_of = {int(t): step for step, t in enumerate(timesteps)}
        self._read, self._change, self._fork, self._rows = read, change, fork, rows
        self._handles: list[torch.utils.hooks.RemovableHandle] = []
        self._step, self._batch, self._forked = -1, -1, False
        self._input: Tensor | None = None
        self.calls = self.fired = 0

    def __enter__(self) -> "SiteHooks":
        add = self._handles.append
        add(self.denoiser.register_forward_pre_hook(self._begin, with_kwargs=True))
        block = next((name for name in top_blocks(self.denoiser) if _inside(self.site.module, name)), None)
        self._fork_on_entry = not (block == self.site.module and self.site.tensor != "input")
        for name in top_blocks(self.denoiser):
            hook = self._enter_forking_block if name == block and self._fork_on_entry else self._follow_fork
            add(self.denoiser.get_submodule(name).register_forward_pre_hook(hook, with_kwargs=True))
        if self.site.tensor == "input":
            add(self.module.register_forward_pre_hook(self._at_input))
        else:
            if self.site.tensor == "update":
                add(self.module.register_forward_pre_hook(self._keep_input))
            add(self.module.register_forward_hook(self._at_output))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        if kind is None and self.fired != self.calls:
            raise RuntimeError(
                f"the hook at {self.site.module!r} fired {self.fired} times in {self.calls} denoiser calls; "
                "a compiled or replaced module ignores hooks: pass the plain model."
            )

    def _begin(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        sample = args[0] if args else kwargs["sample"]
        timestep = args[1] if len(args) > 1 else kwargs["timestep"]
        t = int(timestep.flatten()[0]) if isinstance(timestep, Tensor) else int(timestep)
        if t not in self._step_of:
            raise ValueError(
                f"the denoiser was called at timestep {t}, which is not on the grid {sorted(self._step_of)}."
            )
        self._step, self._batch, self._forked = self._step_of[t], len(sample), False
        self.calls += 1

    def _edited(self, value: Tensor) -> Tensor | None:
        """The edited activations of the branch's rows, or None where this step is not edited."""
        self.fired += 1
        rows = value[: self._batch][self._rows]
        if self._read is not None:
            self._read(self._step, rows)
        return None if self._change is None else self._change(rows, self._step)

    def _merge(self, h: Tensor, edited: Tensor) -> Tensor:
        """Append the edited rows where the batch forks, put them in place of the originals where it does not."""
        if self._fork:
            self._forked = True
            return torch.cat([h[: self._batch], edited])
        if self._rows == slice(None):
            return edited
        h = h.clone()
        h[self._rows] = edited
        return h

    def _keep_input(self, _: nn.Module, args: tuple[Any, ...]) -> None:
        self._input = args[0]

    def _at_output(self, _: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        h = output[0] if isinstance(output, tuple) else output
        if self.site.tensor == "update":
            assert self._input is not None
            update = h - self._input
            edited = self._edited(update)
            if edited is not None:
                # The change is added to h itself, so that a neutral edit returns it bit for bit.
                edited = h[: self._batch][self._rows] + (edited - update[: self._batch][self._rows])
        else:
            edited = self._edited(h)
        if edited is None:
            return None
        result = self._merge(h, edited)
        return (result, *output[1:]) if isinstance(output, tuple) else result

    def _at_input(self, _: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        edited = self._edited(args[0])
        return None if edited is None else (self._merge(args[0], edited), *args[1:])

    def _enter_forking_block(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Grow the batch where the block holding an inner site begins; the site then edits the appended rows."""
        if not self._fork or self._change is None:
            return None
        self._forked = True
        return self._grow_all(args), self._grow_all(kwargs)

    def _follow_fork(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Give the appended rows their own copy of whatever else a later block takes: skips, time and text embeddings."""
        return (self._grow_all(args), self._grow_all(kwargs)) if self._forked else None

    def _grow_all(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return torch.cat([value, value[self._rows]]) if value.ndim > 1 and len(value) == self._batch else value
        if isinstance(value, tuple | list):
            return type(value)(self._grow_all(item) for item in value)
        if isinstance(value, Mapping):
            return {key: self._grow_all(item) for key, item in value.items()}
        return value


def _inside(module: str, block: str) -> bool:
    return module == block or module.startswith(f"{block}.")
