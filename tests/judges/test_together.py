"""Several judges are one: each reads its own attributes off faces that are looked for once."""

from typing import Any

import pytest
import torch
from PIL import Image

from difflens.judges.faces import as_photographs
from difflens.judges.protocol import Judge, faces_found, not_validated
from difflens.judges.together import Together
from difflens.vocabulary import Attribute, product


class Red:
    """Reads how red an image is, and remembers what it was shown."""

    name = "red"

    def __init__(self, attribute: str, *, doubtful: bool = False) -> None:
        self.classes = {attribute: ("no", "yes")}
        self.fingerprint, self.shown, self.freed = attribute, [], 0
        self.not_validated = (attribute,) if doubtful else ()

    def __call__(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        self.shown.append(tuple(images.shape))
        red = images[:, 0].mean((1, 2))
        return {attribute: torch.stack([-red, red], 1) for attribute in self.classes}

    def free(self) -> None:
        self.freed += 1


class Left:
    """The left half, of dark images a quarter, and no face in white ones."""

    def __init__(self) -> None:
        self.name, self.asked = "left", 0

    def __call__(self, image: Image.Image) -> Image.Image | None:
        self.asked += 1
        level = image.getpixel((image.width - 1, 0))[1]
        return None if level == 255 else image.crop((0, 0, image.width // (2 if level else 4), image.height))


def test_every_judge_reads_its_own_attribute_off_the_same_face() -> None:
    images = torch.zeros(4, 3, 8, 8)
    images[:, 0, :, :4] = torch.tensor([0.2, 0.4, 0.6, 0.8])[:, None, None]
    images[0, 1], images[2, 1], images[3, 1] = 0.5, 0.5, 1.0
    parts, faces = {"one": Red("warm"), "other": Red("race", doubtful=True)}, Left()
    judge = Together(parts, faces=faces)
    assert isinstance(judge, Judge) and judge.classes == {"warm": ("no", "yes"), "race": ("no", "yes")}
    answer = judge(images)
    assert faces.asked == 4, "once for each image, however many judges there are"
    assert parts["one"].shown == parts["other"].shown == [(2, 3, 8, 4), (1, 3, 8, 2)]
    for logits in answer.values():
        assert faces_found(logits).tolist() == [True, True, True, False]
        assert logits[:3, 1].tolist() == pytest.approx([0.2, 0.4, 0.6], abs=1e-6), "in the order of the images"
    judge.free()
    assert parts["one"].freed == parts["other"].freed == 1
    assert judge.name == "red (warm), red (race)" and Together(parts, name="mine").name == "mine"
    fingerprints = {judge.fingerprint, Together(parts).fingerprint, Together({"one": Red("warm")}).fingerprint}
    assert len(fingerprints) == 3 and not faces_found(judge(images[3:])["warm"]).any()


def test_crops_are_the_pixels_that_saving_would_write() -> None:
    images = torch.rand(2, 3, 5, 7)
    seen: list[Any] = []

    class Copy(Red):
        def __call__(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
            seen.extend(as_photographs(images))
            return super().__call__(images)

    Together({"a": Copy("warm")})(images)
    assert [image.tobytes() for image in seen] == [image.tobytes() for image in as_photographs(images)]


def test_what_nobody_validated_is_known_of_products_too() -> None:
    judge = Together({"one": Red("warm"), "other": Red("race", doubtful=True)})
    warm, race = (Attribute(name, ("no", "yes")) for name in ("warm", "race"))
    assert not_validated(judge, [warm]) == [] and not_validated(judge, [product([warm, race])]) == ["race"]


def test_two_judges_of_one_attribute_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\['a', 'b'\], of which more than one reads warm"):
        Together({"a": Red("warm"), "b": Red("warm")})
    with pytest.raises(ValueError, match="at least one"):
        Together({})
