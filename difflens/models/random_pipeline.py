"""Published architectures with random weights: the real shapes without a download."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from tokenizers.pre_tokenizers import ByteLevel

ARCHITECTURES = Path(__file__).parent / "architectures"
WIDTHS = (
    "block_out_channels",
    "cross_attention_dim",
    "addition_time_embed_dim",
    "projection_class_embeddings_input_dim",
    "hidden_size",
    "intermediate_size",
    "projection_dim",
)
DIVISORS = (1, 2, 4, 8)


def build_random_pipeline(
    architecture: str, *, dtype: torch.dtype, device: str = "cpu", divide_widths: int = 1, seed: int = 0
) -> diffusers.DiffusionPipeline:
    """A pipeline of an architecture in `architectures/` whose weights are drawn at random, in `dtype` from the start.

    `divide_widths` divides the channels of every network but keeps its blocks and layers.

    Raises:
        ValueError: an unknown architecture or divisor.
    """
    parts = read_architecture(architecture)
    if divide_widths not in DIVISORS:
        raise ValueError(f"model.divide_widths must be one of {DIVISORS}, got {divide_widths}.")
    pipeline = getattr(diffusers, parts.pop("pipeline"))
    # The caller's random numbers go on as if nothing had been drawn.
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        made = {
            name: _build(kind, narrow(config, divide_widths), dtype, device) for name, (kind, config) in parts.items()
        }
    if pipeline is diffusers.StableDiffusionPipeline:
        made |= {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    return pipeline(**made)


def read_architecture(name: str) -> dict[str, Any]:
    """The class and the configuration of each part of a published pipeline.

    Raises:
        ValueError: there is no such architecture.
    """
    path = ARCHITECTURES / f"{name}.json"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in ARCHITECTURES.glob("*.json")))
        raise ValueError(f"model.architecture must be one of {known}, got {name!r}.")
    parts: dict[str, Any] = json.loads(path.read_text())
    return parts


def narrow(config: Mapping[str, Any], divisor: int) -> dict[str, Any]:
    """A network's configuration with every width divided; heads keep their number, norms get groups that divide."""
    if divisor == 1:
        return dict(config)
    narrowed = dict(config)
    for name in set(WIDTHS) & set(config):
        width = config[name]
        narrowed[name] = [each // divisor for each in width] if isinstance(width, list) else width // divisor
    if "norm_num_groups" in config:
        narrowed["norm_num_groups"] = math.gcd(config["norm_num_groups"], *narrowed["block_out_channels"])
    return narrowed


def byte_tokenizer(
    merges: Sequence[tuple[str, str]] = (), *, pad_token: str = "<|endoftext|>", length: int = 77
) -> transformers.CLIPTokenizer:
    """A CLIP tokenizer of single bytes and of what `merges` makes of them; made here, since nothing is downloaded.

    Ids are those of bytes, bytes that end a word, merges, start and end: the two highest, so that CLIP's `argmax` pooling
    finds the end.
    """
    alphabet = sorted(ByteLevel.alphabet())
    ending = (f"{byte}</w>" for byte in alphabet)
    tokens = [*alphabet, *ending, *("".join(pair) for pair in merges), "<|startoftext|>", "<|endoftext|>"]
    vocabulary: Any = {token: i for i, token in enumerate(tokens)}
    rules: Any = list(merges)  # pairs, which the annotation does not foresee
    return transformers.CLIPTokenizer(vocab=vocabulary, merges=rules, pad_token=pad_token, model_max_length=length)


def _build(kind: str, config: dict[str, Any], dtype: torch.dtype, device: str) -> Any:
    if kind == "CLIPTokenizer":
        return byte_tokenizer(**config)
    if kind.endswith("Scheduler"):
        return getattr(diffusers, kind).from_config(config)
    # Made in their format and place from the start: by way of float32 they would take more memory.
    with _default(dtype), torch.device(device):
        if hasattr(transformers, kind):
            return getattr(transformers, kind)(transformers.CLIPTextConfig(**config))
        return getattr(diffusers, kind)(**config)


@contextmanager
def _default(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
