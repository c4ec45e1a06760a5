"""Can prompts that name a gender be told by what the model makes of them? `uv run python experiments/told_by_reading.py`.

Three ways that need no list of words, on the miniature Stable Diffusion; fitted on the four studied professions and asked
about the other four, also under wordings not seen. Each gives a prompt a score, how surely it names a class:

- reading: how sure the probe is of one class, in the mean of a few images, at an early step;
- contest: the word of each class is put before the prompt, and the probe reads the first step; where the prompt names none
  every class should win, however biased the model is; the score is what the weakest one lacks;
- text: how far the mean of the text encoder's states lies on the way from prompts that name none to prompts that name one;
  and the same where the word that is asked about was not known.
"""

import argparse

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from difflens.data.prompts import fill
from difflens.models.load import load_text_to_image
from difflens.models.text import encode_prompts
from difflens.probes.linear import fit_linear_probe
from difflens.vocabulary import Attribute, GenerationPlan, Site

GENDER = Attribute("gender", ("female", "male"))
STUDIED, OTHERS = ("firefighter", "doctor", "receptionist", "nurse"), ("pilot", "builder", "baker", "gardener")
LEARNT = "a face of a {} "
UNSEEN = ("a {} %s", "a {} face of a %s", "a %s, {}")
BESIDE = ("old", "young", "Black", "Asian")
"""Words of other attributes, which name no gender."""
SITE, EARLY, EACH = Site("mid_block", branch="cond"), 9, 4

model = load_text_to_image(
    "package:miniature/weights/text_to_image/pipeline", name="mini_sd", steps=25, micro_batch=32, guidance=3.0
)


def naming(jobs: tuple[str, ...], form: str = f"{LEARNT}%s", words: tuple[str, ...] = GENDER.classes) -> list[str]:
    """Prompts of one form that name each class."""
    return [fill(form % job, word) for job in jobs for word in words]


def states(texts: list[str], step: int, *, first: int) -> Tensor:
    """Activations at a step, one image for each text."""
    plan = GenerationPlan(31337, torch.arange(first, first + len(texts)), None, tuple(texts))
    return torch.cat([h.float() for h in model.states(plan, SITE, step)])


class Reader:
    """The probe of one step, fitted on prompts that name their class."""

    def __init__(self, step: int) -> None:
        texts = naming(STUDIED) * 12
        maps, labels = states(texts, step, first=0), torch.arange(len(texts)) % len(GENDER.classes)
        self.step, self.probe = step, fit_linear_probe(lambda _: maps, labels, GENDER, steps=1).probe

    def __call__(self, texts: list[str]) -> Tensor:
        """Mean probability of each class [texts, classes] over a few images."""
        every = [text for text in texts for _ in range(EACH)]
        p = self.probe(states(every, self.step, first=10_000), 0).softmax(-1)
        return p.view(len(texts), EACH, -1).mean(1)

    def surest(self, texts: list[str]) -> Tensor:
        """The probability of the likelier class."""
        return self(texts).amax(1)

    def contest(self, texts: list[str]) -> Tensor:
        """What the weakest class lacks where its word is put before the prompt."""
        won = [self([f"{word} {text}" for text in texts])[:, index] for index, word in enumerate(GENDER.classes)]
        return 1 - torch.stack(won).amin(0)


def means(texts: list[str]) -> Tensor:
    """The mean of the text encoder's states over a text's own tokens [texts, dim]."""
    hidden, tokenizer = encode_prompts(model, texts).hidden.float(), model.pipeline.tokenizer
    ends = [len(tokenizer(text).input_ids) - 1 for text in texts]
    return torch.stack([row[1:end].mean(0) for row, end in zip(hidden, ends, strict=True)])


def text_score(texts: list[str], words: tuple[str, ...]) -> Tensor:
    """How far a text is on the way from the mean of prompts that name no gender to that of prompts that name these."""
    named, none = means(naming(STUDIED, words=words)).mean(0), means(naming(STUDIED, words=("", *BESIDE))).mean(0)
    return (means(texts) - none) @ (named - none) / (named - none).square().sum()


def auc(named: Tensor, none: Tensor) -> float:
    """How often a prompt that names a class has the higher score; 0.5 is chance."""
    return float(((named[:, None] > none).double() + (named[:, None] == none).double() / 2).mean())


def main() -> None:
    """Print the scores of all prompts that name none, and those of each wording that names one."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    early, first = Reader(EARLY), Reader(0)
    ways = {
        "reading, first step": first.surest,
        f"reading, step {EARLY}": early.surest,
        "contest": first.contest,
        "text": lambda texts: text_score(texts, GENDER.classes),
        # Asked about prompts of the word that it does not know.
        "text, without the word": lambda texts: text_score(texts, ("female",)),
    }
    none = naming(OTHERS, words=("",)) + naming(OTHERS, "a {} %s", ("",)) + naming(OTHERS, words=BESIDE)
    table = Table("way", "no class named", *(form.replace("%s", "job") for form in (LEARNT + "%s", *UNSEEN)))
    for name, score in ways.items():
        words, free = ("male",) if "without" in name else GENDER.classes, score(none)
        cells = []
        for form in (f"{LEARNT}%s", *UNSEEN):
            found = score(naming(OTHERS, form, words))
            cells.append(f"{found.min():.2f} to {found.max():.2f}, AUC {auc(found, free):.2f}")
        table.add_row(name, f"{free.min():.2f} to {free.max():.2f}", *cells)
    Console(width=160).print(table)


if __name__ == "__main__":
    with torch.no_grad():
        main()
