"""What the miniature's readers learn from: two judges of every factor, and a CLIP of faces and their captions."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import open_clip
import torch
from jaxtyping import Bool, Float, Int
from safetensors.torch import save_file
from torch import Tensor, nn

from difflens.miniature.captions import (
    ByteTokenizer,
    caption,
    caption_words,
    describes,
    draw_mentions,
    zero_shot_prompts,
)
from difflens.miniature.clip import MEAN, STD, ClipModel
from difflens.miniature.faces import SIZE, WORKPLACE_FACTORS, render
from difflens.miniature.fit import FitSettings, Recipe
from difflens.miniature.judges import ARCHITECTURES
from difflens.miniature.population import Population

_GROUP = 64


def _write(folder: Path, weights: str, state: Mapping[str, Tensor], config: str, described: Mapping[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: value.half().contiguous() for name, value in state.items()}, folder / weights)
    (folder / config).write_text(json.dumps(described, indent=2) + "\n")


def _disturb(images: Tensor, generator: torch.Generator, *, sigma: float) -> Tensor:
    """Slight brightness changes and noise, because the faces to be read are generated and never quite clean."""
    gain = 1 + 0.1 * (torch.rand(len(images), 1, 1, 1, generator=generator) - 0.5)
    scale = sigma * torch.rand(len(images), 1, 1, 1, generator=generator)
    return (images * gain + scale * torch.randn(images.shape, generator=generator)).clamp(0, 1)


@dataclass(eq=False)
class JudgeRecipe(Recipe):
    """Cross-entropy on every factor of renders with slight noise and brightness changes.

    Args:
        name: what the judge is called.
        architecture: `convolutional` or `mixer`.
        population: the faces trained on.
        pool: number of renders trained on.
        held_out: number of distinct faces that a report scores (see `held_out_faces`).
    """

    name: str
    architecture: str
    population: Population
    pool: int
    held_out: int

    def __post_init__(self) -> None:
        self.unseen = held_out_faces(self.population.factors, self.held_out)

    @cached_property
    def faces(self) -> dict[str, Tensor]:
        """The faces trained on, none held out: factor → int64 [pool or fewer]."""
        factors = self.population.sample(self.pool, seed=2)
        # Left out by number: there are so few distinct faces that draws of another seed would be the same ones.
        kept = ~torch.isin(face_numbers(factors), self.unseen)
        return {name: index[kept] for name, index in factors.items()}

    def build(self) -> nn.Module:
        """One head for each factor of the population."""
        return ARCHITECTURES[self.architecture](self.population.factors)

    def loss(self, model: nn.Module, step: int, settings: FitSettings) -> Tensor:
        """The mean over factors."""
        generator = settings.generator(step)
        faces = self.faces
        rows = torch.randint(len(faces["gender"]), (settings.batch,), generator=generator)
        factors = {name: index[rows] for name, index in faces.items()}
        logits = model(_disturb(render(factors), generator, sigma=0.08))
        losses = [nn.functional.cross_entropy(logits[name].float(), index) for name, index in factors.items()]
        return torch.stack(losses).mean()

    @torch.inference_mode()
    def report(self, model: nn.Module) -> dict[str, float]:
        """The accuracy on every factor, over the faces that are held out."""
        factors = numbered_faces(self.unseen, self.population.factors)
        logits = model(render(factors))
        right = {name: logits[name].argmax(-1) == index for name, index in factors.items()}
        return {f"{name}_accuracy": float(found.double().mean()) for name, found in right.items()}

    def export(self, model: nn.Module, folder: Path) -> None:
        """Write what `load_judge` reads."""
        config = {"architecture": self.architecture, "factors": self.population.factors}
        _write(folder, "judge.safetensors", model.state_dict(), "config.json", config)


@dataclass(eq=False)
class ClipRecipe(Recipe):
    """Contrastive learning (Radford et al., 2021) on renders and captions of drawn faces.

    Args:
        population: the faces trained on.
        embed_dim: width of the shared embedding.
        vision: open_clip's `vision_cfg`, but for the image size; `text` its `text_cfg`, but for vocabulary and context.
        full: share of captions that mention every factor; see `captions.draw_mentions`.
        supervision: weight of reading the factors, see `loss`.
        held_out: number of distinct faces that are never trained on and that a report scores.

    Raises:
        ValueError: see `held_out_faces`.
    """

    population: Population
    embed_dim: int
    vision: Mapping[str, Any]
    text: Mapping[str, Any]
    full: float
    supervision: float
    held_out: int
    name: str = "clip"

    def __post_init__(self) -> None:
        self.tokenizer = ByteTokenizer(caption_words(self.population.factors))
        self.unseen = held_out_faces(self.population.factors, self.held_out)

    @property
    def model_cfg(self) -> dict[str, Any]:
        """open_clip's configuration of the model; the words are kept with it, whose ids belong to the weights."""
        words = {"words": list(self.tokenizer.words)}
        room = {"vocab_size": ByteTokenizer.vocabulary, "context_length": self.tokenizer.context_length}
        return {
            "embed_dim": self.embed_dim,
            "vision_cfg": {**self.vision, "image_size": SIZE},
            "text_cfg": {**self.text, **room, "tokenizer_kwargs": words},
        }

    def build(self) -> open_clip.CLIP:
        """The open_clip model and a linear reader of the factors, which training uses and `export` leaves out."""
        network = open_clip.CLIP(**self.model_cfg)
        network.factor_reader = nn.Linear(network.visual.output_dim, sum(value_counts(self.population.factors)))
        return network

    def batch(self, step: int, settings: FitSettings) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The faces of a step, none held out, and what their captions mention: factor → [N] each.

        That a face has no profession is mentioned by none.
        """
        seed = settings.seed * 1_000_003 + step
        factors = self.population.sample(settings.batch, seed=seed)
        kept = ~torch.isin(face_numbers(factors), self.unseen)
        factors = {name: index[kept] for name, index in factors.items()}
        mentioned = draw_mentions(int(kept.sum()), seed=seed, full=self.full, factors=factors)
        if "profession" in factors:
            mentioned["profession"] &= factors["profession"] > 0
        return factors, mentioned

    def loss(self, model: nn.Module, step: int, settings: FitSettings) -> Tensor:
        """The contrastive loss plus `supervision` times the cross-entropy of one reader on both kinds of embedding.

        A factor that neither tower expresses yet gives neither a gradient: contrast alone finds small details late.
        """
        factors, mentioned = self.batch(step, settings)
        # What it will read has been saved as 8-bit images.
        images = _disturb(_in_eight_bits(render(factors)), settings.generator(step), sigma=0.06)
        told_as = caption(factors, seed=settings.seed * 1_000_003 + step, mentioned=mentioned)
        pictured, told, scale = model((images - MEAN) / STD, self.tokenizer(told_as))
        # bfloat16 resolves logits near 100 to no better than 0.5.
        with torch.autocast("cpu", enabled=False):
            pictured, told = pictured.float(), told.float()
            # The scale is bounded as in CLIP, where training was unstable otherwise.
            contrast = forgiving_clip_loss(pictured, told, scale.clamp_max(100), describes(factors, mentioned))
            read = reading_loss(model, pictured, factors) + reading_loss(model, told, factors, mentioned)
        return contrast + self.supervision * read

    @torch.inference_mode()
    def report(self, model: nn.Module) -> dict[str, float]:
        """Retrieval among 64 held-out faces in both directions, and how often prompts find each factor's value."""
        factors = numbered_faces(self.unseen, self.population.factors)
        reader = ClipModel(lambda: model, self.tokenizer)
        images = reader.embed_images(_in_eight_bits(render(factors)))
        figures = _retrieval(images, reader.embed_texts(caption(factors, seed=3)))
        for name, index in factors.items():
            means = torch.stack([reader.embed_texts(wordings).mean(0) for wordings in zero_shot_prompts(name)])
            scores = images @ nn.functional.normalize(means, dim=1).T
            figures[f"{name}_zero_shot"] = float((scores.argmax(1) == index).double().mean())
        return figures

    def export(self, model: nn.Module, folder: Path) -> None:
        """Write a folder that open_clip loads by itself."""
        preprocess = {"size": SIZE, "mean": [MEAN] * 3, "std": [STD] * 3, "interpolation": "bilinear"}
        config = {"model_cfg": self.model_cfg, "preprocess_cfg": preprocess}
        state = {name: value for name, value in model.state_dict().items() if not name.startswith("factor_reader")}
        _write(folder, "open_clip_model.safetensors", state, "open_clip_config.json", config)


