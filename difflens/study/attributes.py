"""Attributes as the configuration describes them: one file, or the product of several (`attribute=gender+age`)."""

import itertools
from collections.abc import Mapping
from typing import Any

from difflens.vocabulary import Attribute, product

Described = Mapping[str, Any]


def read_attribute(described: Described) -> Attribute:
    """The attribute of a file, or the product of those under `parts`."""
    if "parts" in described:
        return product([read_attribute(part) for part in described["parts"].values()])
    return Attribute(described["name"], tuple(described["classes"]))


def class_words(described: Described) -> tuple[str, ...]:
    """How prompts name each class; the words of a product's parts stand in the order of their `place`: `old female`.

    Raises:
        ValueError: a file does not name its classes.
    """
    parts = list(described.get("parts", {"": described}).values())
    words = [_words_of(part) for part in parts]
    order = sorted(range(len(parts)), key=lambda i: parts[i].get("place") or 0)
    return tuple(" ".join(combination[i] for i in order) for combination in itertools.product(*words))


def _words_of(described: Described) -> list[str]:
    words = described.get("words") or {}
    missing = [name for name in described["classes"] if not words.get(name)]
    if missing:
        raise ValueError(
            f"attribute.words gives no word that names {missing} of {described['name']!r} in a prompt; add it to "
            "the attribute's file."
        )
    return [words[name] for name in described["classes"]]
