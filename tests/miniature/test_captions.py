"""Captions say what is in the picture and nothing else; the tokenizers lose nothing they should keep."""

import itertools
import re
from pathlib import Path

import pytest
import torch
from transformers import CLIPTokenizer

from difflens.miniature.captions import (
    _DETAILS,
    _OPENINGS,
    _WORDINGS,
    CONTEXT_LENGTH,
    ByteTokenizer,
    build_tokenizer,
    caption,
    caption_words,
    describes,
    draw_mentions,
    learn_merges,
    prompts,
    zero_shot_prompts,
)
from difflens.miniature.faces import FACTORS, WORKPLACE_FACTORS
from difflens.miniature.population import POPULATIONS, Population


def read_back(text: str, factor: str) -> set[int]:
    """Every value of `factor` whose wording occurs in `text`, longer wordings hiding the shorter ones inside them."""
    found: set[int] = set()
    phrases = [(phrase, index) for wording in _WORDINGS[factor] for index, phrase in enumerate(wording)]
    for phrase, index in sorted(phrases, key=lambda pair: -len(pair[0])):
        text, hits = re.subn(rf"\b{re.escape(phrase)}\b", " ", text)
        found |= {index} if hits else set()
    return found


def test_every_factor_has_a_phrase_for_each_of_its_values():
    assert set(_WORDINGS) == set(WORKPLACE_FACTORS) == {"gender", "age", "race", "profession", *_DETAILS}
    for name, wordings in _WORDINGS.items():
        assert all(len(set(wording)) == len(WORKPLACE_FACTORS[name]) for wording in wordings)


@pytest.mark.parametrize("full", [0.0, 0.5, 1.0])
def test_a_caption_names_exactly_the_mentioned_factors_with_their_values(full):
    factors = Population().sample(96, seed=1)
    mentioned = draw_mentions(96, seed=2, full=full)
    for row, text in enumerate(caption(factors, seed=3, mentioned=mentioned)):
        for name in FACTORS:
            expected = {int(factors[name][row])} if mentioned[name][row] else set()
            assert read_back(text, name) == expected, (text, name)


def test_captions_depend_on_the_seed_and_on_nothing_else():
    factors = Population().sample(32, seed=1)
    assert caption(factors, seed=5) == caption(factors, seed=5)
    assert caption(factors, seed=5) != caption(factors, seed=6)
    again = draw_mentions(32, seed=7, full=0.5)
    assert all(torch.equal(flags, again[name]) for name, flags in draw_mentions(32, seed=7, full=0.5).items())


def test_short_prompts_read_as_english():
    one = {name: torch.zeros(40, dtype=torch.int64) for name in FACTORS}
    alone = {"age": torch.ones(40, dtype=torch.bool)}
    texts = set(caption(one | {"age": torch.full((40,), 2)}, seed=0, mentioned=alone))
    assert {"a face of an old person", "a photo of an elderly person"} <= texts
    assert "a face of a person" in caption(one, seed=0, mentioned={})


def test_prompts_of_a_value_mention_it_and_no_other_factor():
    prompts = zero_shot_prompts("gender")
    assert "a face of a female" in prompts[0] and "a face of a male" in prompts[1]
    assert {len(wordings) > 1 for wordings in prompts} == {True}
    assert all("hair" not in prompt and "shirt" not in prompt for wordings in prompts for prompt in wordings)


def test_full_is_the_share_of_complete_captions():
    mentioned = torch.stack(list(draw_mentions(20_000, seed=0, full=0.6).values()))
    complete = mentioned.all(0).double().mean()
    # A keep probability u², u ~ U(0, 1), leaves all nine factors in place with probability ∫ u¹⁸ du = 1/19.
    assert float(complete) == pytest.approx(0.6 + 0.4 / 19, abs=0.012)
    assert float(mentioned.double().mean()) == pytest.approx(0.6 + 0.4 / 3, abs=0.012)


def test_describes_agrees_with_a_comparison_face_by_face():
    factors = Population().sample(24, seed=4)
    mentioned = draw_mentions(24, seed=5, full=0.0)
    true = describes(factors, mentioned)
    for image, text in itertools.product(range(24), range(24)):
        expected = all(factors[n][image] == factors[n][text] for n in FACTORS if mentioned[n][text])
        assert bool(true[image, text]) == expected
    assert not torch.equal(true, true.T)


def test_an_unknown_factor_is_refused_by_name():
    with pytest.raises(ValueError, match="hat"):
        caption(Population().sample(4, seed=0), seed=0, mentioned={"hat": torch.ones(4, dtype=torch.bool)})


def test_the_longest_caption_fits_the_context():
    tokens = ByteTokenizer(caption_words(WORKPLACE_FACTORS)).encode
    longest = {name: max(len(tokens(p)) for w in wordings for p in w) for name, wordings in _WORDINGS.items()}
    opening = max(len(tokens(opening)) for opening in _OPENINGS)
    assert opening + len(tokens("an")) + sum(longest.values()) + len(_DETAILS) + 2 <= CONTEXT_LENGTH


