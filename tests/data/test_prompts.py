import pytest
import torch

from difflens.data.prompts import PromptSet, crossed, fill, neutral_plan, study_plan
from difflens.vocabulary import UNNAMED, Attribute

WORK = PromptSet(["a face of a {} doctor", "A photo of an {} engineer"], unseen=["a face of a {} pilot"])


def test_articles_suit_what_follows_the_slot() -> None:
    assert fill("a face of a {} doctor") == "a face of a doctor"
    assert fill("a face of a {} doctor", "old") == "a face of an old doctor"
    assert fill("A photo of an {} engineer") == "A photo of an engineer"
    assert fill("A photo of an {} engineer", "Black") == "A photo of a Black engineer"
    assert fill("{} people at work", "young") == "young people at work"


def test_half_the_images_name_a_class_every_class_and_prompt_equally_often() -> None:
    plan, labels = study_plan(WORK, ("female", "male"), 32, base_seed=3)
    assert plan.prompts is not None and len(plan.image_ids.unique()) == 32
    assert labels[:16].eq(UNNAMED).all() and labels[16:].bincount().tolist() == [8, 8]
    assert plan.prompts[:2] == ("a face of a doctor", "A photo of an engineer")
    named = list(zip(plan.prompts[16:], labels[16:].tolist(), strict=True))
    for word, label in (("female", 0), ("male", 1)):
        for work in ("doctor", "engineer"):
            hits = [text for text, index in named if index == label and work in text]
            assert len(hits) == 4 and all(f" {word} {work}" in text for text in hits)


def test_evaluation_goes_prompt_by_prompt() -> None:
    plan = neutral_plan(WORK.studied, 3, base_seed=1, first_id=10)
    assert plan.prompts == ("a face of a doctor",) * 3 + ("A photo of an engineer",) * 3
    assert torch.equal(plan.image_ids, torch.arange(10, 16))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"studied": []}, "prompt.studied is empty"),
        ({"studied": ["a {} b", "  "]}, "texts only, got '  '"),
        ({"studied": "a {} face"}, "must be a list of prompts"),
        ({"studied": ["a {} b", "a {} b"]}, "repeats"),
        ({"studied": ["a {} b"], "unseen": ["a {} b"]}, "repeats"),
        ({"studied": ["a doctor"]}, "slot"),
        ({"studied": ["a {} b"], "naming": ["a c"]}, "slot"),
        ({"studied": ["a {} b"], "naming": ["a {} c", "a {} c"]}, "repeats"),
        ({"studied": ["a {} b"], "labels": "guess"}, "labels"),
    ],
)
def test_bad_lists_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PromptSet(**settings)  # type: ignore[arg-type]


def test_too_few_images_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 12"):
        study_plan(WORK, ("young", "adult", "old"), 10, base_seed=0)


def test_prompts_that_name_a_class_take_its_word_or_are_whole_sentences() -> None:
    gender = Attribute("gender", ("female", "male"))
    worded = {"gender": {"male": ["John, a doctor"]}, "age": {"old": ["a wrinkled doctor"]}}
    prompts = PromptSet(["a {} nurse"], naming=["{} doctor", "an {} engineer"], worded=worded)
    assert prompts.named(gender, ("female", "male")) == {
        "female doctor": 0,
        "male doctor": 1,
        "a female engineer": 0,
        "a male engineer": 1,
        "John, a doctor": 1,
    }
    with pytest.raises(ValueError, match="has no class 'men'"):
        PromptSet(["a {} nurse"], worded={"gender": {"men": ["John"]}}).named(gender, ("female", "male"))


def test_templates_are_crossed_with_subjects() -> None:
    prompts = crossed(
        templates=["a {} {subject}", "a photo of a {} {subject}"], studied=["nurse", "cook"], unseen=["CEO"]
    )
    assert prompts.studied == ["a {} nurse", "a photo of a {} nurse", "a {} cook", "a photo of a {} cook"]
    assert prompts.unseen == ["a {} CEO", "a photo of a {} CEO"]
    with pytest.raises(ValueError, match=r"exactly one \{subject\}"):
        crossed(templates=["a {} nurse"], studied=["nurse"])