def value_counts(names: Iterable[str]) -> tuple[int, ...]:
    """How many values each of these factors has."""
    return tuple(len(WORKPLACE_FACTORS[name]) for name in names)


def held_out_faces(names: Sequence[str], held_out: int) -> Int[Tensor, "faces"]:
    """The numbers of so many faces with these factors that no reader learns from, the same for all readers.

    Raises:
        ValueError: fewer than 64, or more than half of all.
    """
    total = math.prod(value_counts(names))
    if not _GROUP <= held_out <= total // 2:
        raise ValueError(f"held_out must lie between {_GROUP} and {total // 2} faces, got {held_out}.")
    return torch.randperm(total, generator=torch.Generator().manual_seed(4))[:held_out]


def face_numbers(factors: Mapping[str, Tensor]) -> Int[Tensor, "faces"]:
    """The number of every face among all distinct ones, the last factor varying fastest."""
    counts = value_counts(factors)
    return sum((index * math.prod(counts[i + 1 :]) for i, index in enumerate(factors.values())), torch.tensor(0))


def numbered_faces(numbers: Int[Tensor, "faces"], names: Sequence[str]) -> dict[str, Tensor]:
    """Factors `names` of the faces with these numbers; the inverse of `face_numbers`."""
    return dict(zip(names, torch.unravel_index(numbers, value_counts(names)), strict=True))


