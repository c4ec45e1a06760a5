"""The recipe of the miniature's CLIP: what it learns from drawn faces and their captions."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

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
from difflens.miniature.population import Population

_GROUP = 64


def value_counts(names: Iterable[str]) -> tuple[int, ...]:
    """How many values each of these factors has."""
    return tuple(len(WORKPLACE_FACTORS[name]) for name in names)


def face_numbers(factors: Mapping[str, Tensor]) -> Int[Tensor, "faces"]:
    """The number of every face among all distinct ones, the last factor varying fastest."""
    counts = value_counts(factors)
    return sum((index * math.prod(counts[i + 1 :]) for i, index in enumerate(factors.values())), torch.tensor(0))


def numbered_faces(numbers: Int[Tensor, "faces"], names: Sequence[str]) -> dict[str, Tensor]:
    """Factors `names` of the faces with these numbers; the inverse of `face_numbers`."""
    return dict(zip(names, torch.unravel_index(numbers, value_counts(names)), strict=True))


class ForgivingClipLoss(open_clip.ClipLoss):  # type: ignore[misc]
    """open_clip's contrastive loss in which a caption true of another image of the batch is no negative of that image.

    Args:
        true: [N, N], whether caption j is true of image i; its diagonal is.
    """

    def __init__(self, true: Bool[Tensor, "images captions"]) -> None:
        super().__init__()
        assert bool(true.diagonal().all())
        self._ignored = true & ~torch.eye(len(true), dtype=torch.bool)

    def get_logits(
        self, image_features: Tensor, text_features: Tensor, logit_scale: Tensor, logit_bias: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Logits per image and per text, minus infinity where a pair is ignored."""
        per_image, _ = super().get_logits(image_features, text_features, logit_scale, logit_bias)
        per_image = per_image.masked_fill(self._ignored, -math.inf)
        return per_image, per_image.T


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
        ValueError: fewer than 64 faces, or more than half of all, are held out.
    """

    name = "clip"

    def __init__(
        self,
        population: Population,
        *,
        embed_dim: int,
        vision: Mapping[str, object],
        text: Mapping[str, object],
        full: float,
        supervision: float,
        held_out: int,
    ) -> None:
        self.factors = population.factors
        total = math.prod(value_counts(self.factors))
        if not _GROUP <= held_out <= total // 2:
            raise ValueError(f"held_out must lie between {_GROUP} and {total // 2} faces, got {held_out}.")
        self.population, self.full, self.supervision = population, full, supervision
        self.tokenizer = ByteTokenizer(caption_words(self.factors))
        self.model_cfg: dict[str, object] = {
            "embed_dim": embed_dim,
            "vision_cfg": {**vision, "image_size": SIZE},
            "text_cfg": {
                **text,
                "vocab_size": ByteTokenizer.vocabulary,
                "context_length": self.tokenizer.context_length,
                "tokenizer_kwargs": {"words": list(self.tokenizer.words)},
            },
        }
        self._held_out = torch.randperm(total, generator=torch.Generator().manual_seed(4))[:held_out]
        self._drawn = torch.zeros(total, dtype=torch.bool)
        self._renders = torch.zeros(total, 3, SIZE, SIZE, dtype=torch.uint8)

    def build(self) -> open_clip.CLIP:
        """The open_clip model and a linear reader of the factors, which training uses and `export` leaves out."""
        network = open_clip.CLIP(**self.model_cfg)
        network.factor_reader = nn.Linear(network.visual.output_dim, sum(value_counts(self.factors)))
        return network

    def batch(self, step: int, settings: FitSettings) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The faces of a step, none held out, and what their captions mention: factor → [N] each.

        That a face has no profession is mentioned by none.
        """
        seed = settings.seed * 1_000_003 + step
        factors = self.population.sample(settings.batch, seed=seed)
        kept = ~torch.isin(face_numbers(factors), self._held_out)
        factors = {name: index[kept] for name, index in factors.items()}
        mentioned = draw_mentions(int(kept.sum()), seed=seed, full=self.full, factors=self.factors)
        if "profession" in factors:
            mentioned["profession"] &= factors["profession"] > 0
        return factors, mentioned

    def images(self, factors: Mapping[str, Tensor]) -> Float[Tensor, "faces 3 size size"]:
        """Renders in [0, 1], rounded to eight bits; each distinct face is drawn once and remembered."""
        numbers = face_numbers(factors)
        missing = torch.unique(numbers[~self._drawn[numbers]])
        for chunk in torch.split(missing, 256):
            self._renders[chunk] = (render(numbered_faces(chunk, self.factors)) * 255).round().byte()
        self._drawn[missing] = True
        return self._renders[numbers].float() / 255

    def loss(self, model: nn.Module, step: int, settings: FitSettings) -> Tensor:
        """The contrastive loss plus `supervision` times the cross-entropy of one reader on both kinds of embedding.

        A factor that neither tower expresses yet gives neither a gradient: contrast alone finds small details late.
        """
        seed = settings.seed * 1_000_003 + step
        factors, mentioned = self.batch(step, settings)
        images = _disturb(self.images(factors), torch.Generator().manual_seed(seed))
        tokens = self.tokenizer(caption(factors, seed=seed, mentioned=mentioned))
        pictured, told, scale = model((images - MEAN) / STD, tokens)
        # bfloat16 resolves logits near 100 to no better than 0.5.
        with torch.autocast("cpu", enabled=False):
            pictured, told = pictured.float(), told.float()
            contrast: Tensor = ForgivingClipLoss(describes(factors, mentioned))(pictured, told, scale.clamp_max(100))
            read = _reading_loss(model, pictured, factors) + _reading_loss(model, told, factors, mentioned)
        return contrast + self.supervision * read

    @torch.inference_mode()
    def report(self, model: nn.Module) -> dict[str, float]:
        """See `Recipe.report`."""
        factors = numbered_faces(self._held_out, self.factors)
        reader = ClipModel(lambda: model, self.tokenizer)
        images = reader.embed_images(self.images(factors))
        figures = _retrieval(images, reader.embed_texts(caption(factors, seed=3)))
        for name, index in factors.items():
            prompts = torch.stack([reader.embed_texts(wordings).mean(0) for wordings in zero_shot_prompts(name)])
            scores = images @ nn.functional.normalize(prompts, dim=1).T
            figures[f"{name}_zero_shot"] = float((scores.argmax(1) == index).double().mean())
        return figures

    def export(self, model: nn.Module, folder: Path) -> None:
        """See `Recipe.export`."""
        folder.mkdir(parents=True, exist_ok=True)
        preprocess = {"size": SIZE, "mean": [MEAN] * 3, "std": [STD] * 3, "interpolation": "bilinear"}
        config = {"model_cfg": self.model_cfg, "preprocess_cfg": preprocess}
        (folder / "open_clip_config.json").write_text(json.dumps(config, indent=2) + "\n")
        weights = folder / "open_clip_model.safetensors"
        state = {k: v.half().contiguous() for k, v in model.state_dict().items() if not k.startswith("factor_reader")}
        save_file(state, weights)
        weights.chmod(0o644)


