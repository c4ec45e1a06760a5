from typing import Any

import pytest
from difflens.models.prompts import check_prompts, cut_off

from difflens.models.random_pipeline import byte_tokenizer


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ([], "probe.prompts is empty"),
        (["a", "b", "a"], "probe.prompts repeats 'a'"),
        (["a", "  "], "texts only, got '  '"),
        (["a", 3], "texts only, got 3"),
        ("a face", "must be a list of prompts"),
    ],
)
def test_lists_that_cannot_be_meant_are_refused(prompts: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_prompts(prompts, name="probe.prompts")


def test_a_list_is_returned_in_its_order() -> None:
    assert check_prompts(["b", "a"]) == ("b", "a")


def test_what_a_tokenizer_leaves_unread_is_named() -> None:
    tokenizer = byte_tokenizer(pad_token="!", length=10)
    assert cut_off("eight" + "abc", tokenizer) == ""
    assert cut_off("eightabcde", tokenizer) == "de"
