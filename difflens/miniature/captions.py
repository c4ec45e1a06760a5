"""Captions and prompts of drawn faces, and the tokenizers through which the miniature's models read them."""

from __future__ import annotations

import random
import re
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from types import MappingProxyType
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from difflens.miniature.faces import FACTORS, WORKPLACE_FACTORS, validate

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

CONTEXT_LENGTH = 48
"""Tokens of a text including its start and end: the longest caption, or a short text of words no caption has."""

_OPENINGS = ("a face of ", "the face of ", "a photo of ", "")

_WORDINGS: Mapping[str, tuple[tuple[str, ...], ...]] = MappingProxyType(
    {
        "gender": (("female", "male"), ("woman", "man")),
        "age": (("young", "adult", "old"), ("youthful", "grown", "elderly")),
        "race": (FACTORS["race"],),
        "glasses": (("without glasses", "with glasses"), ("no glasses", "wearing glasses")),
        "smile": (("not smiling", "smiling"), ("serious", "with a smile")),
        "background": (tuple(f"{value} background" for value in FACTORS["background"]),),
        "shirt": (tuple(f"{value} shirt" for value in FACTORS["shirt"]),),
        "hair": (tuple(f"{value} hair" for value in FACTORS["hair"]),),
        "pose": (
            tuple(f"facing {value}" for value in FACTORS["pose"]),
            ("looking left", "looking ahead", "looking right"),
        ),
        "profession": (WORKPLACE_FACTORS["profession"],),
    }
)
_END_OF_WORD = "</w>"
_PROMPTS = 8
_DETAILS = ("glasses", "smile", "hair", "shirt", "background", "pose")


def draw_mentions(n: int, *, seed: int, full: float, factors: Iterable[str] = FACTORS) -> dict[str, Tensor]:
    """Which factors each of `n` captions mentions: factor → bool [n], deterministic.

    A caption mentions all factors with probability `full`; otherwise it keeps each with a probability of its own, the
    square of a uniform number: three factors on average, often one, and sometimes nearly all.
    """
    generator = torch.Generator().manual_seed(seed)
    kept = torch.where(
        torch.rand(n, generator=generator) < full, torch.ones(n), torch.rand(n, generator=generator) ** 2
    )
    return {name: torch.rand(n, generator=generator) < kept for name in factors}


def caption(factors: Mapping[str, Tensor], *, seed: int, mentioned: Mapping[str, Tensor] | None = None) -> list[str]:
    """Describe faces (factor → int64 [N]) in words drawn by `seed`: `a face of an old Asian woman, red shirt`.

    A face whose profession is mentioned is called by it: `a face of an old Asian female doctor`. `mentioned` says which
    factors each caption names (factor → bool [N]; all if None).

    Raises:
        ValueError: `factors` do not describe faces (see `faces.validate`), or `mentioned` names an unknown factor.
    """
    n = validate(factors)
    every = torch.ones(n, dtype=torch.bool)
    mentioned = dict.fromkeys(factors, every) if mentioned is None else mentioned
    unknown = sorted(set(mentioned) - set(factors))
    if unknown:
        raise ValueError(f"captions cannot mention {unknown}; the faces have {list(factors)}.")
    values = {name: index.tolist() for name, index in factors.items()}
    named = {name: flags.tolist() for name, flags in mentioned.items()}
    choices = random.Random(seed)
    return [_sentence({name: values[name][i] for name in named if named[name][i]}, choices) for i in range(n)]


def _sentence(face: Mapping[str, int], choices: random.Random) -> str:
    phrases = {name: choices.choice(_WORDINGS[name])[index] for name, index in face.items()}
    # The noun is the profession's here, and gender an adjective before it: a female doctor.
    if face.get("profession") and "gender" in face:
        phrases["gender"] = _WORDINGS["gender"][0][face["gender"]]
    subject = _subject(phrases)
    details = [phrases[name] for name in _DETAILS if name in phrases]
    choices.shuffle(details)
    return ", ".join([f"{choices.choice(_OPENINGS)}{subject}", *details])


def _subject(phrases: Mapping[str, str]) -> str:
    words = [phrases[name] for name in ("age", "race", "gender") if name in phrases]
    noun = phrases.get("profession", "none")
    if noun != "none":
        words.append(noun)
    elif "gender" not in phrases:
        words.append("person")
    return " ".join(["an" if words[0][0].lower() in "aeiou" else "a", *words])


def prompts(factors: Mapping[str, Tensor], named: Mapping[str, Tensor]) -> list[str]:
    """What a user asks for: `a face of an old Asian female doctor`, of `factors` (factor → int64 [N]) only what is `named`.

    Of gender, age, race and profession (factor → bool [N]); a factor left out is not named.
    """
    n = validate(factors)
    values = {name: (factors[name].tolist(), flags.tolist()) for name, flags in named.items()}
    phrases = [{k: _WORDINGS[k][0][index[i]] for k, (index, flags) in values.items() if flags[i]} for i in range(n)]
    return [f"{_OPENINGS[0]}{_subject(row)}" for row in phrases]


