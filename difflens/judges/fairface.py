"""FairFace (Kärkkäinen & Joo, 2021), the paper's judge of gender, age and race."""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn
from torchvision.models import resnet34  # type: ignore[import-untyped]
from torchvision.transforms import v2  # type: ignore[import-untyped]

from difflens.judges.faces import FaceCropper, WholeImage, read_faces
from difflens.judges.weights import OnDemand, find_weights, load_weights
from difflens.metrics.functional import OUTPUTS
from difflens.models.base import weights_fingerprint
from difflens.models.devices import check_device
from difflens.store.fingerprints import fingerprint

GROUPS: Mapping[str, Mapping[str, Sequence[int]]] = {
    "gender": {"male": (7,), "female": (8,)},
    "age": {"young": (9, 10, 11), "adult": (12, 13, 14, 15), "old": (16, 17)},
    "race": {"White": (0,), "Black": (1,), "Asian": (3, 4), "Indian": (5,), "other": (2, 6)},
}
"""Attribute → class → outputs: ages 0-19, 20-59, 60+; Asian is East and Southeast, other Latino and Middle Eastern."""

PROTOCOLS = ("mapped", "official")
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def group_outputs(outputs: Float[Tensor, "images outputs"]) -> dict[str, Tensor]:
    """Attribute → logits [N, C] of the classes in `GROUPS`: a class's probability is the sum of its outputs'.

    Raises:
        ValueError: there are other than 18 outputs.
    """
    if outputs.shape[1] != OUTPUTS:
        raise ValueError(f"FairFace has {OUTPUTS} outputs, got {list(outputs.shape)}.")
    return {
        # softmax over log Σ exp gives each class exactly its outputs' summed probability, within its attribute alone.
        name: torch.stack([outputs[:, list(members)].logsumexp(1) for members in groups.values()], dim=1)
        for name, groups in GROUPS.items()
    }


class FairFaceJudge:
    """FairFace as a `Judge`; an image without a face has rows of NaN.

    Args:
        network: images [N, 3, 224, 224], standardised → [N, 18]; or what builds it when it is needed.
        faces: what of an image the network sees.
        protocol: `mapped`: what tables print is measured on the classes of `GROUPS`. `official`: they print
            `official_discrepancies` of `outputs` (METHOD section 9). A call answers the same under both.
        device: where the network runs.
        batch: images at once.

    Raises:
        ValueError: the protocol is unknown, or there is no such device.
    """

    name = "fairface"
    classes: Mapping[str, tuple[str, ...]] = {name: tuple(groups) for name, groups in GROUPS.items()}

    def __init__(
        self,
        network: nn.Module | OnDemand,
        *,
        faces: FaceCropper | None = None,
        protocol: str = "mapped",
        device: str = "cpu",
        batch: int = 16,
    ) -> None:
        if protocol not in PROTOCOLS:
            raise ValueError(f"FairFace's protocol is one of {', '.join(PROTOCOLS)}, got {protocol!r}.")
        self._network = network if isinstance(network, OnDemand) else OnDemand(lambda: network)
        self.faces, self.protocol = faces or WholeImage(), protocol
        self.device, self.batch = check_device(device), batch
        # The protocol too: under `official` the 18 outputs are stored beside the answers.
        described = {"weights": weights_fingerprint(self._network()), "faces": self.faces.name, "protocol": protocol}
        self.fingerprint = fingerprint(described)
        self._prepare = v2.Compose(
            [
                # To a square, as the released code does, not by the shorter side as is usual for ImageNet's networks.
                v2.Resize((224, 224), interpolation=v2.InterpolationMode.BILINEAR),
                v2.PILToTensor(),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize(MEAN, STD),
            ]
        )

    @torch.inference_mode()
    def outputs(self, images: Float[Tensor, "images channels height width"]) -> Float[Tensor, "images outputs"]:
        """The network's own outputs [N, 18] for images in [0, 1]."""
        return read_faces(images, self.faces, self._read, width=OUTPUTS, batch=self.batch)

    def __call__(self, images: Float[Tensor, "images channels height width"]) -> dict[str, Tensor]:
        """See `Judge`."""
        return group_outputs(self.outputs(images))

    def free(self) -> None:
        """Give the network's memory back."""
        self._network.free()

    def _read(self, photographs: Sequence[Image.Image]) -> Tensor:
        # Moved here, since after `free` the network is built anew, on the CPU.
        network = self._network().to(self.device)
        answer: Tensor = network(torch.stack([self._prepare(p) for p in photographs]).to(self.device))
        return answer


def load_fairface(
    weights: str,
    *,
    obtain: str,
    sha256: str | None = None,
    faces: FaceCropper | None = None,
    protocol: str = "mapped",
    device: str = "cpu",
    batch: int = 16,
) -> FairFaceJudge:
    """The judge of a user's `res34_fair_align_multi_7_20190809.pt`; the other arguments are `FairFaceJudge`'s.

    Raises:
        ValueError: the file is absent, has another SHA-256 than asked for, or holds another network.
    """
    path = find_weights(weights, obtain=obtain, sha256=sha256)
    network = OnDemand(lambda: load_weights(resnet34(weights=None, num_classes=OUTPUTS), path))
    judge = FairFaceJudge(network, faces=faces, protocol=protocol, device=device, batch=batch)
    judge.free()  # it was looked at; images may be long in coming
    return judge