def forgiving_clip_loss(
    images: Tensor, texts: Tensor, scale: Tensor, true: Bool[Tensor, "images captions"]
) -> Float[Tensor, ""]:
    """CLIP's loss on unit-norm embeddings in which a caption true of another image is no negative of that image.

    The i-th of `images` [N, D] belongs to the i-th of `texts` [N, D]; `scale` multiplies cosines; `true` says whether
    caption j is true of image i.
    """
    assert bool(true.diagonal().all())
    own = torch.arange(len(true))
    # In so small a world a caption that names one factor is true of many faces of the batch.
    logits = (scale * images @ texts.T).masked_fill(true & ~torch.eye(len(true), dtype=torch.bool), -math.inf)
    return (nn.functional.cross_entropy(logits, own) + nn.functional.cross_entropy(logits.T, own)) / 2


def reading_loss(
    clip: open_clip.CLIP, features: Tensor, factors: Mapping[str, Tensor], mentioned: Mapping[str, Tensor] | None = None
) -> Tensor:
    """Cross-entropy of the factors (those mentioned) read from unit-norm features; their sum, averaged over faces."""
    # Unit vectors have entries of about 1/√D; a linear layer's initial weights are meant for entries of about 1.
    read = clip.factor_reader(features * features.shape[1] ** 0.5).split(value_counts(factors), dim=1)
    losses = [nn.functional.cross_entropy(z, factors[k], reduction="none") for k, z in zip(factors, read, strict=True)]
    shown = 1 if mentioned is None else torch.stack([mentioned[name] for name in factors])
    return (torch.stack(losses) * shown).sum(0).mean()


def _in_eight_bits(images: Tensor) -> Tensor:
    return (images * 255).round().byte().float() / 255


def _retrieval(images: Tensor, texts: Tensor) -> dict[str, float]:
    """Top-1 retrieval of distinct faces, in groups of 64, in both directions."""
    groups = len(images) // _GROUP
    images, texts = (x[: groups * _GROUP].view(groups, _GROUP, -1) for x in (images, texts))
    scores = images @ texts.mT
    found = {"image_to_text_top1": scores.argmax(2), "text_to_image_top1": scores.argmax(1)}
    return {name: float((rows == torch.arange(_GROUP)).double().mean()) for name, rows in found.items()}
