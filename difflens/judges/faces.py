"""Which part of a photograph a judge sees: all of it, or its largest face. An image without a face has no crop."""

import importlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from difflens.judges.weights import find_weights

YUNET_SHA256 = "8f2383e4dd3cfbb4553ea8718107fc0423210dc964f9f4280604804ed2552fa4"
"""SHA-256 of `face_detection_yunet_2023mar.onnx` in OpenCV's model zoo."""


@runtime_checkable
class FaceCropper(Protocol):
    """Cuts the largest face out of an RGB image, or gives None where it finds none; `name` says how, with all settings."""

    name: str

    def __call__(self, image: Image.Image) -> Image.Image | None:
        """The face, or None."""
        ...


class Box(NamedTuple):
    """A face's place in pixels."""

    left: float
    top: float
    width: float
    height: float


class WholeImage:
    """No detection: the image is the face, as in the samples of a model of aligned faces."""

    name = "whole image"

    def __call__(self, image: Image.Image) -> Image.Image:
        """The image."""
        return image


class FixedBox:
    """The same part of every image, as where a model frames all its faces alike; black where it reaches beyond.

    Args:
        left, width: of the box, as shares of the image's width.
        top, height: of the box, as shares of the image's height.

    Raises:
        ValueError: the box is empty, or outside of the image.
    """

    def __init__(self, *, left: float = 0.0, top: float = 0.0, width: float = 1.0, height: float = 1.0) -> None:
        if not (width > 0 and height > 0 and -width < left < 1 and -height < top < 1):
            raise ValueError(
                f"a box is given in shares of the image and overlaps it, got left {left}, top {top}, width {width} and "
                f"height {height}."
            )
        self.name = f"box {left:g} {top:g} {width:g} {height:g}"
        self._box = (left, top, left + width, top + height)

    def __call__(self, image: Image.Image) -> Image.Image:
        """See `FaceCropper`."""
        left, top, right, bottom = (edge * side for edge, side in zip(self._box, image.size * 2, strict=True))
        size = max(1, round(right - left)), max(1, round(bottom - top))
        # Between pixels where need be: rounded to whole ones, the box would move by a fortieth of a face of 20 pixels.
        return image.transform(size, Image.Transform.EXTENT, (left, top, right, bottom), Image.Resampling.BILINEAR)


class LargestFace(ABC):
    """A square around the box of largest area, `margin` of the box's longer side wider on each side, black outside."""

    def __init__(self, name: str, *, margin: float) -> None:
        if not margin >= 0:
            raise ValueError(f"the margin around a face is a share of its size, 0 or more, got {margin}.")
        # The name enters judges' fingerprints, so it must tell all that decides the crop.
        self.name, self.margin = f"{name}, margin {margin:g}", margin

    @abstractmethod
    def boxes(self, image: Image.Image) -> list[Box]:
        """All faces of an RGB image."""

    def __call__(self, image: Image.Image) -> Image.Image | None:
        """See `FaceCropper`."""
        boxes = self.boxes(image)
        if not boxes:
            return None
        # One face per image, so that every image counts once, however many faces stand behind.
        box = max(boxes, key=lambda box: box.width * box.height)
        # A square, since judges stretch what they get to one: any other shape would distort the face.
        side = round(max(box.width, box.height) * (1 + 2 * self.margin))
        left, top = round(box.left + (box.width - side) / 2), round(box.top + (box.height - side) / 2)
        # It may reach beyond the image: Pillow fills the rest with black, and the face stays in the middle.
        return image.crop((left, top, left + side, top + side))


