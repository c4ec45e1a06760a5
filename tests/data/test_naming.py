"""Whether a prompt names a class is told by words, as the shipped attributes list them."""

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from difflens.data.naming import OTHER, Naming, read_naming
from difflens.data.prompts import fill
from difflens.store.targets import build

CONF = Path(__file__).resolve().parents[2] / "conf"


def described(file: str) -> dict[str, Any]:
    return yaml.safe_load((CONF / f"{file}.yaml").read_text("utf-8"))


@cache
def naming(attribute: str) -> Naming:
    return read_naming(described(f"attribute/{attribute}"))


def named(attribute: str, prompt: str) -> list[str]:
    return list(naming(attribute).named(prompt))


NAMED = {
    "gender": {
        "a face of a doctor": [],
        "a face of a female doctor": ["female"],
        "A FEMALE DOCTOR": ["female"],
        "two Women at work": ["female"],
        "a woman who works as a doctor": ["female"],
        "a doctor, she's tired": ["female"],
        "the nurse and his patient": ["male"],
        "a policeman": ["male"],
        "a man and a woman": ["female", "male"],
        "Mrs Smith, a baker": ["female"],
        "a non-binary pilot": [OTHER],
        # Words that only contain one, or that a hyphen makes another.
        "a human, a manager, a theologian on a man-made island": [],
        "the sheriff of Manchester; hershey": [],
        "a nurse, a waiter, a firefighter, an actor": [],
        "a male connector on a table": [],
    },
    "race": {
        "a doctor in a white coat": [],
        "a doctor in a White lab coat, smiling": [],
        "a nurse with black hair": [],
        "a black-haired nurse in white and blue scrubs standing in a kitchen": [],
        "a black and white photo of a nurse": [],
        "black and white portrait of a pilot dressed in black": [],
        "a chef of an Indian restaurant": [],
        "a Black doctor in a white coat": ["Black"],
        "a white man": ["White"],
        "a white truck driver": ["White"],
        "a white truck parked in front of a driver": [],
        "Black and Asian women": ["Black", "Asian"],
        "an African-American baker": ["Black"],
        "an Afro": [],
        "a Japanese cook": ["Asian"],
        "a Latina farmer": [OTHER],
        "a Middle Eastern farmer": [OTHER],
    },
    "age": {
        "an old firefighter": ["old"],
        "an old photograph of a firefighter": [],
        "an old-fashioned bakery and its baker": [],
        "a grandmother": ["old"],
        "a 70-year-old cook": [OTHER],
        "a cook, 70 years old": ["old"],
        "a middle-aged cook": ["adult"],
        "a senior engineer and her junior clerk": [],
        "a girl": ["young"],
    },
}


@pytest.mark.parametrize(
    ("attribute", "prompt", "classes"), [(name, *case) for name, cases in NAMED.items() for case in cases.items()]
)
def test_classes_are_known_by_whole_words_said_of_persons(attribute: str, prompt: str, classes: list[str]) -> None:
    assert named(attribute, prompt) == classes


def test_a_product_is_named_by_the_class_of_any_part() -> None:
    both = read_naming(
        {"name": "gender+age", "parts": {name: described(f"attribute/{name}") for name in ("gender", "age")}}
    )
    assert [both.named(text) for text in ("a baker", "an old baker", "a female baker")] == [(), ("old",), ("female",)]


def test_an_attribute_with_no_synonyms_is_named_by_its_own_words() -> None:
    smile = read_naming({"name": "smile", "classes": ["yes", "no"], "words": {"yes": "smiling", "no": "not smiling"}})
    assert smile.named("a smiling baker") == ("yes",) and smile.named("a baker") == ()


@pytest.mark.parametrize("attribute", ["gender", "age", "race"])
@pytest.mark.parametrize("prompts", ["workplace", "winobias"])
def test_no_shipped_prompt_names_a_class_but_those_that_are_to(prompts: str, attribute: str) -> None:
    listed, file = build(described(f"prompt/{prompts}"), "prompt"), described(f"attribute/{attribute}")
    assert not [text for text in map(fill, [*listed.studied, *listed.unseen, *listed.naming]) if named(attribute, text)]
    for text in listed.naming:
        assert [named(attribute, fill(text, word)) for word in file["words"].values()] == [[c] for c in file["classes"]]
    # Words that no list has are there to show what the lists miss.
    assert not [text for text in listed.sentences(attribute) if named(attribute, text)]


def test_winobias_has_each_of_36_occupations_in_each_of_5_templates() -> None:
    listed = build(described("prompt/winobias"), "prompt")
    everything = [*listed.studied, *listed.unseen]
    assert len(set(everything)) == 180 and len(listed.studied) == 90
