"""Naming the class in the prompt: `a face of a female doctor` in the place of `a face of a doctor`.

The baseline that needs nothing but words; images get their classes by quota, as for every other method.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from torch import Tensor

from difflens.data.prompts import fill
from difflens.methods.base import Given, Method, Steering, Window
from difflens.models.base import Batch
from difflens.models.model import DiffusionModel
from difflens.vocabulary import Attribute


class PromptIntervention(Method):
    """Gives every image the prompt that names its class. It acts fully or not at all."""

    dial = False
    at_site = False

    def edit(self, given: Given, learnt: Mapping[str, Tensor]) -> "PromptEdit":
        """See `Method.edit`.

        Raises:
            ValueError: the model takes no prompts.
        """
        return PromptEdit(given.attribute, named_prompts(given))


def named_prompts(given: Given) -> dict[str, tuple[str, ...]]:
    """Prompt → the same naming each class [C], of all prompts of the study.

    Raises:
        ValueError: the model takes no prompts.
    """
    if not given.prompts:
        raise ValueError("this method names classes in prompts, and the model takes none; choose another mitigation.")
    # Unseen prompts too: their images are evaluated and edited as well.
    found = {
        fill(prompt): tuple(fill(prompt, word) for word in given.words) for prompt in (*given.prompts, *given.unseen)
    }
    for prompt in given.naming:
        # Pushed without a gate, a prompt that names a class is given the word of another in its place.
        each = tuple(fill(prompt, word) for word in given.words)
        found |= dict.fromkeys(each, each)
    # Nobody knows where a sentence without a slot would name a class: it stays.
    return found | {text: (text,) * len(given.words) for text in given.worded}


def texts_of(named: Mapping[str, Sequence[str]], batch: Batch) -> list[str]:
    """The prompt of each image of a call, naming the class of those that have one.

    Raises:
        ValueError: an image to be changed has a prompt that is none of the study's.
    """
    assert batch.prompts is not None
    texts = []
    for prompt, target in zip(batch.prompts, batch.images.target.tolist(), strict=True):
        if target >= 0 and prompt not in named:
            raise ValueError(f"{prompt!r} is no prompt of the study, so that nobody knows how it names a class.")
        texts.append(named[prompt][target] if target >= 0 else prompt)
    return texts


class PromptEdit(Steering):
    """Exchanges the prompts of a call before it is made; `named`: neutral prompt → the same naming each class [C]."""

    # It must know a call's prompts before the call is made, so it cannot act inside one that a user makes.
    before_call = True

    def __init__(self, attribute: Attribute, named: Mapping[str, Sequence[str]]) -> None:
        super().__init__(attribute, window=Window())
        self.named = dict(named)

    @contextmanager
    def attach(self, model: DiffusionModel, batch: Batch) -> Iterator[None]:
        """See `Steering.attach`."""
        batch.prompts = texts_of(self.named, batch)
        yield
