"""The largest face is cut out, and an image without one has no crop, whoever detects."""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import matplotlib
import numpy as np
import pytest
from PIL import Image

from difflens.judges.faces import (
    Box,
    DlibFaces,
    FaceCropper,
    FixedBox,
    HaarFaces,
    LargestFace,
    WholeImage,
    YunetFaces,
)


class Planted(LargestFace):
    """Finds the boxes it was given."""

    def __init__(self, *boxes: Box, margin: float = 0.0) -> None:
        super().__init__("planted", margin=margin)
        self.planted = list(boxes)

    def boxes(self, image: Image.Image) -> list[Box]:
        return self.planted


def ramp(width: int = 40, height: int = 30) -> Image.Image:
    """Red tells the column, green the row; blue is 255 everywhere."""
    rows, columns = np.mgrid[:height, :width]
    return Image.fromarray(np.stack([columns, rows, np.full_like(rows, 255)], axis=-1).astype(np.uint8))


def test_the_largest_box_becomes_a_square_around_its_centre() -> None:
    crop = Planted(Box(0, 0, 5, 5), Box(10, 12, 8, 4), Box(30, 20, 3, 9))(ramp())
    assert crop is not None and crop.size == (8, 8)
    assert crop.getpixel((0, 0)) == (10, 10, 255) and crop.getpixel((7, 7)) == (17, 17, 255)


def test_the_margin_widens_the_square_and_what_lies_outside_is_black() -> None:
    crop = Planted(Box(0, 10, 8, 8), margin=0.25)(ramp())
    assert crop is not None and crop.size == (12, 12)
    assert crop.getpixel((1, 5)) == (0, 0, 0) and crop.getpixel((2, 0)) == (0, 8, 255)
    assert Planted(margin=0.1)(ramp()) is None
    with pytest.raises(ValueError, match="margin"):
        Planted(margin=-0.1)


def test_without_detection_the_image_is_the_face() -> None:
    image, whole = ramp(), WholeImage()
    assert whole(image) is image and isinstance(whole, FaceCropper)


def test_a_fixed_box_is_the_same_part_of_every_image_and_black_beyond() -> None:
    box = FixedBox(left=0.25, top=0.2, width=0.5, height=0.4)
    crop = box(ramp())
    assert crop.size == (20, 12) and crop.getpixel((0, 0)) == (10, 6, 255) and crop.getpixel((19, 11)) == (29, 17, 255)
    assert box(ramp(80, 60)).size == (40, 24), "in shares, whatever the size"
    beyond = FixedBox(top=0.5, height=1.0)(ramp())
    assert (
        beyond.size == (40, 30) and beyond.getpixel((3, 14)) == (3, 29, 255) and beyond.getpixel((3, 16)) == (0, 0, 0)
    )
    between = FixedBox(left=0.0125, width=0.5)(ramp()).getpixel((4, 0))
    assert between[0] in (4, 5) and between[2] == 255, "half a pixel to the right"
    assert np.array_equal(np.asarray(FixedBox()(ramp())), np.asarray(ramp())) and box.name != FixedBox().name
    for wrong in ({"width": 0.0}, {"left": 1.0}, {"top": -1.0}):
        with pytest.raises(ValueError, match="in shares of the image"):
            FixedBox(**wrong)


@pytest.mark.parametrize(
    ("module", "extra", "make"),
    [
        ("cv2", "faces", HaarFaces),
        ("cv2", "faces", lambda: YunetFaces("absent.onnx")),
        ("dlib", "dlib", lambda: DlibFaces("absent.dat", "absent.dat")),
    ],
)
def test_a_missing_extra_is_one_line(module: str, extra: str, make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ValueError, match=rf"{module} needs an extra: pip install 'difflens\[{extra}\]'"):
        make()


