"""Prompts with a slot for a word: left empty they are neutral, filled they name a class."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from difflens.vocabulary import UNNAMED, GenerationPlan

SLOT = "{}"


@dataclass(frozen=True)
class PromptSet:
    """The prompts of a study, such as `a face of a {} doctor`.

    Args:
        studied: prompts that features are located, calibrated and evaluated on.
        unseen: prompts for evaluation alone.
        subject: an attribute of which each prompt names one class, such as its profession, to see whether it is obeyed.
        labels: `prompt` trains the probe on images whose prompt names their class, `judge` on all images as judged.

    Raises:
        ValueError: a list repeats itself or the other, holds a prompt without exactly one slot, or `studied` is empty.
    """

    studied: Sequence[str]
    unseen: Sequence[str] = field(default_factory=tuple)
    subject: str | None = None
    labels: str = "prompt"

    def __post_init__(self) -> None:
        check_prompts(self.studied, name="prompt.studied")
        everything = check_prompts([*self.studied, *self.unseen], name="prompt.studied and prompt.unseen together")
        for prompt in everything:
            if prompt.count(SLOT) != 1:
                raise ValueError(f"a prompt needs exactly one slot {SLOT} for a class's word, got {prompt!r}.")
        if self.labels not in ("prompt", "judge"):
            raise ValueError(f"prompt.labels must be prompt or judge, got {self.labels!r}.")


def check_prompts(prompts: Sequence[Any], *, name: str = "prompts") -> tuple[str, ...]:
    """A list of distinct prompts as read from a configuration, where it is called `name`.

    Raises:
        ValueError: the list is empty, holds something other than texts, a blank one or one twice.
    """
    # A text is a sequence too: each of its letters would pass for a prompt.
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


def fill(prompt: str, word: str = "") -> str:
    """The prompt with a word in its slot, or with none; an article just before the slot suits what follows it."""
    before, after = prompt.split(SLOT)
    rest = f"{word}{after}" if word else after.lstrip()
    # A tuple: where nothing follows the slot, the empty text is part of every string.
    article = "an" if rest[:1].lower() in tuple("aeiou") else "a"
    return re.sub(r"\b(a)n?(\s+)$", lambda m: article + m[2], before, flags=re.IGNORECASE) + rest


def neutral_plan(prompts: Sequence[str], images: int, *, base_seed: int, first_id: int = 0) -> GenerationPlan:
    """`images` images of every prompt with an empty slot, prompt by prompt."""
    texts = tuple(fill(prompt) for prompt in prompts for _ in range(images))
    return GenerationPlan(base_seed, torch.arange(first_id, first_id + len(texts)), None, texts)


def study_plan(
    prompts: PromptSet, words: Sequence[str], images: int, *, base_seed: int
) -> tuple[GenerationPlan, Int[Tensor, "images"]]:
    """A plan to learn from: half its images neutral, half naming a class, prompts and classes in turn.

    Returns:
        The plan, and the class named by each image's prompt, `UNNAMED` where none is.

    Raises:
        ValueError: there are too few images for every class of every prompt.
    """
    studied, classes = list(prompts.studied), len(words)
    neutral = images // 2
    if images - neutral < classes * len(studied):
        raise ValueError(
            f"data.images={images} is too few for {classes} classes of {len(studied)} prompts; "
            f"give at least {2 * classes * len(studied)}."
        )
    texts = [fill(studied[i % len(studied)]) for i in range(neutral)]
    named = torch.arange(images - neutral)
    labels = named % classes
    # Classes vary faster than prompts, so that every prompt names every class equally often.
    texts += [fill(studied[int(i) // classes % len(studied)], words[int(i) % classes]) for i in named]
    plan = GenerationPlan(base_seed, torch.arange(images), None, tuple(texts))
    return plan, torch.cat([torch.full((neutral,), UNNAMED), labels])
