"""A classifier in an ONNX file is a judge by its settings alone: what it sees, what its numbers mean, what is refused."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from difflens.judges.onnx import OnnxJudge
from difflens.judges.protocol import Judge, faces_found

EYE = np.eye(3, dtype=np.float32)
GENDER = {"gender": {"classes": ["male", "female"]}}


def write(
    path: Path,
    outputs: dict[str, np.ndarray] | None = None,
    *,
    shape: tuple[int | str, ...] = ("n", 3, 8, 8),
    then: str = "Identity",
    kind: int = TensorProto.FLOAT,
    inputs: int = 1,
) -> str:
    """A network whose outputs are the mean of each channel times a matrix [3, columns], and what comes `then`."""
    axes = [2, 3] if shape[1] == 3 else [1, 2]
    nodes = [
        helper.make_node("Cast", ["x0"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["float"], ["mean"], axes=axes, keepdims=0),
    ]
    outputs = {"y": EYE[:, :2]} if outputs is None else outputs
    for name in outputs:
        nodes += [
            helper.make_node("MatMul", ["mean", f"{name}.w"], [f"{name}.z"]),
            helper.make_node(then, [f"{name}.z"], [name]),
        ]
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info(f"x{i}", kind, shape) for i in range(inputs)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, (shape[0], w.shape[1])) for name, w in outputs.items()],
        [numpy_helper.from_array(w.astype(np.float32), f"{name}.w") for name, w in outputs.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return str(path)


def colours(*colours: tuple[float, float, float]) -> torch.Tensor:
    """Images of one colour each."""
    return torch.tensor(colours).float()[:, :, None, None].expand(-1, -1, 12, 10).contiguous()


IMAGES = colours((1, 0, 0.2), (0, 0.4, 1), (0.2, 0.6, 0.8))


class NotRed:
    """Finds no face in red images."""

    name = "not red"

    def __call__(self, image: Image.Image) -> Image.Image | None:
        return None if image.getpixel((0, 0))[0] == 255 else image


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, [0.2, 0.6, 0.8]),
        ({"channels": "BGR"}, [0.8, 0.6, 0.2]),
        ({"scale": 255}, [51, 153, 204]),
        ({"scale": 255, "mean": [50, 150, 200], "std": 2}, [0.5, 1.5, 2]),
        ({"mean": 0.5, "std": [0.1, 0.2, 0.4]}, [-3, 0.5, 0.75]),
    ],
)
@pytest.mark.parametrize("shape", [("n", 3, 8, 8), ("n", 8, 8, 3), (1, 3, 8, 8), (2, 8, 8, 3), ("n", 3, "h", "w")])
def test_a_network_sees_the_pixels_it_was_trained_on(
    tmp_path: Path, shape: tuple[int | str, ...], settings: dict[str, Any], expected: list[float]
) -> None:
    size = {"size": [8, 8]} if "h" in shape else {}
    outputs = {"colour": {"classes": ["a", "b", "c"]}}
    judge = OnnxJudge(write(tmp_path / "x.onnx", {"y": EYE}, shape=shape), outputs=outputs, batch=2, **size, **settings)
    assert isinstance(judge, Judge) and judge.classes == {"colour": ("a", "b", "c")} and judge.name == "x"
    assert torch.allclose(judge(IMAGES)["colour"][2], torch.tensor(expected).float(), atol=1e-4)


def test_resizing_is_pillows_and_a_crop_keeps_proportions(tmp_path: Path) -> None:
    image = torch.zeros(1, 3, 8, 24)
    image[..., :8], image[..., 16:] = 1, 1
    path = write(tmp_path / "x.onnx")
    found = {
        fit: OnnxJudge(path, outputs=GENDER, fit=fit, resize="box")(image)["gender"][0, 0].item()
        for fit in ("stretch", "crop")
    }
    assert found == {"stretch": pytest.approx(2 / 3, abs=0.01), "crop": 0.0}


def test_classes_are_columns_ranges_several_outputs_or_what_is_left(tmp_path: Path) -> None:
    weights = {"all": np.concatenate([EYE, 2 * EYE[:, ::-1]], 1), "one": EYE[:, :1]}
    path = write(tmp_path / "x.onnx", weights)
    outputs = {
        "age": {"output": "all", "classes": {"old": "3-5", "young": [0, 2], "adult": 1}},
        "smile": {"output": 1, "classes": {"no": None, "yes": 0}},
    }
    logits = OnnxJudge(path, outputs=outputs, faces=NotRed())(IMAGES)
    x = torch.cat([IMAGES[:, :, 0, 0], 2 * IMAGES[:, :, 0, 0].flip(1)], 1)
    expected = torch.stack([x[:, 3:].logsumexp(1), x[:, [0, 2]].logsumexp(1), x[:, 1]], 1)
    assert torch.allclose(logits["age"][1:], expected[1:], atol=1e-5)
    assert torch.allclose(logits["smile"].softmax(1)[1:, 1], x[1:, 0].sigmoid(), atol=1e-6)
    assert [faces_found(rows).tolist() for rows in logits.values()] == [[False, True, True]] * 2


@pytest.mark.parametrize(("then", "classes"), [("Softmax", {"b": [0, 2], "a": 1}), ("Sigmoid", {"no": None, "yes": 0})])
def test_probabilities_become_their_logarithms(tmp_path: Path, then: str, classes: dict[str, Any]) -> None:
    path = write(tmp_path / "x.onnx", {"y": 300 * EYE if then == "Softmax" else EYE[:, :1]}, then=then)
    judge = OnnxJudge(path, outputs={"x": {"values": "probabilities", "classes": classes}})
    means = IMAGES[:, :, 0, 0]
    numbers = (300 * means).softmax(1) if then == "Softmax" else means[:, :1].sigmoid()
    first = numbers[:, [0, 2]].sum(1) if then == "Softmax" else 1 - numbers[:, 0]
    logits = judge(IMAGES)["x"]
    assert bool(logits.isfinite().all()) and torch.allclose(logits.softmax(1)[:, 0], first, atol=1e-5)


def test_an_estimate_becomes_the_odds_that_the_truth_lies_between_cuts(tmp_path: Path) -> None:
    path = write(tmp_path / "x.onnx", {"y": EYE[:, :1]})
    said = {"values": "number", "classes": ["young", "adult", "old"], "cuts": [20, 60], "spread": 3.28}
    judge = OnnxJudge(path, outputs={"age": said}, scale=100)
    found = judge(colours((0.2, 0, 0), (0.4, 0, 0), (0.6, 0, 0)))["age"].softmax(1)
    below = lambda cut, years: 1 / (1 + np.exp((years - cut) / 3.28))  # noqa: E731
    for years, shares in zip((20, 40, 60), found, strict=True):
        edges = [0, below(20, years), below(60, years), 1]
        assert shares.numpy() == pytest.approx(np.diff(edges), abs=2e-6)
    far = OnnxJudge(path, outputs={"age": {**said, "spread": 0.01}}, scale=1000)(colours((1, 0, 0), (0, 0, 0)))["age"]
    assert bool(far.isfinite().all()) and far.argmax(1).tolist() == [2, 0]


@pytest.mark.parametrize("kind", [TensorProto.UINT8, TensorProto.FLOAT16, TensorProto.DOUBLE])
def test_other_kinds_of_numbers_are_given_as_asked(tmp_path: Path, kind: int) -> None:
    judge = OnnxJudge(write(tmp_path / "x.onnx", kind=kind), outputs=GENDER, scale=255)
    assert judge(IMAGES)["gender"][2].tolist() == [51, 153]


def test_what_decides_the_answers_is_in_the_fingerprint_and_memory_is_given_back(tmp_path: Path) -> None:
    path, other = write(tmp_path / "x.onnx"), write(tmp_path / "other.onnx", {"y": 2 * EYE[:, :2]})
    judge = OnnxJudge(path, outputs=GENDER)
    swapped = {"gender": {"classes": {"male": 1, "female": 0}}}
    variants = [
        OnnxJudge(other, outputs=GENDER),
        OnnxJudge(path, outputs=swapped),
        OnnxJudge(path, outputs=GENDER, scale=255),
        OnnxJudge(path, outputs=GENDER, faces=NotRed()),
        OnnxJudge(path, outputs={"gender": {**GENDER["gender"], "validated": False}}),
    ]
    assert len({judge.fingerprint, *(each.fingerprint for each in variants)}) == 6
    assert variants[-1].not_validated == ("gender",) and judge.not_validated == ()
    assert OnnxJudge(path, outputs=GENDER, batch=1, name="mine").fingerprint == judge.fingerprint
    before = judge(IMAGES)["gender"]
    judge.free()
    assert torch.equal(judge(IMAGES)["gender"], before)


NAN = np.full((3, 2), np.nan, dtype=np.float32)
REFUSED: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({}, {"outputs": None}, "outputs is not given"),
    *(
        ({}, {"outputs": {"x": answer}}, message)
        for answer, message in (
            ({"classes": ["male", "female"], "output": "z"}, "no output 'z'; it has y"),
            ({"classes": ["male", "female"], "output": 1}, "no output 1; it has y"),
            ({"classes": ["a", "b", "c"]}, "2 columns and 3 classes are named"),
            ({"classes": {"a": 0, "b": "1-2"}}, r"columns 0 to 1, and no \[2\]"),
            ({"classes": {"a": 0, "b": 0}}, "a column belongs to one class"),
            ({"classes": {"a": "x", "b": 0}}, "a range such as 9-11"),
            ({"classes": {True: 0, False: 1}}, "named in quotes"),
            ({"classes": ["a", "a"]}, "name of its own"),
            ({"classes": ["male"]}, "two classes or more"),
            ({"classes": ["a", "b"], "kind": "logits"}, "'kind'"),
            ({"classes": ["a", "b"], "values": "odds"}, "logits, probabilities or number, got 'odds'"),
            ({"classes": ["a", "b"], "values": "number", "cuts": [4], "spread": 1}, "has 2 columns"),
            ({"classes": ["a", "b"], "values": "number", "cuts": [4]}, "a spread above 0"),
            ({"classes": ["a", "b", "c"], "values": "number", "cuts": [4, 4], "spread": 1}, "ascending"),
            ({"classes": ["a", "b"], "values": "number", "cuts": [1, 4], "spread": 1}, "one fewer"),
            ({"classes": ["a", "b"], "cuts": [1]}, "belong to values=number"),
        )
    ),
    ({}, {"outputs": {"x": {"classes": ["a", "b"], "values": "probabilities"}}, "scale": 255}, "set values=logits"),
    ({"then": "Softmax"}, {}, "set values=probabilities"),
    ({"outputs": {"y": NAN}}, {}, "NaN or infinite"),
    ({"shape": ("n", 3, "h", "w")}, {}, "any size.*set size"),
    ({}, {"size": 9}, "8 × 8 pixels, not 9 × 9"),
    ({}, {"layout": "NHWC"}, "does not fit layout=NHWC and channels=RGB"),
    ({}, {"channels": "L"}, "does not fit layout=null and channels=L"),
    ({}, {"channels": "RGBA"}, "channels must be one of RGB, BGR, L"),
    ({}, {"mean": [0.5, 0.5]}, "one number or one per channel"),
    ({}, {"std": 0}, "must be positive"),
    ({}, {"gamma": 2}, "'gamma'"),
    ({"inputs": 2}, {}, r"takes x0 .*, x1 .*images alone"),
    ({"kind": TensorProto.INT64}, {}, r"takes x0 \(tensor\(int64\)\)"),
]


@pytest.mark.parametrize(("file", "settings", "message"), REFUSED)
def test_what_does_not_fit_the_file_is_refused_at_once(
    tmp_path: Path, file: dict[str, Any], settings: dict[str, Any], message: str
) -> None:
    path = write(tmp_path / "x.onnx", **file)
    with pytest.raises(ValueError, match=message) as caught:
        OnnxJudge(path, **{"outputs": GENDER, **settings})
    assert "\n" not in str(caught.value)


def future(path: Path) -> None:
    """An operator set that nobody has written yet."""
    model = onnx.load(path)
    model.opset_import[0].version = 999
    onnx.save(model, path)


def elsewhere(path: Path) -> None:
    """Weights in a second file, which is beside the first and in the working folder."""
    onnx.save(onnx.load(path), path, save_as_external_data=True, location="weights.bin", size_threshold=0)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.unlink(), "put it there.*nobody"),
        (lambda path: path.write_bytes(b"<html>"), "no network in one ONNX file"),
        (lambda path: path.write_bytes(path.read_bytes()[:100]), "no network in one ONNX file"),
        (future, "no network in one ONNX file.*opset"),
        (elsewhere, "no network in one ONNX file"),
    ],
)
def test_files_that_are_no_network_are_refused(
    tmp_path: Path, damage: Any, message: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    path = Path(write(tmp_path / "x.onnx"))
    damage(path)
    with pytest.raises(ValueError, match=message) as caught:
        OnnxJudge(str(path), outputs=GENDER, obtain="nobody")
    assert "\n" not in str(caught.value) and not capfd.readouterr().err


def test_numbers_that_turn_out_not_finite_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "x.onnx", {"y": EYE[:, :2]}, then="Log")
    judge = OnnxJudge(path, outputs=GENDER)
    with pytest.raises(ValueError, match=r"'y' of .* is NaN or infinite"):
        judge(colours((0, 0, 1)))
