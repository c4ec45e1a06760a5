"""Which prompts name a class of an attribute, told by words: `a face of a female doctor` does, `a face of a doctor` does not.

Words are compared whole and without regard to case: `woman` holds no `man`, and neither does `man-made`, since a word with
a hyphen is another word. In doubt a prompt names a class: one that is left alone stays as the model has it, one that is
pushed away from what it asks for is wrong.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

OTHER = "other"
"""Key of the words that name a class which is not studied, such as `Latino`: no class studied may be pushed on it."""

WORD = re.compile(r"[^\W\d_]+(?:[-'’][^\W\d_]+)*|[^\w\s]")
"""A word with its hyphens, or a punctuation mark. Numbers are left out, so that `70-year-old` reads `year-old`."""

ENDS_A_NOUN = re.compile(
    r"\W?|\w+(?:ing|ed)|and|or|but|with|without|in|on|at|of|by|from|for|to|into|over|under|behind|beside|before|near|is|are|was|were|"
    r"that|which|who|while|as|a|an|the|his|her|their"
)
"""What may stand behind a noun phrase: a punctuation mark, a word of this list, `standing`, `parked`, or a blanked word."""


@dataclass(frozen=True)
class Naming:
    """The words by which prompts name an attribute's classes.

    Args:
        words: class, or `OTHER`, → the words or phrases that name it; plurals in -s and -es are understood.
        phrases: phrases in which these words name nobody's class, such as `black and white`.
        followed_by: nouns before which they do not, such as the `coat` of `white coat`.
        parts: of a product of attributes, which names a class where one of them does.
    """

    words: Mapping[str, Sequence[str]] = field(default_factory=dict)
    phrases: Sequence[str] = ()
    followed_by: Sequence[str] = ()
    parts: Sequence["Naming"] = ()

    def named(self, prompt: str) -> tuple[str, ...]:
        """The classes that a prompt names, in their order."""
        said = self._without_phrases(split(prompt))
        found = {name for start in range(len(said)) for name in self._at(said, start)}
        own = [name for name in self.words if name in found]
        return tuple(dict.fromkeys([*own, *(name for part in self.parts for name in part.named(prompt))]))

    def _without_phrases(self, said: list[str]) -> list[str]:
        for phrase in self._phrases:
            for start in range(len(said) - len(phrase) + 1):
                if matches(said[start : start + len(phrase)], phrase):
                    # Blanked and not cut out: what stood apart must not come to stand beside each other.
                    said = [*said[:start], *[""] * len(phrase), *said[start + len(phrase) :]]
        return said

    def _at(self, said: list[str], start: int) -> list[str]:
        """The classes whose word begins here and is said of a person."""
        found = []
        for name, phrases in self._named.items():
            ends = [start + len(phrase) for phrase in phrases if matches(said[start : start + len(phrase)], phrase)]
            if any(not self._of_a_thing(said, end) for end in ends):
                found.append(name)
        return found

    def _of_a_thing(self, said: list[str], end: int) -> bool:
        # Of `white and blue coat` all colours are the coat's.
        while end + 1 < len(said) and said[end] in ("and", "or"):
            end += 2
        first = end
        while end < len(said) and any(matches([said[end]], [thing]) for thing in self._things):
            end += 1
        # A noun of no thing behind it is what is spoken of: `white truck` is a truck, `white truck driver` a driver.
        return end > first and (end == len(said) or ENDS_A_NOUN.fullmatch(said[end]) is not None)

    @cached_property
    def _named(self) -> dict[str, list[list[str]]]:
        return {name: [split(word) for word in words] for name, words in self.words.items()}

    @cached_property
    def _phrases(self) -> list[list[str]]:
        return [split(phrase) for phrase in self.phrases]

    @cached_property
    def _things(self) -> list[str]:
        return [thing.lower() for thing in self.followed_by]


def read_naming(described: Mapping[str, Any]) -> Naming:
    """The words by which prompts name a class of the attribute of a file, or of one of the parts of a product."""
    if "parts" in described:
        return Naming(parts=[read_naming(part) for part in described["parts"].values()])
    synonyms, words = described.get("synonyms") or {}, described.get("words") or {}
    names = [*described["classes"], OTHER]
    lists = {name: [*filter(None, [words.get(name)]), *synonyms.get(name, [])] for name in names}
    return Naming({name: each for name, each in lists.items() if each}, **(described.get("unless") or {}))


def split(text: str) -> list[str]:
    """The words and punctuation marks of a text in lower case, without what follows an apostrophe: `she's` reads `she`."""
    return [re.sub(r"(?<=.)['’].*", "", word) for word in WORD.findall(text.lower())]


def matches(said: Sequence[str], words: Sequence[str]) -> bool:
    """Whether these words are said, the last one perhaps in the plural."""
    if len(said) != len(words) or list(said[:-1]) != list(words[:-1]):
        return False
    # Short words have no plural that could be formed so: `mrs` is none of `mr`.
    endings = ("", "s", "es") if len(words[-1]) > 2 else ("",)
    return said[-1] in {f"{words[-1]}{ending}" for ending in endings}
