"""Networks beside a model under study: copied once to the device it runs on, for what happens while it samples."""

from copy import deepcopy
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import nn

Network = TypeVar("Network", bound=nn.Module)

_copies: WeakKeyDictionary[nn.Module, dict[torch.device, Any]] = WeakKeyDictionary()


def placed(network: Network, device: torch.device) -> Network:
    """The network on a device: itself where it lies there, else a copy, made at the first call and kept as long as itself.

    The network stays where it is, for those who read stored activations with it. It must not change any more.
    """
    tensors = [*network.parameters(), *network.buffers()]
    if all(tensor.device == device for tensor in tensors):
        return network
    copies = _copies.setdefault(network, {})
    if device not in copies:
        # Whoever asks first may be in inference mode, whose tensors would be of no use outside.
        with torch.inference_mode(False):
            moved: dict[int, Any] = {id(tensor): _moved(tensor, device) for tensor in tensors}
            copies[device] = deepcopy(network, moved)
    return copies[device]


def _moved(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    there = tensor.detach().to(device)
    return nn.Parameter(there, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else there
