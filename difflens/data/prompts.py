"""Prompts with a slot for a word: left empty they are neutral, filled they name a class."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from difflens.vocabulary import UNNAMED, Attribute, GenerationPlan

SLOT = "{}"
SUBJECT = "{subject}"


@dataclass(frozen=True)
class PromptSet:
    """The prompts of a study, such as `a face of a {} doctor`.

    Args:
        studied: prompts that features are located, calibrated and evaluated on.
        unseen: prompts for evaluation alone.
        subject: an attribute of which each prompt names one class, such as its profession, to see whether it is obeyed.
        labels: `prompt` trains the probe on images whose prompt names their class, `judge` on all images as judged.
        gate: whether images of prompts that name a class of the attribute (see `naming.Naming`) are never pushed.
        naming: prompts whose slot a class's word fills, to see whether named classes are obeyed with a method attached.
        worded: attribute → class → further prompts for that, which name the class in whatever words.

    Raises:
        ValueError: a list repeats itself or the other, holds a prompt without exactly one slot, or `studied` is empty.
    """

    studied: Sequence[str]
    unseen: Sequence[str] = field(default_factory=tuple)
    subject: str | None = None
    labels: str = "prompt"
    gate: bool = True
    naming: Sequence[str] = field(default_factory=tuple)
    worded: Mapping[str, Mapping[str, Sequence[str]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_prompts(self.studied, name="prompt.studied")
        everything = check_prompts([*self.studied, *self.unseen], name="prompt.studied and prompt.unseen together")
        # These may be studied too: with a word in its slot a prompt is another one.
        naming = check_prompts(self.naming, name="prompt.naming") if self.naming else ()
        for prompt in (*everything, *naming):
            if prompt.count(SLOT) != 1:
                raise ValueError(f"a prompt needs exactly one slot {SLOT} for a class's word, got {prompt!r}.")
        if self.labels not in ("prompt", "judge"):
            raise ValueError(f"prompt.labels must be prompt or judge, got {self.labels!r}.")

    def named(self, attribute: Attribute, words: Sequence[str]) -> dict[str, int]:
        """Prompt → the class it names, of all prompts that are to show whether named classes are obeyed.

        Args:
            attribute: whose classes are named.
            words: how prompts name each class [C].

        Raises:
            ValueError: `worded` names a class that the attribute does not have.
        """
        found = {fill(prompt, word): index for prompt in self.naming for index, word in enumerate(words)}
        worded = self.worded.get(attribute.name) or {}
        return found | {text: attribute.index(name) for name, texts in worded.items() for text in texts}

    def sentences(self, attribute: str) -> tuple[str, ...]:
        """All prompts of `worded` for an attribute."""
        return tuple(text for texts in (self.worded.get(attribute) or {}).values() for text in texts)


def crossed(
    *,
    templates: Sequence[str],
    studied: Sequence[str],
    unseen: Sequence[str] = (),
    naming: Sequence[str] = (),
    worded: Mapping[str, Mapping[str, Sequence[str]]] | None = None,
    labels: str = "prompt",
    gate: bool = True,
) -> PromptSet:
    """The prompts of all templates with all subjects, such as `a photo of a {} {subject}` with `doctor` and `nurse`.

    `studied` and `unseen` are the subjects of such prompts; all else is as in `PromptSet`.

    Raises:
        ValueError: a template has not exactly one place for the subject; and as `PromptSet` does.
    """
    for template in check_prompts(templates, name="prompt.templates"):
        if template.count(SUBJECT) != 1:
            raise ValueError(f"a template needs exactly one {SUBJECT}, got {template!r}.")

    def every(subjects: Sequence[str]) -> list[str]:
        return [template.replace(SUBJECT, subject) for subject in subjects for template in templates]

    return PromptSet(every(studied), every(unseen), labels=labels, gate=gate, naming=naming, worded=worded or {})


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
    return repeated_plan([fill(prompt) for prompt in prompts], images, base_seed=base_seed, first_id=first_id)


def repeated_plan(texts: Sequence[str], images: int, *, base_seed: int, first_id: int) -> GenerationPlan:
    """`images` images of every text, text by text."""
    every = tuple(text for text in texts for _ in range(images))
    return GenerationPlan(base_seed, torch.arange(first_id, first_id + len(every)), None, every)


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