class HaarFaces(LargestFace):
    """Frontal faces by the cascade (Viola & Jones, 2001) that is inside the wheels of OpenCV 4: needs no file.

    It misses turned and shaded faces far more often than a network does; for tables prefer `YunetFaces`.
    """

    def __init__(self, *, margin: float = 0.25) -> None:
        cv2 = import_extra("cv2", extra="faces")
        # OpenCV 5 has left the cascades out.
        if not hasattr(cv2, "CascadeClassifier"):
            raise ValueError(
                f"OpenCV {cv2.__version__} has no cascades; install difflens[faces] (OpenCV 4) or use YuNet."
            )
        super().__init__("OpenCV frontal cascade", margin=margin)
        self._cascade = cv2.CascadeClassifier(str(Path(cv2.data.haarcascades) / "haarcascade_frontalface_default.xml"))

    def boxes(self, image: Image.Image) -> list[Box]:
        """See `LargestFace.boxes`; faces smaller than an eighth of the image are passed over."""
        least = max(1, min(image.size) // 8)
        grey = np.asarray(image.convert("L"))
        found = self._cascade.detectMultiScale(grey, scaleFactor=1.1, minNeighbors=5, minSize=(least, least))
        return [Box(*map(float, box)) for box in found]


class YunetFaces(LargestFace):
    """Faces by YuNet (Wu et al., 2023), a network of 0.2 MB that OpenCV runs from a user's file.

    Args:
        weights: the ONNX file.
        score: faces below this confidence do not count.
        margin: see `LargestFace`.
        sha256: of the file, None to accept any.
        obtain: where the file comes from.

    Raises:
        ValueError: OpenCV is not installed, or the file is absent or another one.
    """

    def __init__(
        self,
        weights: str,
        *,
        score: float = 0.6,
        margin: float = 0.25,
        sha256: str | None = YUNET_SHA256,
        obtain: str = "https://github.com/opencv/opencv_zoo (models/face_detection_yunet)",
    ) -> None:
        cv2 = import_extra("cv2", extra="faces")
        path = find_weights(weights, obtain=obtain, sha256=sha256)
        super().__init__(f"{path.stem}, score {score:g}", margin=margin)
        try:
            # This size is a placeholder: every image sets its own before it is searched.
            self._network = cv2.FaceDetectorYN.create(str(path), "", (320, 320), score)
        except cv2.error as error:
            raise ValueError(f"OpenCV {cv2.__version__} cannot read {str(path)!r}: {error}") from error

    def boxes(self, image: Image.Image) -> list[Box]:
        """See `LargestFace.boxes`."""
        self._network.setInputSize(image.size)
        # OpenCV takes blue first; each row begins with the box, then come landmarks and the score.
        _, found = self._network.detect(np.ascontiguousarray(np.asarray(image.convert("RGB"))[..., ::-1]))
        return [] if found is None else [Box(*map(float, row[:4])) for row in found]


class DlibFaces:
    """The largest face, turned upright and scaled by dlib as the paper and FairFace do (300 px, padding 0.25).

    Args:
        detector: `mmod_human_face_detector.dat`, dlib's convolutional detector (slow without a GPU build); None for that of
            frontal faces inside dlib (Dalal & Triggs, 2005): fast, and misses turned and shaded faces.
        landmarks: `shape_predictor_5_face_landmarks.dat`.
        size: side of the crop in pixels.
        padding: how much of the face's size is left around it.
        longest_side: images are scaled to this before detection, small ones too, as by FairFace's released script.
        obtain: where the files come from.
        package: a Python package that has files of these names.

    Raises:
        ValueError: dlib is not installed, or a file is absent.
    """

    def __init__(
        self,
        detector: str | None,
        landmarks: str,
        *,
        size: int = 300,
        padding: float = 0.25,
        longest_side: int = 800,
        obtain: str = "http://dlib.net/files (unpack the .bz2)",
        package: str | None = None,
    ) -> None:
        self._dlib = import_extra("dlib", extra="dlib")
        self._detect = (
            self._dlib.get_frontal_face_detector()
            if detector is None
            else self._dlib.cnn_face_detection_model_v1(str(find_weights(detector, obtain=obtain, package=package)))
        )
        self._landmarks = self._dlib.shape_predictor(str(find_weights(landmarks, obtain=obtain, package=package)))
        self.size, self.padding, self.longest_side = size, padding, longest_side
        found_by = "frontal" if detector is None else "mmod"
        self.name = f"dlib {found_by}, 5 landmarks, {size} px, padding {padding:g}, longest side {longest_side}"

    def __call__(self, image: Image.Image) -> Image.Image | None:
        """See `FaceCropper`."""
        pixels = np.asarray(image.convert("RGB"))
        scale = self.longest_side / max(image.size)
        if scale != 1:
            pixels = self._dlib.resize_image(pixels, rows=int(image.height * scale), cols=int(image.width * scale))
        # The convolutional detector tells its confidence beside each place.
        places = [getattr(found, "rect", found) for found in self._detect(pixels, 1)]
        if not places:
            return None
        face = self._landmarks(pixels, max(places, key=lambda place: place.area()))
        return Image.fromarray(self._dlib.get_face_chip(pixels, face, size=self.size, padding=self.padding))


def import_extra(module: str, *, extra: str) -> Any:
    """A module that only some installations have.

    Raises:
        ValueError: this one does not; the message names the extra.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ValueError(f"what runs with {module} needs an extra: pip install 'difflens[{extra}]'.") from error


AT_ONCE = 2**24
"""Pixels that are held as floats at once: 200 MB, or 256 images of 256 × 256."""


def float_pieces(images: UInt8[Tensor, "images channels height width"]) -> Iterator[Tensor]:
    """Images as floats in [0, 1], in order, some at once."""
    size = max(1, AT_ONCE // max(1, images.shape[-2] * images.shape[-1]))
    return (piece.float() / 255 for piece in images.split(size))


def as_photographs(images: Float[Tensor, "images channels height width"]) -> list[Image.Image]:
    """Images [N, 3, H, W] in [0, 1] as 8-bit RGB, rounded to the values that saving them would write.

    Raises:
        ValueError: they have other than three channels, or values that are not finite or outside [0, 1].
    """
    if images.shape[1] != 3:
        raise ValueError(f"photographs are RGB images [N, 3, H, W], got {list(images.shape)}.")
    low, high = (float(value) for value in images.aminmax()) if images.numel() else (0.0, 0.0)
    # A comparison with NaN is false. Denoisers may overshoot by a rounding error, never by a grey level.
    if not (low > -1e-3 and high < 1 + 1e-3):
        raise ValueError(f"images must lie in [0, 1], got values from {low:g} to {high:g}; divide 8-bit images by 255.")
    # As a saved PNG would have them, so that images in memory and a folder of them give the same numbers.
    pixels = (images.detach().float().clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    return [Image.fromarray(image) for image in pixels]


def read_faces(
    images: Float[Tensor, "images channels height width"],
    faces: FaceCropper,
    network: Callable[[Sequence[Image.Image]], Tensor],
    *,
    width: int,
    batch: int,
) -> Float[Tensor, "images outputs"]:
    """What a network answers to the images' faces [N, width] (float32, the images' device); NaN where there is none."""
    # NaN and not equal logits: an image without a face must not pass for one in doubt between the classes.
    rows = torch.full((len(images), width), torch.nan, device=images.device)
    for start in range(0, len(images), batch):
        crops = [faces(photograph) for photograph in as_photographs(images[start : start + batch])]
        found = [i for i, crop in enumerate(crops) if crop is not None]
        # Networks and `torch.stack` refuse an empty batch.
        if found:
            rows[[start + i for i in found]] = network([crop for crop in crops if crop is not None]).float().to(rows)
    return rows
