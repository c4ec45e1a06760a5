"""The miniature's two judges: small classifiers of different architecture that read every factor of a drawn face."""

import json
from collections.abc import Iterable, Mapping
from itertools import pairwise

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from difflens.miniature.faces import FACTORS, SIZE, WORKPLACE_FACTORS
from difflens.models.base import weights_fingerprint
from difflens.store.locations import locate


class ConvolutionalJudge(nn.Module):
    """A plain strided convolutional network with one linear head per factor, reading images [N, 3, 32, 32] in [0, 1]."""

    def __init__(self, factors: Iterable[str] = FACTORS, *, width: int = 24) -> None:
        super().__init__()
        widths = (3, width, 2 * width, 4 * width)
        self.body = nn.Sequential(
            *(
                nn.Sequential(
                    nn.Conv2d(a, b, 3, 2, 1), nn.GroupNorm(8, b), nn.SiLU(), nn.Conv2d(b, b, 3, 1, 1), nn.SiLU()
                )
                for a, b in pairwise(widths)
            ),
            nn.Flatten(),
            nn.Linear(4 * width * 16, 128),
            nn.SiLU(),
        )
        self.heads = _heads(128, factors)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Images [N, 3, 32, 32] in [0, 1] → factor → logits [N, C]."""
        features = self.body(images * 2 - 1)
        return {name: head(features) for name, head in self.heads.items()}


class MixerJudge(nn.Module):
    """A patch mixer (Tolstikhin et al., 2021) with one linear head per factor, reading images [N, 3, 32, 32] in [0, 1]."""

    def __init__(self, factors: Iterable[str] = FACTORS, *, width: int = 96, depth: int = 4) -> None:
        super().__init__()
        tokens = 64
        self.patches = nn.Conv2d(3, width, 4, 4)
        self.over_tokens = nn.ModuleList(
            nn.Sequential(nn.Linear(tokens, 128), nn.GELU(), nn.Linear(128, tokens)) for _ in range(depth)
        )
        self.over_channels = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
            for _ in range(depth)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(depth + 1))
        self.heads = _heads(width, factors)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Images [N, 3, 32, 32] in [0, 1] → factor → logits [N, C]."""
        x = self.patches(images * 2 - 1).flatten(2).mT
        # Not strict: there is one norm more than blocks, for the features.
        for tokens, channels, norm in zip(self.over_tokens, self.over_channels, self.norms, strict=False):
            x = x + tokens(norm(x).mT).mT
            x = x + channels(x)
        features = self.norms[-1](x).mean(1)
        return {name: head(features) for name, head in self.heads.items()}


def _heads(width: int, factors: Iterable[str]) -> nn.ModuleDict:
    return nn.ModuleDict({name: nn.Linear(width, len(WORKPLACE_FACTORS[name])) for name in factors})


# Two kinds, so that the judge that scores does not share the blind spots of the one that labels.
ARCHITECTURES: Mapping[str, type[nn.Module]] = {"convolutional": ConvolutionalJudge, "mixer": MixerJudge}


class MiniatureJudge:
    """A trained judge as `difflens.judges.protocol.Judge`: images in [0, 1] → factor → logits [N, C].

    Images of another size than 32 × 32 are brought to it first.
    """

    drawn_size = SIZE

    def __init__(self, network: nn.Module, name: str) -> None:
        self.network, self.name = network, name
        heads = network.get_submodule("heads").named_children()
        self.classes = {factor: WORKPLACE_FACTORS[factor] for factor, _ in heads}
        self.fingerprint = weights_fingerprint(network)

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        """Logits of every factor, in batches of bounded memory."""
        parts = [self.network(_resized(chunk)) for chunk in images.split(256)]
        return {name: torch.cat([part[name] for part in parts]).float() for name in self.classes}


def _resized(images: Tensor) -> Tensor:
    if images.shape[-2:] == (SIZE, SIZE):
        return images
    return nn.functional.interpolate(images, size=(SIZE, SIZE), mode="bilinear", antialias=True)


def load_judge(folder: str) -> MiniatureJudge:
    """The judge saved in `folder`, in float32 and evaluation mode (ValueError: there is none)."""
    path = locate(folder)
    config = json.loads((path / "config.json").read_text())
    network = ARCHITECTURES[config["architecture"]](config["factors"])
    # Shipped in half precision, which CPUs compute slowly if at all.
    network.load_state_dict({name: value.float() for name, value in load_file(path / "judge.safetensors").items()})
    return MiniatureJudge(network.eval().requires_grad_(False), path.name)
