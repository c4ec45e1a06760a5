"""One judge of several: each reads its own attributes off the same faces, which are looked for once."""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor  # type: ignore[import-untyped]

from difflens.judges.faces import FaceCropper, WholeImage, as_photographs
from difflens.judges.protocol import Judge
from difflens.judges.weights import free
from difflens.store.fingerprints import fingerprint


class Together:
    """Judges of different attributes as one `Judge`; an image without a face has rows of NaN.

    Args:
        judges: by any names; they see the face as their whole image.
        faces: what of an image they see.
        name: in tables; None takes the judges' names with what each reads.

    Raises:
        ValueError: there is no judge, or two read the same attribute.
    """

    def __init__(
        self, judges: Mapping[str, Judge], *, faces: FaceCropper | None = None, name: str | None = None
    ) -> None:
        self._judges, self.faces = tuple(judges.values()), faces or WholeImage()
        read = [attribute for judge in self._judges for attribute in judge.classes]
        if not read or (twice := sorted({attribute for attribute in read if read.count(attribute) > 1})):
            raise ValueError(
                f"several judges together are at least one, and each attribute is read by one of them, got {list(judges)}"
                + (f", of which more than one reads {', '.join(twice)}." if read else ".")
            )
        self.classes: Mapping[str, tuple[str, ...]] = {a: c for judge in self._judges for a, c in judge.classes.items()}
        self.not_validated = tuple(a for judge in self._judges for a in getattr(judge, "not_validated", ()))
        self.name = name or ", ".join(f"{judge.name} ({', '.join(judge.classes)})" for judge in self._judges)
        self.fingerprint = fingerprint(
            {"judges": [judge.fingerprint for judge in self._judges], "faces": self.faces.name}
        )

    @torch.inference_mode()
    def __call__(self, images: Float[Tensor, "images channels height width"]) -> dict[str, Tensor]:
        """See `Judge`."""
        answers = {a: torch.full((len(images), len(classes)), torch.nan) for a, classes in self.classes.items()}
        crops = ((row, self.faces(as_photographs(images[row : row + 1])[0])) for row in range(len(images)))
        # Crops differ in size where faces do, and judges take images of one size at once.
        sizes: dict[tuple[int, int], list[tuple[int, Tensor]]] = {}
        for row, crop in crops:
            if crop is not None:
                sizes.setdefault(crop.size, []).append((row, pil_to_tensor(crop.convert("RGB"))))
        for faces in sizes.values():
            rows, pixels = [row for row, _ in faces], torch.stack([face for _, face in faces]).float() / 255
            for judge in self._judges:
                for attribute, logits in judge(pixels).items():
                    answers[attribute][rows] = logits.float().cpu()
        return {attribute: rows.to(images.device) for attribute, rows in answers.items()}

    def free(self) -> None:
        """Give the networks' memory back."""
        for judge in self._judges:
            free(judge)