def test_a_profession_is_the_noun_and_gender_an_adjective_before_it():
    factors = POPULATIONS["workplace_uniform"].sample(180, seed=0)
    for row, text in enumerate(caption(factors, seed=1)):
        subject = text.split(",")[0].split()
        profession = WORKPLACE_FACTORS["profession"][factors["profession"][row]]
        gender = FACTORS["gender"][factors["gender"][row]]
        assert (subject[-2:] == [gender, profession]) == (profession != "none"), text
        assert subject[-1] in {profession, "woman", "man", "female", "male"}


def test_prompts_name_what_they_are_told_in_one_way():
    one = {name: torch.zeros(4, dtype=torch.int64) for name in FACTORS}
    faces = one | {"age": torch.tensor([2, 1, 0, 0]), "race": torch.tensor([2, 3, 0, 0])}
    faces["profession"] = torch.tensor([2, 1, 3, 4])
    none, every = torch.zeros(4, dtype=torch.bool), torch.ones(4, dtype=torch.bool)
    named = {name: every for name in ("gender", "race", "age", "profession")}
    assert prompts(faces, named)[:2] == [
        "a face of an old Asian female doctor",
        "a face of an adult Indian female firefighter",
    ]
    assert prompts(faces, {**named, "gender": none, "age": none, "race": none})[2] == "a face of a receptionist"
    assert prompts(faces, {"profession": every, "gender": every})[3] == "a face of a female nurse"


def test_words_of_plain_captions_know_no_profession():
    assert not set(caption_words()) & set(WORKPLACE_FACTORS["profession"])
    assert set(WORKPLACE_FACTORS["profession"]) <= set(caption_words(WORKPLACE_FACTORS))


def test_captions_take_no_single_byte():
    tokens = ByteTokenizer(caption_words())(caption(Population().sample(200, seed=0), seed=0))
    assert ((tokens >= ByteTokenizer.first_word) | (tokens == 0)).all()


def test_an_unknown_word_is_its_bytes_and_a_space() -> None:
    tokenizer = ByteTokenizer(["face"], 256)
    assert tokenizer.encode("Face, naïve") == [256, ord(","), ord(" "), *"naïve".encode(), ord(" ")]


def test_tokens_have_the_layout_open_clip_pools_by():
    rows = ByteTokenizer(["x", "face"], 12)(["Face ab", ""])
    assert rows.dtype == torch.int64 and rows.shape == (2, 12)
    assert rows[0].tolist() == [512, 257, ord("a"), ord("b"), ord(" "), 513] + [0] * 6
    assert rows.argmax(1).tolist() == [5, 1]
    assert torch.equal(ByteTokenizer(["x", "face"], 12)("Face ab")[0], rows[0])
    assert int(ByteTokenizer([])("\U0010ffff ÿ~").max()) < ByteTokenizer.vocabulary <= 514


def test_a_text_too_long_is_cut_with_a_warning_and_keeps_its_end():
    tokenizer = ByteTokenizer([], 8)
    with pytest.warns(UserWarning, match="only the first 6"):
        row = tokenizer("abcdefghij")[0]
    assert row[0] == tokenizer.start and row[-1] == tokenizer.end and row[1:-1].tolist() == list(b"abcdef")


def test_impossible_tokenizers_are_refused():
    with pytest.raises(ValueError, match="2 or more"):
        ByteTokenizer([], 1)
    with pytest.raises(ValueError, match="256 distinct words, got 257"):
        ByteTokenizer([str(i) for i in range(257)])


WORDS = ("a", "an", "female", "male", "fireman", "nurse", "man", "aaaa")


def test_each_word_is_one_token_even_inside_another() -> None:
    tokenizer = build_tokenizer(WORDS, context_length=24)
    for word in WORDS:
        assert tokenizer(word.upper()).input_ids[1:-1] == tokenizer.convert_tokens_to_ids([f"{word}</w>"])
    assert len(tokenizer) == 2 * 256 + len(learn_merges(WORDS)) + 2


def test_any_text_comes_back_from_its_bytes() -> None:
    tokenizer = build_tokenizer(WORDS, context_length=24)
    assert tokenizer.decode(tokenizer("Naïve café 🧑‍🚒 nurse").input_ids[1:-1]) == "naïve café 🧑‍🚒 nurse"


def test_ends_are_padding_and_texts_are_cut_at_the_context(tmp_path: Path) -> None:
    build_tokenizer(WORDS, context_length=6).save_pretrained(tmp_path)
    tokenizer = CLIPTokenizer.from_pretrained(tmp_path, local_files_only=True)
    start, end = len(tokenizer) - 2, len(tokenizer) - 1
    nurse = tokenizer.convert_tokens_to_ids("nurse</w>")
    rows = tokenizer(["nurse", "nurse " * 9], padding="max_length", truncation=True).input_ids
    assert rows == [[start, nurse, end, end, end, end], [start, *[nurse] * 4, end]]