def describes(factors: Mapping[str, Tensor], mentioned: Mapping[str, Tensor]) -> Bool[Tensor, "images captions"]:
    """Whether caption j of the face j, naming only what is `mentioned`, is also true of the face i."""
    n = validate(factors)
    true = torch.ones(n, n, dtype=torch.bool)
    for name, flags in mentioned.items():
        true &= (factors[name][:, None] == factors[name][None]) | ~flags[None]
    return true


def zero_shot_prompts(factor: str) -> list[list[str]]:
    """For every value of a factor, prompts that mention nothing else."""
    alone = {factor: torch.ones(_PROMPTS, dtype=torch.bool)}
    first = {name: torch.zeros(_PROMPTS, dtype=torch.int64) for name in FACTORS}
    faces = (first | {factor: torch.full((_PROMPTS,), value)} for value in range(len(WORKPLACE_FACTORS[factor])))
    return [sorted(set(caption(face, seed=5, mentioned=alone))) for face in faces]


def caption_words(factors: Iterable[str] = FACTORS) -> list[str]:
    """Every word and punctuation mark of captions of these factors, lower-cased and sorted."""
    phrases = [phrase for name in factors for wording in _WORDINGS[name] for phrase in wording]
    # `_subject` adds words of its own, which no factor lists.
    return sorted({word for text in (*phrases, *_OPENINGS, "a, an person") for word in _split(text)})


def _split(text: str) -> list[str]:
    return re.findall(r"\w+|[^\w\s]", text.lower())


class ByteTokenizer:
    """A tokenizer for open_clip that reads any text byte by byte, and words it was given as one token each.

    As in CLIP's byte-pair encoding (Radford et al., 2021), texts are lower-cased, punctuation marks are words, and the
    start and end have the two highest ids, so that `argmax` pooling finds the end. Any other word is its UTF-8 bytes and
    a space. The context counts start and end.

    Raises:
        ValueError: more or other words than there is room for, or a context without room for start and end.
    """

    first_word, start, end, vocabulary = 256, 512, 513, 514

    def __init__(self, words: Sequence[str], context_length: int = CONTEXT_LENGTH) -> None:
        if context_length < 2:
            raise ValueError(f"a context of {context_length} tokens has no room for start and end; give 2 or more.")
        if len(words) > self.start - self.first_word or len(set(words)) < len(words):
            raise ValueError(f"there is room for {self.start - self.first_word} distinct words, got {len(words)}.")
        self.words, self.context_length = tuple(words), context_length
        self._ids = {word: self.first_word + i for i, word in enumerate(words)}

    def encode(self, text: str) -> list[int]:
        """The tokens of a text, without start and end."""
        parts = ([self._ids[word]] if word in self._ids else [*word.encode(), ord(" ")] for word in _split(text))
        return [token for part in parts for token in part]

    def __call__(self, texts: str | Sequence[str]) -> Int[Tensor, "texts context"]:
        """Token ids (int64) of one text or several, padded with 0; a text too long is cut, with a warning."""
        texts = [texts] if isinstance(texts, str) else list(texts)
        tokens = torch.zeros(len(texts), self.context_length, dtype=torch.int64)
        for row, text in zip(tokens, texts, strict=True):
            ids = self.encode(text)
            room = self.context_length - 2
            # Cut like CLIP's texts, but said: an embedding of half a text looks like any other.
            if len(ids) > room:
                warnings.warn(f"{text!r} has {len(ids)} tokens, of which only the first {room} are read.", stacklevel=2)
            # The end stays even where the text is cut, since the model pools at the highest id.
            ids = [self.start, *ids[:room], self.end]
            row[: len(ids)] = torch.tensor(ids)
        return tokens


def learn_merges(words: Iterable[str]) -> list[tuple[str, str]]:
    """Byte-pair merges, in their order, after which each of `words` is one token (Sennrich et al., 2016)."""
    pieces = [[*word[:-1], word[-1] + _END_OF_WORD] for word in sorted(set(words))]
    merges = []
    while pairs := Counter(pair for word in pieces for pair in pairwise(word)):
        # Of equally frequent pairs the first by alphabet: ids must not depend on the order in which pairs were met.
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
    """A `CLIPTokenizer` that reads each of `words` (ASCII, lower-case) as one token and any other text by its bytes."""
    from difflens.models.random_pipeline import byte_tokenizer  # seconds, which only training is willing to spend

    return byte_tokenizer(learn_merges(words), length=context_length)
