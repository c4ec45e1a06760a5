"""The pipeline's tokenizer keeps its words whole, loses no byte, and comes back from disk."""

from pathlib import Path

from transformers import CLIPTokenizer

from difflens.miniature.tokenizer import build_tokenizer, learn_merges

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
