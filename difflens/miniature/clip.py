"""The miniature's CLIP: a small open_clip model of drawn faces and their captions."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from difflens.miniature.captions import ByteTokenizer
from difflens.miniature.faces import SIZE
from difflens.models.devices import check_device
from difflens.store.files import sha256_of
from difflens.store.fingerprints import fingerprint
from difflens.store.locations import locate

if TYPE_CHECKING:
    import open_clip

MEAN, STD = 0.5, 0.5
"""Images in [0, 1] are standardised by these before they enter the vision tower."""


class ClipModel:
    """Image and text embeddings of one space, and image features for a Fréchet distance.

    Called on images it returns what open_clip's vision tower pools, before the projection into the shared space and not
    normalised: [N, dim]. The projection keeps what captions tell; a distance between sets of images should see more.

    Args:
        build: gives the network, when it is first needed: open_clip takes seconds to import, and a run that reuses its
            metrics needs no more than the fingerprint.
        tokenizer: texts → token ids [N, length].
        fingerprint: of configuration and weights.
        batch: images or texts at once.
    """

    name, resize, drawn_size = "miniature-clip", "bilinear", SIZE

    def __init__(
        self, build: Callable[[], open_clip.CLIP], tokenizer: ByteTokenizer, *, fingerprint: str = "", batch: int = 256
    ) -> None:
        self._build, self.tokenizer, self.fingerprint, self.batch = build, tokenizer, fingerprint, batch

    @cached_property
    def network(self) -> open_clip.CLIP:
        """The open_clip model."""
        return self._build()

    @property
    def dim(self) -> int:
        """Length of the features."""
        return int(self.network.visual.proj.shape[0])

    @torch.inference_mode()
    def embed_images(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n embed"]:
        """Unit-norm float32 embeddings of images in [0, 1]."""
        return self.embed_pixels(images).cpu()

    def embed_pixels(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n embed"]:
        """The same as `embed_images`, with gradients."""
        parts = [self.network.encode_image(x, normalize=True) for x in self._prepared(images)]
        return torch.cat(parts).float()

    @torch.inference_mode()
    def embed_texts(self, texts: list[str]) -> Float[Tensor, "n embed"]:
        """Unit-norm float32 embeddings of texts."""
        tokens = self.tokenizer(texts).to(self.network.logit_scale.device)
        parts = [self.network.encode_text(x, normalize=True) for x in torch.split(tokens, self.batch)]
        return torch.cat(parts).float().cpu()

    @torch.inference_mode()
    def __call__(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n dim"]:
        """Features [N, dim] (float32) of images in [0, 1]."""
        # The last block alone, normalised, its tokens averaged: what open_clip's own pooling hands to the projection.
        options = {"indices": 1, "intermediates_only": True, "normalize_intermediates": True, "output_fmt": "NLC"}
        parts = [self.network.visual.forward_intermediates(x, **options) for x in self._prepared(images)]
        return torch.cat([part["image_intermediates"][-1].mean(1) for part in parts]).float().to(images.device)

    def _prepared(self, images: Tensor) -> Iterator[Tensor]:
        for chunk in torch.split(images.to(self.network.logit_scale.device).float(), self.batch):
            if chunk.shape[-2:] != (SIZE, SIZE):
                # Without antialiasing a reduced image has patterns that no drawn face has.
                chunk = nn.functional.interpolate(chunk, size=(SIZE, SIZE), mode=self.resize, antialias=True)
            yield (chunk - MEAN) / STD


def load_clip(folder: str, *, device: str = "cpu") -> ClipModel:
    """The CLIP saved in `folder`, built by open_clip itself, in float32 and evaluation mode.

    Raises:
        ValueError: the folder holds no such model, or there is no such device.
    """
    path, device = locate(folder), str(check_device(device))
    config, weights = path / "open_clip_config.json", path / "open_clip_model.safetensors"
    if not (config.is_file() and weights.is_file()):
        raise ValueError(f"{path} holds no open_clip model; train it: `difflens task=miniature task.models=[clip]`.")
    try:
        # The header alone: a broken file is told before the first stage, and no network is built for it.
        safe_open(weights, framework="pt")
    except SafetensorError as error:
        raise ValueError(f"{weights} cannot be read ({error}); it is no safetensors file, or half of one.") from error
    text = json.loads(config.read_text())["model_cfg"]["text_cfg"]
    # The words come from the file: their ids belong to the weights, whatever captions say by now.
    tokenizer = ByteTokenizer(text["tokenizer_kwargs"]["words"], text["context_length"])
    found = fingerprint({"config": sha256_of(config), "weights": sha256_of(weights)})
    return ClipModel(lambda: _load(path, device), tokenizer, fingerprint=found)


def _load(path: Path, device: str) -> open_clip.CLIP:
    import open_clip

    # Whoever asks first may be in inference mode, whose tensors would be of no use outside.
    with torch.inference_mode(False):
        network = open_clip.create_model(f"local-dir:{path}", device=device, require_pretrained=True)
    return network.eval().requires_grad_(False)
