"""Prompts of a text-to-image model: checks of a list, and what a tokenizer cuts off."""

import hashlib
import json
from collections.abc import Sequence
from typing import Any


def check_prompts(prompts: Sequence[Any], *, name: str = "prompts") -> tuple[str, ...]:
    """A list of prompts as read from a configuration.

    Args:
        prompts: distinct texts.
        name: what the list is called there.

    Raises:
        ValueError: the list is empty, holds something other than texts, a blank one or one twice.
    """
    if isinstance(prompts, str):
        raise ValueError(f"{name} must be a list of prompts, got the single text {prompts!r}: write [{prompts!r}].")
    if not prompts:
        raise ValueError(f"{name} is empty; name at least one prompt.")
    for prompt in prompts:
        if not isinstance(prompt, str) or not prompt.strip():
            raise ValueError(f"{name} must hold texts only, got {prompt!r}.")
    repeated = sorted({prompt for prompt in prompts if list(prompts).count(prompt) > 1})
    if repeated:
        raise ValueError(f"{name} repeats {', '.join(map(repr, repeated))}; name each prompt once.")
    return tuple(prompts)


def cut_off(prompt: str, tokenizer: Any) -> str:
    """The end of a prompt that a CLIP tokenizer's length leaves unread; empty if it is read whole."""
    tokens = tokenizer(prompt).input_ids
    unread = tokens[tokenizer.model_max_length - 1 : -1]
    return tokenizer.decode(unread).strip() if unread else ""


def vocabulary_fingerprint(tokenizer: Any) -> str:
    """SHA-256 (16 hex digits) of a tokenizer's vocabulary and length."""
    described = json.dumps([tokenizer.get_vocab(), tokenizer.model_max_length], sort_keys=True)
    return hashlib.sha256(described.encode()).hexdigest()[:16]