def _retrieval(images: Tensor, texts: Tensor) -> dict[str, float]:
    """Top-1 retrieval of distinct faces, in groups of 64, in both directions."""
    groups = len(images) // _GROUP
    images, texts = (x[: groups * _GROUP].view(groups, _GROUP, -1) for x in (images, texts))
    scores = images @ texts.mT
    found = {"image_to_text_top1": scores.argmax(2), "text_to_image_top1": scores.argmax(1)}
    return {name: float((rows == torch.arange(_GROUP)).double().mean()) for name, rows in found.items()}


def _reading_loss(
    clip: open_clip.CLIP, features: Tensor, factors: Mapping[str, Tensor], mentioned: Mapping[str, Tensor] | None = None
) -> Tensor:
    """Cross-entropy of the factors (those mentioned) read from unit-norm features; their sum, averaged over faces."""
    read = clip.factor_reader(features * features.shape[1] ** 0.5).split(value_counts(factors), dim=1)
    losses = [nn.functional.cross_entropy(z, factors[k], reduction="none") for k, z in zip(factors, read, strict=True)]
    shown = 1 if mentioned is None else torch.stack([mentioned[name] for name in factors])
    return (torch.stack(losses) * shown).sum(0).mean()


def _disturb(images: Tensor, generator: torch.Generator) -> Tensor:
    """Slight brightness changes and noise, because the faces to be embedded are generated and never quite clean."""
    gain = 1 + 0.1 * (torch.rand(len(images), 1, 1, 1, generator=generator) - 0.5)
    sigma = 0.06 * torch.rand(len(images), 1, 1, 1, generator=generator)
    return (images * gain + sigma * torch.randn(images.shape, generator=generator)).clamp(0, 1)
