"""CLIP by open_clip, for CLIP-I, CLIP-T and zero-shot judges: always trained weights, never a silent download."""

import logging
import os
import pickle
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Literal

import open_clip
import torch
from huggingface_hub import try_to_load_from_cache
from jaxtyping import Float
from open_clip.constants import HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME
from open_clip.transform import PreprocessCfg, image_transform_v2
from open_clip.transformer import ResidualAttentionBlock
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from difflens.judges.faces import as_photographs
from difflens.judges.weights import OnDemand, find_weights
from difflens.models.base import tensors_fingerprint, weights_fingerprint
from difflens.models.devices import check_device, quietly
from difflens.models.tensor_files import read_tensors, tensor_shapes
from difflens.store.fingerprints import fingerprint

Tower = Literal["images", "texts"]

NOT_WEIGHTS = {"input_resolution", "context_length", "vocab_size"}
"""Numbers that OpenAI's archives keep among the weights."""

# What torch, pickle, safetensors and open_clip raise when a file is cut off or holds something else.
DAMAGE = (RuntimeError, OSError, KeyError, ValueError, EOFError, pickle.UnpicklingError, SafetensorError)


class ClipWeights:
    """A file of weights for one of open_clip's models.

    Whether the file fits is checked at once, without holding its tensors where they bear the network's own names and
    shapes; anything that open_clip has to convert is loaded whole by open_clip itself.

    Args:
        model: open_clip's name.
        path: the file.
        tag: open_clip's description of the published weights, which decides the activation function and the preparation
            of images; empty for a file by name.

    Raises:
        ValueError: the file holds no weights of this model.
    """

    def __init__(self, model: str, path: Path, tag: Mapping[str, Any]) -> None:
        self.model, self.path, self.tag = model, path, tag
        try:
            network = self._untrained()
            self.preparation: dict[str, Any] = network.visual.preprocess_cfg  # type: ignore[assignment, union-attr]
            self._fits = self._holds_exactly(network)
            self.fingerprint = self._fingerprint(network)
        except DAMAGE as error:
            reason = " ".join(str(error).split())
            raise ValueError(f"{str(path)!r} holds no weights of open_clip's {model}: {reason}") from error

    def read(self, tower: Tower, *, device: torch.device, narrow: bool = True) -> nn.Module:
        """The network with one tower's weights, and none in the place of the other's.

        On a CPU the image tower's attention blocks are kept in half precision where that loses no bit, as with all of
        OpenAI's weights, and are widened to float32 while they run: the same numbers in half the memory. Not `narrow`: they
        are kept in float32, for gradients.
        """
        network = self._untrained() if self._fits else self._whole()
        # Attention blocks hold almost all of the tower's weights.
        narrow = narrow and tower == "images" and device.type == "cpu"
        blocks = [block for block in network.visual.modules() if narrow and isinstance(block, ResidualAttentionBlock)]  # type: ignore[union-attr]
        narrowed = {id(parameter) for block in blocks for parameter in block.parameters()}
        # The parameters and buffers themselves, not detached.
        places = network.state_dict(keep_vars=True)
        dtypes = {name: place.dtype for name, place in places.items()}
        # The image tower's tensors have this prefix in all of open_clip's models.
        wanted = [name for name in places if name.startswith("visual.") == (tower == "images")]
        whole = {} if self._fits else {name: places[name].data for name in wanted}
        # Both towers give their memory up before one is filled, so that never more than one is held. An empty
        # place also fails where random numbers would go unnoticed.
        for place in places.values():
            place.data = place.data.new_empty(0)
        for name, value in read_tensors(self.path, wanted) if self._fits else whole.items():
            keep = id(places[name]) in narrowed
            places[name].data = _narrowest(value) if keep else value.to(dtypes[name])
        for block in blocks:
            _widen_while_running(block)
        return network.eval().requires_grad_(False).to(device)

    def _untrained(self) -> nn.Module:
        """The architecture, its memory reserved but not written to: the system gives it out when weights come."""
        with _Untouched(), _no_warning():
            # `pretrained_text` is on by default and would fetch the weights of a text tower from the hub.
            network: nn.Module = open_clip.create_model(
                self.model, load_weights=False, pretrained_text=False, **self._conventions()
            )
        return network

    def _whole(self) -> nn.Module:
        # Without `require_pretrained` open_clip goes on with random weights after a mere warning.
        network: nn.Module = open_clip.create_model(
            self.model, pretrained=str(self.path), require_pretrained=True, weights_only=True, **self._conventions()
        )
        return network

    def _conventions(self) -> dict[str, Any]:
        # OpenAI's weights were trained with another activation than the same architecture's default; loaded
        # without it they give no error and other embeddings.
        return {"force_quick_gelu": self.tag.get("quick_gelu", False), "force_preprocess_cfg": dict(self.tag)}

    def _holds_exactly(self, network: nn.Module) -> bool:
        try:
            found = tensor_shapes(self.path)
        except ValueError:
            return False
        own = {name: tuple(value.shape) for name, value in network.state_dict().items()}
        return {name: shape for name, shape in found.items() if name not in NOT_WEIGHTS} == own

    def _fingerprint(self, network: nn.Module) -> str:
        """As of the network with its weights."""
        if not self._fits:
            return weights_fingerprint(self._whole())
        dtypes = {name: value.dtype for name, value in network.state_dict().items()}
        tensors = ((name, value.to(dtypes[name])) for name, value in read_tensors(self.path, sorted(dtypes)))
        return tensors_fingerprint(tensors, config={})


