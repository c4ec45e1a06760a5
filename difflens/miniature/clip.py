"""The miniature's CLIP: a small open_clip model of drawn faces and their captions."""

import json
from collections.abc import Iterator

import open_clip
import torch
from jaxtyping import Float
from torch import Tensor, nn

from difflens.locations import locate
from difflens.miniature.captions import ByteTokenizer
from difflens.miniature.faces import SIZE
from difflens.models.base import weights_fingerprint
from difflens.models.precision import check_device

MEAN, STD = 0.5, 0.5
"""Images in [0, 1] are standardised by these before they enter the vision tower."""


class ClipModel:
    """Image and text embeddings of one space, and image features for a Fréchet distance.

    Called on images it returns what open_clip's vision tower pools, before the projection into the shared space and not
    normalised: [N, dim]. The projection keeps what captions tell; a distance between sets of images should see more.
    """

    name, resize = "miniature-clip", "bilinear"

    def __init__(self, network: open_clip.CLIP, tokenizer: ByteTokenizer, *, batch: int = 256) -> None:
        self.network, self.tokenizer, self.batch = network, tokenizer, batch
        self.dim: int = network.visual.proj.shape[0]
        self.fingerprint = weights_fingerprint(network)

    @torch.inference_mode()
    def embed_images(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n embed"]:
        """Unit-norm float32 embeddings of images in [0, 1]."""
        return torch.cat([self.network.encode_image(x, normalize=True) for x in self._prepared(images)]).float()

    @torch.inference_mode()
    def embed_texts(self, texts: list[str]) -> Float[Tensor, "n embed"]:
        """Unit-norm float32 embeddings of texts."""
        tokens = self.tokenizer(texts).to(self.network.logit_scale.device)
        return torch.cat([self.network.encode_text(x, normalize=True) for x in torch.split(tokens, self.batch)]).float()

    @torch.inference_mode()
    def __call__(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n dim"]:
        """Features [N, dim] (float32) of images in [0, 1]."""
        options = {"indices": 1, "intermediates_only": True, "normalize_intermediates": True, "output_fmt": "NLC"}
        parts = [self.network.visual.forward_intermediates(x, **options) for x in self._prepared(images)]
        return torch.cat([part["image_intermediates"][-1].mean(1) for part in parts]).float()

    def _prepared(self, images: Tensor) -> Iterator[Tensor]:
        for chunk in torch.split(images.to(self.network.logit_scale.device).float(), self.batch):
            if chunk.shape[-2:] != (SIZE, SIZE):
                chunk = nn.functional.interpolate(chunk, size=(SIZE, SIZE), mode=self.resize, antialias=True)
            yield (chunk - MEAN) / STD


def load_clip(folder: str, *, device: str = "cpu") -> ClipModel:
    """The CLIP saved in `folder`, built by open_clip itself, in float32 and evaluation mode.

    Raises:
        ValueError: the folder holds no such model, or there is no such device.
    """
    path = locate(folder)
    if not (path / "open_clip_config.json").is_file():
        raise ValueError(f"{path} holds no open_clip model; train it: `difflens task=miniature task.models=[clip]`.")
    text = json.loads((path / "open_clip_config.json").read_text())["model_cfg"]["text_cfg"]
    network = open_clip.create_model(f"local-dir:{path}", device=check_device(device), require_pretrained=True)
    # The words come from the file: their ids belong to the weights, whatever captions say by now.
    tokenizer = ByteTokenizer(text["tokenizer_kwargs"]["words"], text["context_length"])
    return ClipModel(network.eval().requires_grad_(False), tokenizer)
