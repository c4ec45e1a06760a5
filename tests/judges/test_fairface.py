"""FairFace: outputs grouped by name, the released code's numbers, and files that are checked before they are believed."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision import transforms
from torchvision.models import resnet34

from difflens.judges.fairface import FairFaceJudge, group_outputs, load_fairface
from difflens.judges.protocol import Judge, faces_found, select_classes
from difflens.metrics.fairness import FairnessDiscrepancy, count_others
from difflens.metrics.functional import official_discrepancies
from difflens.vocabulary import Attribute

LOGITS = load_file(Path(__file__).parents[1] / "fixtures" / "official_fairness.safetensors")["fairface_logits"]
ATTRIBUTES = {
    "gender": Attribute("gender", ("female", "male")),
    "age": Attribute("age", ("young", "adult", "old")),
    "race": Attribute("race", ("White", "Black", "Asian", "Indian")),
}


class Recorded(nn.Module):
    """Answers with the oracle's row whose number the image's colour tells, through resizing and standardisation."""

    def forward(self, images: Tensor) -> Tensor:
        self.seen = images
        mean, std = (torch.tensor(values)[:, None, None] for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
        levels = ((images * std + mean) * 255).round().long()
        assert images.shape[1:] == (3, 224, 224) and bool((levels == levels[:, :, :1, :1]).all())
        return LOGITS[levels[:, 0, 0, 0] + 256 * levels[:, 1, 0, 0]]


class Bright:
    """Finds a face in bright images only."""

    name = "bright"

    def __call__(self, image: Image.Image) -> Image.Image | None:
        return image if np.asarray(image).mean() > 100 else None


def numbered(n: int) -> Tensor:
    """Images whose colour is their number."""
    number = torch.arange(n)
    colours = torch.stack([number % 256, number // 256, torch.zeros_like(number)], dim=1) / 255
    return colours[:, :, None, None].expand(-1, -1, 3, 5).contiguous()


def test_outputs_are_the_networks_and_an_image_without_a_face_has_none() -> None:
    judge = FairFaceJudge(Recorded(), protocol="official", batch=100)
    assert isinstance(judge, Judge)
    assert torch.equal(judge.outputs(numbered(len(LOGITS))), LOGITS)
    images = torch.stack([torch.ones(3, 4, 4), torch.zeros(3, 4, 4), torch.ones(3, 4, 4)])
    network = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 18))
    logits = FairFaceJudge(network, faces=Bright())(images)
    assert all(faces_found(rows).tolist() == [True, False, True] for rows in logits.values())


def test_a_class_has_the_probability_of_its_outputs_together() -> None:
    grouped = group_outputs(LOGITS.double())
    race, age = LOGITS[:, :7].double().softmax(-1), LOGITS[:, 9:].double().softmax(-1)
    expected = torch.stack(
        [race[:, 0], race[:, 1], race[:, 3] + race[:, 4], race[:, 5], race[:, 2] + race[:, 6]], dim=1
    )
    assert torch.allclose(grouped["race"].softmax(-1), expected, atol=1e-12)
    expected = torch.stack([age[:, :3].sum(1), age[:, 3:7].sum(1), age[:, 7:].sum(1)], dim=1)
    assert torch.allclose(grouped["age"].softmax(-1), expected, atol=1e-12)
    with pytest.raises(ValueError, match="18"):
        group_outputs(LOGITS[:, :17])


def test_ordinary_fd_is_the_official_one_for_gender_and_age_only() -> None:
    judge = FairFaceJudge(Recorded())
    logits = judge(numbered(len(LOGITS)))
    official = official_discrepancies(LOGITS)
    for name, attribute in ATTRIBUTES.items():
        columns = select_classes(judge, attribute)
        metric = FairnessDiscrepancy(attribute.classes)
        metric.update(logits[name][:, columns])
        same = metric.compute().fd == pytest.approx(getattr(official, name), abs=1e-6)
        assert same == (name != "race")
    # The male output comes first in the network; the attribute's order is by name.
    assert torch.equal(logits["gender"][:, select_classes(judge, ATTRIBUTES["gender"])], LOGITS[:, [8, 7]])


def test_images_of_other_races_are_counted() -> None:
    logits = FairFaceJudge(Recorded())(numbered(len(LOGITS)))["race"]
    columns = select_classes(FairFaceJudge(Recorded()), ATTRIBUTES["race"])
    with pytest.raises(ValueError, match="none of 4 images has a face"):
        count_others(torch.full((4, 5), torch.nan), columns)
    others = count_others(torch.cat([logits, torch.full((4, 5), torch.nan)]), columns)
    race = LOGITS[:, :7].double().softmax(-1)
    groups = torch.stack([race[:, [3, 4]].sum(1), race[:, [2, 6]].sum(1), race[:, 0], race[:, 1], race[:, 5]], dim=1)
    assert others.images == int((groups.argmax(1) == 1).sum()) > 0
    assert others.probability == pytest.approx(float(race[:, [2, 6]].sum(1).mean()), abs=1e-6) and others.n == 257


def test_images_are_prepared_as_the_released_code_does() -> None:
    pixels = torch.randint(0, 256, (2, 3, 301, 170), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    released = transforms.Compose(
        [
            transforms.Resize((224, 224)),
            transforms.ToTensor(),
            transforms.Normalize(mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225]),
        ]
    )
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 224 * 224, 18, bias=False))
    expected = network(torch.stack([released(Image.fromarray(x.permute(1, 2, 0).numpy())) for x in pixels]))
    found = FairFaceJudge(network).outputs(pixels.float() / 255)
    assert torch.allclose(found, expected, atol=1e-6)


def test_what_decides_the_answers_is_in_the_fingerprint() -> None:
    network = nn.Linear(1, 1)
    variants = [
        FairFaceJudge(network),
        FairFaceJudge(network, faces=Bright()),
        FairFaceJudge(network, protocol="official"),
        FairFaceJudge(nn.Linear(1, 1)),
    ]
    assert len({judge.fingerprint for judge in variants}) == 4
    with pytest.raises(ValueError, match="mapped, official, got 'paper'"):
        FairFaceJudge(network, protocol="paper")


def test_values_outside_of_zero_to_one_are_refused() -> None:
    judge = FairFaceJudge(nn.Flatten())
    for images in (numbered(4) * 255, torch.full((1, 3, 2, 2), torch.nan), numbered(2) - 0.5):
        with pytest.raises(ValueError, match=r"\[0, 1\]"):
            judge.outputs(images)
    with pytest.raises(ValueError, match="RGB"):
        judge.outputs(torch.zeros(1, 1, 2, 2))


def test_the_true_architecture_loads_from_a_users_file(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = resnet34(weights=None)
    network.fc = nn.Linear(network.fc.in_features, 18)
    path = tmp_path / "fairface.pt"
    torch.save(network.state_dict(), path)
    judge = load_fairface(str(path), obtain="nowhere", sha256=hashlib.sha256(path.read_bytes()).hexdigest().upper())
    images = torch.rand(2, 3, 40, 40)
    outputs = judge.outputs(images)
    assert outputs.shape == (2, 18) and outputs.isfinite().all() and not torch.equal(outputs[0], outputs[1])
    assert {name: rows.shape[1] for name, rows in judge(images).items()} == {"gender": 2, "age": 3, "race": 5}
    state = network.state_dict()
    torch.save({"extra": state.pop("fc.bias"), **state}, path)
    with pytest.raises(ValueError, match=r'(?s)another network.*"fc\.bias".*"extra"') as caught:
        load_fairface(str(path), obtain="nowhere")
    assert "\n" not in str(caught.value)


def test_a_file_that_is_absent_changed_or_code_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights" / "fairface.pt"
    with pytest.raises(ValueError, match=r"weights/fairface\.pt'; put it there.*the authors"):
        load_fairface(str(path), obtain="the authors")
    path.parent.mkdir()
    torch.save({"a": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match=r"instead of 0{64}.*the authors"):
        load_fairface(str(path), obtain="the authors", sha256="0" * 64)
    torch.save({"a": Recorded()}, path)
    with pytest.raises(ValueError, match="weights_only"):
        load_fairface(str(path), obtain="the authors")
