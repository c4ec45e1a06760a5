"""Prompts as a pipeline encodes them, and a hook that exchanges them step by step while it samples."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from difflens.models.model import DiffusionModel
from difflens.models.taps import in_turn


class TextStates(NamedTuple):
    """What the denoiser is given of prompts: states [n, tokens, dim], and pooled ones [n, dim] where it takes those."""

    hidden: Float[Tensor, "prompts tokens dim"]
    pooled: Float[Tensor, "prompts pooled_dim"] | None

    def take(self, rows: Tensor) -> "TextStates":
        """Those of the prompts at these positions."""
        return TextStates(self.hidden[rows], None if self.pooled is None else self.pooled[rows])


@torch.no_grad()
def encode_prompts(model: DiffusionModel, prompts: Sequence[str]) -> TextStates:
    """The prompts as the pipeline itself encodes them for its conditional branch, without any image.

    Raises:
        ValueError: the pipeline encodes prompts in a way that is not known.
    """
    encode = getattr(model.pipeline, "encode_prompt", None)
    if encode is None:
        raise ValueError(f"{model.name} encodes no prompts; this method needs a text-to-image model.")
    found = encode(
        prompt=list(prompts), device=model.device, num_images_per_prompt=1, do_classifier_free_guidance=False
    )
    # SD gives (cond, uncond), SDXL also the pooled states of both.
    if not isinstance(found, tuple) or len(found) not in (2, 4):
        raise ValueError(
            f"{type(model.pipeline).__name__} encodes prompts in a way of its own, which is not known here."
        )
    return TextStates(found[0], found[2] if len(found) == 4 else None)


Exchange = Callable[[int, TextStates], TextStates | None]
"""(step, the conditional branch's states) → those that take their place, None where they stay."""


@contextmanager
def exchanged_text(model: DiffusionModel, images: int, exchange: Exchange) -> Iterator[None]:
    """Inside the block the denoiser's conditional rows are given other text states at the steps that `exchange` names.

    It is called once for every denoiser call that holds the conditional branch, of `images` rows.
    """
    place = in_turn(model, images)

    def before(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        step, rows = place(args, kwargs)
        if rows is None:
            return None
        hidden = args[2] if len(args) > 2 else kwargs["encoder_hidden_states"]
        added = kwargs.get("added_cond_kwargs") or {}
        pooled = added.get("text_embeds")
        own = TextStates(hidden[rows], None if pooled is None else pooled[rows])
        other = exchange(step, own)
        if other is None:
            return None
        # In copies, since the pipeline gives the same tensors at every step.
        hidden = hidden.clone()
        hidden[rows] = other.hidden.to(hidden)
        if pooled is not None and other.pooled is not None:
            pooled = pooled.clone()
            pooled[rows] = other.pooled.to(pooled)
            kwargs = {**kwargs, "added_cond_kwargs": {**added, "text_embeds": pooled}}
        if len(args) > 2:
            return (*args[:2], hidden, *args[3:]), kwargs
        return args, {**kwargs, "encoder_hidden_states": hidden}

    handle = model.unet.register_forward_pre_hook(before, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()
