"""CLIP by open_clip, for CLIP-I, CLIP-T and zero-shot judges: always trained weights, never a silent download."""

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import open_clip
import torch
from huggingface_hub import try_to_load_from_cache
from jaxtyping import Float
from open_clip.constants import HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from torch import Tensor, nn

from difflens.judges.clip_weights import ClipWeights
from difflens.judges.pixels import as_photographs
from difflens.judges.weights import OnDemand, find_weights
from difflens.models.devices import check_device, quietly
from difflens.store.fingerprints import fingerprint

SUFFIXES = (".safetensors", ".bin", ".pt", ".pth")


class OpenClipModel:
    """Image and text embeddings of one space, with the preparation of images that the model was trained with.

    One tower is in memory at a time, read when it is first asked for.

    Args:
        weights: of a model of open_clip.
        tokenizer: texts → token ids [N, length].
        name: what the model is called in tables.
        device: where the network runs.
        batch: images or texts at once.

    Raises:
        ValueError: there is no such device.
    """

    def __init__(
        self, weights: ClipWeights, tokenizer: Any, *, name: str, device: str = "cpu", batch: int = 64
    ) -> None:
        self.tokenizer, self.name, self.device, self.batch = tokenizer, name, check_device(device), batch
        self._images = OnDemand(partial(weights.read, "images", device=self.device))
        self._texts = OnDemand(partial(weights.read, "texts", device=self.device))
        self._prepare: Any = image_transform_v2(PreprocessCfg(**weights.preparation), is_train=False)
        described = {"weights": weights.fingerprint, "preparation": _plain(weights.preparation), "name": name}
        self.fingerprint = fingerprint(described)

    @property
    def network(self) -> nn.Module:
        """The network with its image tower."""
        self._texts.free()
        return self._images()

    @property
    def text_network(self) -> nn.Module:
        """The network with all but its image tower."""
        self._images.free()
        return self._texts()

    @property
    def scale(self) -> float:
        """What cosines are multiplied by before a softmax."""
        return float(self.text_network.logit_scale.exp())  # type: ignore[operator, union-attr]

    def free(self) -> None:
        """Give the memory back; what is needed again is read again."""
        self._images.free()
        self._texts.free()

    @torch.inference_mode()
    def embed_photographs(self, photographs: Sequence[Image.Image]) -> Float[Tensor, "n embed"]:
        """Unit-norm float32 embeddings of RGB images."""
        pixels = torch.stack([self._prepare(photograph) for photograph in photographs])
        return torch.cat([self._encode(self.network.encode_image, x) for x in torch.split(pixels, self.batch)])

    def embed_images(self, images: Float[Tensor, "n channels h w"]) -> Float[Tensor, "n embed"]:
        """Unit-norm float32 embeddings of images in [0, 1]."""
        return torch.cat([self.embed_photographs(as_photographs(x)) for x in torch.split(images, self.batch)])

    @torch.inference_mode()
    def embed_texts(self, texts: Sequence[str]) -> Float[Tensor, "n embed"]:
        """Unit-norm float32 embeddings of texts."""
        encode = self.text_network.encode_text
        return torch.cat([self._encode(encode, x) for x in torch.split(self.tokenizer(list(texts)), self.batch)])

    def _encode(self, encode: Any, batch: Tensor) -> Tensor:
        embeddings: Tensor = encode(batch.to(self.device), normalize=True)
        return embeddings.float().cpu()


def load_open_clip(
    model: str,
    *,
    pretrained: str,
    folder: str,
    sha256: str | None = None,
    download: bool = False,
    device: str = "cpu",
    batch: int = 64,
) -> OpenClipModel:
    """A trained model of open_clip.

    Args:
        model: open_clip's name, such as `ViT-L-14`.
        pretrained: open_clip's tag of the weights, such as `openai`, which also decides the activation function and the
            preparation of images; or a file, for which the name decides (OpenAI's weights: `ViT-L-14-quickgelu`).
        folder: where a tag's file is looked for, as `<model>-<tag>.safetensors` (or .bin, .pt, .pth), before the hub's
            cache.
        sha256: of the file, None to accept any.
        download: let open_clip fetch a tag's file, or a tokenizer, that is not there.
        device: see `OpenClipModel`.
        batch: see `OpenClipModel`.

    Raises:
        ValueError: open_clip has no such model or tag, or the weights are absent, another file or another network.
    """
    config = open_clip.get_model_config(model)
    if config is None:
        raise ValueError(f"open_clip has no model {model!r}; `open_clip.list_models()` names them, such as 'ViT-L-14'.")
    if not download and {"hf_model_name", "hf_tokenizer_name"} & config["text_cfg"].keys():
        raise ValueError(f"{model} reads texts with files of the hub; set download=true, or take one like 'ViT-L-14'.")
    tag = open_clip.get_pretrained_cfg(model, pretrained)
    path = _fetch(model, pretrained, tag) if tag and download else find_pretrained(model, pretrained, folder)
    found = find_weights(path, obtain=f"open_clip {model} {pretrained}", sha256=sha256)
    weights = ClipWeights(model, found, tag)
    name = f"{model} {pretrained if tag else found.name}"
    return OpenClipModel(weights, open_clip.get_tokenizer(model), name=name, device=device, batch=batch)


def _fetch(model: str, pretrained: str, tag: dict[str, Any]) -> str:
    try:
        with quietly():
            return str(open_clip.download_pretrained(tag))
    except OSError as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"open_clip's {model} {pretrained!r} could not be fetched ({reason}); try again where there is a network."
        ) from error


def find_pretrained(model: str, pretrained: str, folder: str) -> str:
    """Where the weights lie that a tag or a path names.

    Raises:
        ValueError: they are nowhere; the message says where they were looked for and how to get them.
    """
    tag = open_clip.get_pretrained_cfg(model, pretrained)
    if not tag:
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(model))
        return str(
            find_weights(pretrained, obtain=f"a checkpoint of open_clip's {model}; its tags are {tags or 'none'}")
        )
    stem = Path(folder).expanduser() / f"{model}-{pretrained}"
    repository, name = os.path.split(tag.get("hf_hub") or "")
    names = (name,) if name else (HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME)
    cached = [try_to_load_from_cache(repository, each) for each in names] if repository else []
    places = [f"{stem}{suffix}" for suffix in SUFFIXES] + [path for path in cached if isinstance(path, str)]
    found = [path for path in places if Path(path).is_file()]
    if not found:
        command = f"`hf download {repository} {names[0]}`" if repository else tag.get("url")
        raise ValueError(
            f"no weights of open_clip's {model} {pretrained!r} at '{stem}.safetensors' or in the hub's cache; "
            f"get them with {command}, put the file there, or set download=true."
        )
    return found[0]


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    return {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}
