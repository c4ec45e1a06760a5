"""CLIP's weights by open_clip: the one tower that is needed, read tensor by tensor, never in memory twice."""

import logging
import pickle
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import open_clip
import torch
from open_clip.transformer import ResidualAttentionBlock
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from difflens.models.base import tensors_fingerprint, weights_fingerprint
from difflens.models.tensor_files import read_tensors, tensor_shapes

Tower = Literal["images", "texts"]

VISION = "visual."
"""Prefix of the image tower's tensors in all of open_clip's models."""

NOT_WEIGHTS = {"input_resolution", "context_length", "vocab_size"}
"""Numbers that OpenAI's archives keep among the weights."""

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

    def read(self, tower: Tower, *, device: torch.device) -> nn.Module:
        """The network with one tower's weights, and none in the place of the other's.

        On a CPU the image tower's attention blocks are kept in half precision where that loses no bit, as with all of
        OpenAI's weights, and are widened to float32 while they run: the same numbers in half the memory.
        """
        network = self._untrained() if self._fits else self._whole()
        narrow = list(_blocks(network)) if tower == "images" and device.type == "cpu" else []
        narrowed = {id(parameter) for block in narrow for parameter in block.parameters()}
        places = dict(_places(network))
        dtypes = {name: place.dtype for name, place in places.items()}
        wanted = [name for name in places if _serves(name, tower)]
        whole = {} if self._fits else {name: places[name].data for name in wanted}
        for place in places.values():
            place.data = place.data.new_empty(0)
        for name, value in read_tensors(self.path, wanted) if self._fits else whole.items():
            keep = id(places[name]) in narrowed
            places[name].data = _narrowest(value) if keep else value.to(dtypes[name])
        for block in narrow:
            _widen_while_running(block)
        return network.eval().requires_grad_(False).to(device)

    def _untrained(self) -> nn.Module:
        """The architecture, its memory reserved but not written to: the system gives it out when weights come."""
        with _Untouched(), _no_warning():
            network: nn.Module = open_clip.create_model(
                self.model, load_weights=False, pretrained_text=False, **self._conventions()
            )
        return network

    def _whole(self) -> nn.Module:
        network: nn.Module = open_clip.create_model(
            self.model, pretrained=str(self.path), require_pretrained=True, weights_only=True, **self._conventions()
        )
        return network

    def _conventions(self) -> dict[str, Any]:
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


def _serves(name: str, tower: Tower) -> bool:
    return name.startswith(VISION) == (tower == "images")


def _places(network: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters and buffers that are saved with a network, by name."""
    saved = network.state_dict().keys()
    for group in (network.named_parameters(), network.named_buffers()):
        yield from ((name, place) for name, place in group if name in saved)


def _blocks(network: nn.Module) -> Iterator[nn.Module]:
    """Attention blocks of the image tower, which hold almost all of its weights."""
    vision: Any = network.visual
    yield from (module for module in vision.modules() if isinstance(module, ResidualAttentionBlock))


def _narrowest(value: Tensor) -> Tensor:
    """The same numbers in two bytes each where no bit is lost, else in float32."""
    for dtype in (torch.float16, torch.bfloat16):
        narrow = value.to(dtype)
        if torch.equal(narrow.float(), value.float()):
            return narrow
    return value.float()


def _widen_while_running(block: nn.Module) -> None:
    """Give a block's parameters float32 values while it runs, as it would have had them all the time."""
    kept: list[tuple[nn.Parameter, Tensor]] = []

    def widen(module: nn.Module, _: object) -> None:
        kept.extend((parameter, parameter.data) for parameter in module.parameters())
        for parameter, values in kept:
            parameter.data = values.float()

    def narrow(_: nn.Module, __: object, ___: object) -> None:
        for parameter, values in kept:
            parameter.data = values
        kept.clear()

    block.register_forward_pre_hook(widen)
    block.register_forward_hook(narrow, always_call=True)


class _Untouched(TorchFunctionMode):
    """In the block no parameter is given random initial values: weights from a file take their place."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        drawn = func in (Tensor.normal_, Tensor.uniform_) or getattr(func, "__module__", "") == "torch.nn.init"
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