def test_the_cascade_of_opencvs_wheel_finds_a_portrait() -> None:
    pytest.importorskip("cv2")
    portrait = Image.open(Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg").convert("RGB")
    faces = HaarFaces()
    box = max(faces.boxes(portrait), key=lambda box: box.width)
    assert 230 < box.left + box.width / 2 < 300 and 180 < box.top + box.height / 2 < 270 and 150 < box.width < 300
    assert faces(Image.new("RGB", (64, 64), "grey")) is None


def test_an_opencv_without_cascades_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cv2", SimpleNamespace(__version__="5.0.0"))
    with pytest.raises(ValueError, match=r"OpenCV 5\.0\.0 has no cascades"):
        HaarFaces()


class FakeYunet:
    """What OpenCV's detector gives: rows of a box, ten landmark coordinates and a score, or None."""

    rows: Any = np.array([[4, 5, 6, 8, *range(10), 0.9], [1, 2, 20, 10, *range(10), 0.7]], dtype=np.float32)

    def setInputSize(self, size: tuple[int, int]) -> None:
        self.size = size

    def detect(self, image: np.ndarray) -> tuple[int, Any]:
        assert image.shape[1::-1] == self.size and bool((image[..., 0] == 255).all()), "blue comes first"
        return 1, self.rows


def test_yunet_reads_a_checked_file_and_the_boxes_of_its_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Any] = []
    create = lambda *arguments: made.append(arguments) or FakeYunet()  # noqa: E731
    cv2 = SimpleNamespace(FaceDetectorYN=SimpleNamespace(create=create), error=RuntimeError, __version__="4")
    monkeypatch.setitem(sys.modules, "cv2", cv2)
    path = tmp_path / "yunet.onnx"
    with pytest.raises(ValueError, match=r"yunet\.onnx'; put it there.*opencv_zoo"):
        YunetFaces(str(path))
    path.write_bytes(b"another network")
    with pytest.raises(ValueError, match="SHA-256"):
        YunetFaces(str(path))
    faces = YunetFaces(str(path), sha256=None, score=0.5, margin=0.0)
    assert made[-1][0] == str(path) and made[-1][3] == 0.5
    assert faces.boxes(ramp()) == [Box(4, 5, 6, 8), Box(1, 2, 20, 10)]
    crop = faces(ramp())
    assert crop is not None and crop.size == (20, 20)
    monkeypatch.setattr(FakeYunet, "rows", None)
    assert faces(ramp()) is None


@pytest.mark.parametrize("longest", [20, 200])
def test_dlib_aligns_the_largest_face_of_an_image_reduced_or_enlarged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, longest: int
) -> None:
    places: list[Any] = []
    rectangle = lambda side: SimpleNamespace(area=lambda: side**2, side=side)  # noqa: E731
    dlib = SimpleNamespace(
        cnn_face_detection_model_v1=lambda path: lambda pixels, upsample: places,
        shape_predictor=lambda path: lambda pixels, place: (max(pixels.shape), place.side),
        resize_image=lambda pixels, rows, cols: np.zeros((rows, cols, 3), np.uint8),
        get_face_chip=lambda pixels, face, size, padding: np.full((size, size, 3), (*face, 0), np.uint8),
    )
    monkeypatch.setitem(sys.modules, "dlib", dlib)
    for name in ("mmod.dat", "landmarks.dat"):
        (tmp_path / name).touch()
    faces = DlibFaces(str(tmp_path / "mmod.dat"), str(tmp_path / "landmarks.dat"), longest_side=longest)
    assert faces(ramp()) is None
    places += [SimpleNamespace(rect=rectangle(side)) for side in (3, 9, 5)]
    crop = faces(ramp())
    assert crop is not None and crop.size == (300, 300) and crop.getpixel((0, 0)) == (longest, 9, 0)
    (tmp_path / "a_package" / "models").mkdir(parents=True)
    (tmp_path / "a_package" / "models" / "elsewhere.dat").touch()
    monkeypatch.syspath_prepend(tmp_path)
    DlibFaces(str(tmp_path / "mmod.dat"), "elsewhere.dat", package="a_package")
    with pytest.raises(ValueError, match=r"absent\.dat'; put it there.*dlib\.net"):
        DlibFaces(str(tmp_path / "mmod.dat"), str(tmp_path / "absent.dat"))