def _narrowest(value: Tensor) -> Tensor:
    """The same numbers in two bytes each where no bit is lost, else in float32."""
    for dtype in (torch.float16, torch.bfloat16):
        # Tried and compared: weights trained in half precision are often published in float32.
        narrow = value.to(dtype)
        if torch.equal(narrow.float(), value.float()):
            return narrow
    return value.float()


def _widen_while_running(block: nn.Module) -> None:
    """Give a block's parameters float32 values while it runs, as it would have had them all the time."""
    kept: list[tuple[nn.Parameter, Tensor]] = []

    def widen(module: nn.Module, _: object) -> None:
        kept.extend((parameter, parameter.data) for parameter in module.parameters())
        # Beside the narrow weights, only the block that runs is in memory in float32.
        for parameter, values in kept:
            parameter.data = values.float()

    def narrow(_: nn.Module, __: object, ___: object) -> None:
        for parameter, values in kept:
            parameter.data = values
        kept.clear()

    block.register_forward_pre_hook(widen)
    # After an exception too, or the wide copies would stay and be taken for the kept ones next time.
    block.register_forward_hook(narrow, always_call=True)


class _Untouched(TorchFunctionMode):
    """In the block no parameter is given random initial values: weights from a file take their place."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        drawn = func in (Tensor.normal_, Tensor.uniform_) or getattr(func, "__module__", "") == "torch.nn.init"
        # Initialisers return the tensor that they fill, which is their first argument.
        return (*args, *(kwargs or {}).values())[0] if drawn else func(*args, **(kwargs or {}))


@contextmanager
def _no_warning() -> Iterator[None]:
    """In the block nobody warns, as open_clip does through the root logger of a network without weights."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


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
        # A backward pass meets the weights after a block has run, when narrow ones are narrow again.
        self._wide = OnDemand(partial(weights.read, "images", device=self.device, narrow=False))
        self._preparation = PreprocessCfg(**weights.preparation)
        self._prepare: Any = image_transform_v2(self._preparation, is_train=False)
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
        # All that is not the image tower's is read with the texts, this number included.
        return float(self.text_network.logit_scale.exp())  # type: ignore[operator, union-attr]

    def free(self) -> None:
        """Give the memory back; what is needed again is read again."""
        for tower in (self._images, self._texts, self._wide):
            tower.free()

    @torch.inference_mode()
    def embed_photographs(self, photographs: Sequence[Image.Image]) -> Float[Tensor, "n embed"]:
        """Unit-norm float32 embeddings of RGB images."""
        pixels = torch.stack([self._prepare(photograph) for photograph in photographs])
        return torch.cat([self._encode(self.network.encode_image, x) for x in torch.split(pixels, self.batch)])

    def embed_images(self, images: Float[Tensor, "n channels h w"]) -> Float[Tensor, "n embed"]:
        """Unit-norm float32 embeddings of images in [0, 1]."""
        # Split before they become photographs, so that only one batch exists in both forms.
        return torch.cat([self.embed_photographs(as_photographs(x)) for x in torch.split(images, self.batch)])

    def embed_pixels(self, images: Float[Tensor, "n channels h w"]) -> Float[Tensor, "n embed"]:
        """The same as `embed_images` of square images, with gradients: resized by torch and not as photographs."""
        self._images.free()
        self._texts.free()
        network, size = self._wide(), self._preparation.size
        pixels = images.to(self.device).float()
        side = (size, size) if isinstance(size, int) else tuple(size)
        if pixels.shape[-2:] != side:
            pixels = nn.functional.interpolate(pixels, size=side, mode="bicubic", antialias=True)
        mean, std = (
            torch.tensor(part).to(pixels)[:, None, None] for part in (self._preparation.mean, self._preparation.std)
        )
        embeddings: Tensor = network.encode_image((pixels - mean) / std, normalize=True)  # type: ignore[operator, union-attr]
        return embeddings.float()

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
    # Such a model may have its weights here and would still ask the hub for its tokenizer.
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
    # `owner/name/file`, or `owner/name/` where the file has one of the hub's two usual names.
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
