"""A byte-level CLIP tokenizer of the captions' words, built without a download."""

from collections import Counter
from collections.abc import Iterable
from itertools import pairwise
from typing import Any

from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPTokenizer

_END_OF_WORD, _START, _END = "</w>", "<|startoftext|>", "<|endoftext|>"


def learn_merges(words: Iterable[str]) -> list[tuple[str, str]]:
    """Byte-pair merges, in their order, after which each of `words` is one token (Sennrich et al., 2016)."""
    pieces = [[*word[:-1], word[-1] + _END_OF_WORD] for word in sorted(set(words))]
    merges = []
    while pairs := Counter(pair for word in pieces for pair in pairwise(word)):
        merges.append(min(pairs, key=lambda pair: (-pairs[pair], pair)))
        pieces = [_merged(word, merges[-1]) for word in pieces]
    return merges


def _merged(word: list[str], pair: tuple[str, str]) -> list[str]:
    merged: list[str] = []
    for piece in word:
        if merged and (merged[-1], piece) == pair:
            merged[-1] += piece
        else:
            merged.append(piece)
    return merged


def build_tokenizer(words: Iterable[str], *, context_length: int) -> CLIPTokenizer:
    """A `CLIPTokenizer` that reads each of `words` (ASCII, lower-case) as one token and any other text by its bytes.

    Ids are those of bytes, bytes that end a word, merges, start and end, which also pads.
    """
    merges = learn_merges(words)
    alphabet = sorted(ByteLevel.alphabet())
    tokens = [*alphabet, *(byte + _END_OF_WORD for byte in alphabet), *("".join(pair) for pair in merges), _START, _END]
    vocabulary: Any = {token: i for i, token in enumerate(tokens)}
    rules: Any = merges  # pairs, which the annotation does not foresee
    return CLIPTokenizer(vocab=vocabulary, merges=rules, model_max_length=context_length)
