"""Reading and editing activations by hooks that live inside a context manager, on an unmodified denoiser."""

import difflib
import inspect
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from types import TracebackType
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from difflens.models.guidance import stack_branches, unstack_branches
from difflens.vocabulary import Site

Read = Callable[[int, Tensor], None]
Change = Callable[[Tensor, int], Tensor | None]
Aside = Callable[[int, Tensor, Tensor], None]

_replayed: ContextVar["SiteHooks | object | None"] = ContextVar("replayed", default=None)
"""Whose block is run a second time in this thread, on edited rows; no other hook counts or changes that pass."""


@contextmanager
def unhooked() -> Iterator[None]:
    """Inside the block no hook of a site counts or changes a pass of its denoiser's `forward`."""
    # An object that is no hook, so that every hook stands aside.
    token = _replayed.set(object())
    try:
        yield
    finally:
        _replayed.reset(token)


class SiteReachedError(Exception):
    """Ends a forward pass at a site, behind which nothing is asked for."""


class SiteHooks:
    """Hooks on one site of a denoiser for the length of a `with` block.

    With `fork`, the batch grows at the site by one edited copy of each row in `rows`, so that everything before the site
    is computed once and serves both the unedited and the edited estimate; the denoiser's output then has
    batch + len(rows) rows.
    Later blocks run on the two parts in turn: on the unedited rows just as without an edit, and no skip is copied. Without it
    the edited activations replace the originals.

    Args:
        denoiser: called as `denoiser(sample, timestep, …)`.
        site: where to read and edit.
        timesteps: the sampling grid; the step index is looked up in it, never counted.
        numbers: the step that `read` and `change` are told at each of these; None for its place.
        read: called with (step, activations of `rows`), a map [n, D, H, W] whatever the module computes on (see `as_map`).
        change: maps (activations of `rows`, step) to edited ones, or None where the step is not edited; likewise.
        fork: keep the unedited rows and append the edited ones.
        rows: which rows of the batch the site's branch holds, for each denoiser call of a step in order; None where a
            call holds none of them. One entry serves every call.
        aside: called after each denoiser call with (its place in the step, the batch's rows of the output, the appended
            rows); the denoiser then returns the batch's rows alone.
        batch: rows that every denoiser call must have.
        stacked: `rows` are both branches, which `read` and `change` meet as one map per image (see `stack_branches`).

    Raises:
        ValueError: the site does not exist or gives no map, a timestep is off the grid, a call has another number of rows, or
            a fork is asked of a denoiser without the blocks of a U-Net.
        RuntimeError: on leaving, if the hook did not fire exactly once per denoiser call.
    """

    def __init__(
        self,
        denoiser: nn.Module,
        site: Site,
        *,
        timesteps: Sequence[float],
        numbers: Sequence[int] | None = None,
        read: Read | None = None,
        change: Change | None = None,
        fork: bool = False,
        rows: Sequence[slice | None] = (slice(None),),
        aside: Aside | None = None,
        batch: int | None = None,
        stacked: bool = False,
    ) -> None:
        self.denoiser, self.site, self.module = denoiser, site, find_module(denoiser, site)
        if fork and not top_blocks(denoiser):
            raise ValueError(f"{type(denoiser).__name__} is no U-Net: only update=symmetric can be made in it.")
        # Looked up, because pipelines skip the first steps, as img2img does, or call a timestep twice.
        self._step_of = dict(zip(map(float, timesteps), numbers or range(len(timesteps)), strict=True))
        self._read, self._change, self._fork, self._aside = read, change, fork, aside
        self._rows_of, self._expected, self._stacked = tuple(rows), batch, stacked
        self._handles: list[torch.utils.hooks.RemovableHandle] = []
        self._step, self._call, self._batch, self._forked = -1, 0, -1, False
        self._rows: slice | None = None
        self._size: tuple[int, ...] = ()
        self._pending: Tensor | None = None
        self._apart: tuple[Any, Any] | None = None
        # Compared with the dot, or `up_blocks.1` would also hold what lies in `up_blocks.10`.
        self._block = next((name for name in top_blocks(denoiser) if f"{site.module}.".startswith(f"{name}.")), None)
        self.calls = self.fired = 0

    def __enter__(self) -> "SiteHooks":
        add = self._handles.append
        # Modules are not told the timestep; only the denoiser's own call is.
        add(self.denoiser.register_forward_pre_hook(self._begin, with_kwargs=True))
        if self._fork:
            for block in map(self.denoiser.get_submodule, top_blocks(self.denoiser)):
                add(block.register_forward_pre_hook(self._set_apart, with_kwargs=True))
                add(block.register_forward_hook(self._append_apart))
        if self.site.tensor == "input":
            add(self.module.register_forward_pre_hook(self._at_input, with_kwargs=True))
        else:
            add(self.module.register_forward_hook(self._at_output, with_kwargs=True))
        if self._replays:
            block = self.denoiser.get_submodule(str(self._block))
            add(block.register_forward_hook(self._replay, with_kwargs=True))
        if self._aside is not None:
            add(self.denoiser.register_forward_hook(self._set_aside))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        # Not after an exception, which explains the missing call and would be hidden by this one.
        if kind is None and self.fired != self.calls:
            raise RuntimeError(
                f"the hook at {self.site.module!r} fired {self.fired} times in {self.calls} denoiser calls; "
                "a compiled or replaced module ignores hooks: pass the plain model."
            )

    @property
    def _replays(self) -> bool:
        """Whether the batch forks after the block that holds the site: a batch cannot grow in the middle of a block."""
        return self._fork and self._block is not None and self._block != self.site.module

    def _begin(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        # By signature: pipelines give these by place or by name, and transformers call the sample hidden_states.
        given = inspect.signature(self.denoiser.forward).bind(*args, **kwargs).arguments
        sample, timestep = next(iter(given.values())), given["timestep"]
        if sample.ndim != 4:
            raise ValueError(
                f"the denoiser was called with a tensor {list(sample.shape)}; only one with images [n, C, H, W] can be read."
            )
        if isinstance(timestep, Tensor) and timestep.numel() > 1 and len(timestep.unique()) > 1:
            raise ValueError(
                f"the denoiser was called at {len(timestep.unique())} timesteps at once, as pipelines that sample steps in "
                "parallel do (ParaDiGMS); sample step by step."
            )
        t = float(timestep.flatten()[0]) if isinstance(timestep, Tensor) else float(timestep)
        if t not in self._step_of:
            raise ValueError(
                f"the denoiser was called at timestep {t:g}, which is not on the grid {sorted(self._step_of)}."
            )
        if self._expected not in (None, len(sample)):
            raise ValueError(
                f"the denoiser was called with {len(sample)} rows where {self._expected} were expected; where a pipeline "
                "calls it once per guidance branch, name them in order: model.calls=[uncond,cond]."
            )
        step = self._step_of[t]
        # The same timestep again is the step's next branch, where a pipeline calls its denoiser once for each.
        self._call = (self._call + 1) % len(self._rows_of) if step == self._step else 0
        self._step, self._batch, self._forked, self._rows = step, len(sample), False, self._rows_of[self._call]
        self._size = tuple(sample.shape[2:])
        # A pass that an exception ended may have left rows behind.
        self._apart = None
        self.calls += self._rows is not None

    def _new_value(self, h: Tensor, before: Tensor | None = None) -> Tensor | None:
        """What takes the place of the site's activations, or None where they stay."""
        # The second pass over a block: the site that forked gives its edited activations, all others change nothing.
        if _replayed.get() is not None:
            return self._pending if _replayed.get() is self else None
        edited = None if self._rows is None else self._edited(self._own(h), before)
        if edited is None:
            return None
        # The batch cannot grow here: the block's residuals and embeddings have the old number of rows.
        if self._replays:
            self._pending = edited
            return None
        return self._merge(h, edited)

    def _own(self, value: Tensor) -> Tensor:
        """The branch's rows, none of those that a fork appended."""
        return value[: self._batch][self._rows]

    def _edited(self, h: Tensor, before: Tensor | None) -> Tensor | None:
        """The edited activations of the branch's rows, or None where this step is not edited; `before`: edit h − before."""
        self.fired += 1
        value = h if before is None else h - self._own(before)
        maps = as_map(value, self._size)
        maps = stack_branches(maps) if self._stacked else maps
        if self._read is not None:
            self._read(self._step, maps)
        if self._change is None:
            return None
        # The denoiser may run under autocast; codes, probes and what is written back keep the numbers they were trained in.
        with torch.autocast(maps.device.type, enabled=False):
            changed = self._change(maps, self._step)
        if changed is None:
            return None
        edited = from_map(unstack_branches(changed) if self._stacked else changed, like=value)
        # The change of an update is added to h itself, so that a neutral edit returns it bit for bit.
        return edited if before is None else h + (edited - value)

    def _merge(self, h: Tensor, edited: Tensor) -> Tensor:
        """Append the edited rows where the batch forks, put them in place of the originals where it does not."""
        if self._fork:
            self._forked = True
            return torch.cat([h[: self._batch], edited])
        if self._rows == slice(None):
            return edited
        # In a copy, since what a module returns may be its very input, which a residual connection still reads.
        h = h.clone()
        h[self._rows] = edited
        return h

    def _at_output(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        given = args[0] if args else kwargs.get("hidden_states")
        place = self._place(output, given) if isinstance(output, tuple) else None
        h = output if place is None else output[place]
        update = self.site.tensor == "update"
        if update and (given is None or given.shape != h.shape):
            raise ValueError(
                f"site {self.site.module!r} has no update: its input and output differ in shape; use output or input."
            )
        result = self._new_value(h, given if update else None)
        if result is None or place is None:
            return result
        return (*output[:place], result, *output[place + 1 :])

    def _place(self, output: tuple[Any, ...], given: Tensor | None) -> int:
        """Which of a module's outputs holds the images: the only tensor, or the one that has its input's shape.

        Blocks of transformers give image and text tokens, some the one first and some the other.
        """
        tensors = [place for place, value in enumerate(output) if isinstance(value, Tensor)]
        if len(tensors) > 1 and given is not None:
            tensors = [place for place in tensors if output[place].shape == given.shape]
        if len(tensors) != 1:
            raise ValueError(f"site {self.site.module!r} gives several tensors; nobody knows which holds the images.")
        return tensors[0]

    def _at_input(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        result = self._new_value(args[0] if args else kwargs["hidden_states"])
        if result is None:
            return None
        # The batch grew at this input: whatever else the module is given needs the same rows.
        if self._forked:
            args, kwargs = map_rows((args, kwargs), self._batch, lambda rows: torch.cat([rows, rows[self._rows]]))
        return ((result, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": result})

    def _replay(self, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        """Run the block that holds the site once more, for the edited rows alone, and append what they give."""
        if self._pending is None:
            return None
        self._apart, self._forked = self._picked((args, kwargs)), True
        return self._append_apart(block, args, output)

    def _set_apart(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Let a later block run on the batch's own rows, as it would unedited, and keep the appended ones for a run after it.

        The appended rows take their own copy of whatever else the block is given: skips, time and text embeddings.
        """
        if not self._forked or _replayed.get() is not None:
            return None
        assert self._rows is not None
        grown = self._batch + len(range(self._batch)[self._rows])
        self._apart = map_rows(self._picked((args, kwargs)), grown, lambda rows: rows[self._batch :])
        return map_rows((args, kwargs), grown, lambda rows: rows[: self._batch])

    def _append_apart(self, block: nn.Module, _: tuple[Any, ...], output: Any) -> Any:
        """Run the block on the rows set apart, and append what they give."""
        if self._apart is None:
            return None
        (args, kwargs), self._apart = self._apart, None
        token = _replayed.set(self)
        try:
            # By forward: the block's own hooks would run it once more, and that run again.
            edited = block.forward(*args, **kwargs)
        finally:
            _replayed.reset(token)
            self._pending = None
        return append_rows(output, edited)

    def _set_aside(self, _: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        value = output[0]
        assert self._aside is not None
        self._aside(self._call, value[: self._batch], value[self._batch :])
        kept = value[: self._batch]
        # In the form that the pipeline asked for by return_dict.
        return (kept, *output[1:]) if isinstance(output, tuple) else type(output)(sample=kept)

    def _picked(self, value: Any) -> Any:
        return map_rows(value, self._batch, lambda rows: rows[self._rows])


def find_module(denoiser: nn.Module, site: Site) -> nn.Module:
    """The module a site names (ValueError: the denoiser has no such module; the message names the nearest ones)."""
    modules = dict(denoiser.named_modules())
    # named_modules gives the denoiser itself the empty name.
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


def readable_modules(denoiser: nn.Module) -> list[str]:
    """Dotted names of a denoiser's places in the order in which it computes them: after every layer of every block.

    In a U-Net a layer ends with its attention where it has one; transformers have one place per block.

    Raises:
        ValueError: it is neither.
    """
    found = []
    for block in top_blocks(denoiser):
        parts = denoiser.get_submodule(block)
        resnets, attentions = (getattr(parts, name, None) or () for name in ("resnets", "attentions"))
        # The middle block is one place: its layers do not follow each other like those of the others.
        layers = [] if block == "mid_block" else range(len(resnets))
        kinds = ["attentions" if i < len(attentions) and attentions[i] is not None else "resnets" for i in layers]
        found += [f"{block}.{kind}.{i}" for i, kind in zip(layers, kinds, strict=True)] or [block]
    found = found or [name for name, _ in denoiser.named_modules() if re.fullmatch(r"(\w*blocks)\.\d+", name)]
    if not found:
        raise ValueError(f"{type(denoiser).__name__} has no blocks that could be read in turn.")
    return found


def map_rows(value: Any, batch: int, change: Callable[[Tensor], Tensor]) -> Any:
    """A nested value with every tensor changed that has one row per image of the batch."""
    if isinstance(value, Tensor):
        return change(value) if value.ndim > 1 and len(value) == batch else value
    if isinstance(value, tuple | list):
        return type(value)(map_rows(item, batch, change) for item in value)
    if isinstance(value, Mapping):
        return {key: map_rows(item, batch, change) for key, item in value.items()}
    return value


def append_rows(output: Any, more: Any) -> Any:
    """The rows of two equally nested outputs, one after the other."""
    if isinstance(output, Tensor):
        return torch.cat([output, more])
    return type(output)(append_rows(one, other) for one, other in zip(output, more, strict=True))


def as_map(h: Tensor, size: Sequence[int]) -> Float[Tensor, "images channels height width"]:
    """What a module of a denoiser computes on as a map; tokens [n, T, C] are laid out as the image they stand for.

    Tokens are those, row by row, of a map `size`/k for a whole k, rounded up as strided convolutions do, where `size` is
    (height, width) of the denoiser's input.

    Raises:
        ValueError: it is neither a map nor the tokens of one.
    """
    if h.ndim == 4:
        return h
    if h.ndim == 3:
        # The number of tokens alone does not tell height from width; with the shape of the input it does.
        for k in range(1, max(size) + 1):
            height, width = math.ceil(size[0] / k), math.ceil(size[1] / k)
            if height * width == h.shape[1]:
                return h.transpose(1, 2).unflatten(2, (height, width))
    raise ValueError(
        f"activations of shape {tuple(h.shape)} are not a map [n, D, H, W], nor tokens [n, T, D] of a map of the "
        f"denoiser's input of {size[0]}×{size[1]}; name another site.module."
    )


def from_map(maps: Float[Tensor, "images channels height width"], *, like: Tensor) -> Tensor:
    """The inverse of `as_map`, as a tensor like the one that it was given."""
    return maps if like.ndim == 4 else maps.flatten(2).transpose(1, 2)
