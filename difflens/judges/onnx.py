"""Any classifier in an ONNX file as a judge: the configuration says what it wants to see and what its numbers mean."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn.functional import logsigmoid

from difflens.judges.faces import FaceCropper, WholeImage, import_extra, read_faces
from difflens.judges.weights import OnDemand, find_weights
from difflens.models.devices import check_device
from difflens.store.files import sha256_of
from difflens.store.fingerprints import fingerprint

DTYPES: Mapping[str, type[np.generic]] = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(double)": np.float64,
    "tensor(uint8)": np.uint8,
}
"""Numbers that a network may take, by ONNX's names."""

LAYOUTS = {"NCHW": 1, "NHWC": 3}
"""The dimension of the channels."""

CHANNELS = {"RGB": 3, "BGR": 3, "L": 1}
PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}

Columns = int | str | None
"""A column, columns such as `9-11`, or None for all that the other classes leave."""


@dataclass(frozen=True)
class Preparation:
    """What becomes of a face's 8-bit pixels before a network sees them: (pixel / 255 · scale − mean) / std.

    Args:
        size: pixels of a side, or height and width; None takes what the file says.
        layout: `NCHW`, `NHWC`, or None for what the file says.
        channels: `RGB`, `BGR`, or `L` for grey.
        scale: the value of white: 1 or 255.
        mean: of all channels or of each, on that scale.
        std: of all channels or of each, on that scale.
        resize: Pillow's filter: `nearest`, `box`, `bilinear`, `hamming`, `bicubic` or `lanczos`.
        fit: `stretch` to the size, or `crop` the middle of the same proportions first.
    """

    size: int | Sequence[int] | None = None
    layout: str | None = None
    channels: str = "RGB"
    scale: float = 1.0
    mean: float | Sequence[float] = 0.0
    std: float | Sequence[float] = 1.0
    resize: str = "bilinear"
    fit: str = "stretch"

    def __post_init__(self) -> None:
        words = {
            "layout": (None, *LAYOUTS),
            "channels": tuple(CHANNELS),
            "resize": tuple(each.name.lower() for each in Image.Resampling),
            "fit": ("stretch", "crop"),
        }
        for name, known in words.items():
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {', '.join(map(str, known))}, got {getattr(self, name)!r}.")
        for name in ("mean", "std"):
            if np.size(getattr(self, name)) not in (1, CHANNELS[self.channels]):
                raise ValueError(
                    f"{name} is one number or one per channel of {self.channels}, got {getattr(self, name)}."
                )
        if not (self.scale > 0 and np.all(np.asarray(self.std) > 0)):
            raise ValueError(f"scale and std must be positive, got {self.scale} and {self.std}.")

    def of(self, shape: Sequence[int | str | None], *, path: Path) -> "Preparation":
        """The same with size and layout known, from the shape of the file's input.

        Raises:
            ValueError: neither file nor settings tell them, or they contradict each other.
        """
        if len(shape) != 4:
            raise ValueError(f"{str(path)!r} takes an input {list(shape)}, not images of four dimensions.")
        count = CHANNELS[self.channels]
        # The file decides by the place of its channels; the setting only where the file leaves that open.
        fitting = [
            each
            for each, at in LAYOUTS.items()
            if shape[at] == count or (each == self.layout and not isinstance(shape[at], int))
        ]
        layout = next((each for each in fitting if self.layout in (None, each)), None)
        if layout is None:
            raise ValueError(
                f"{str(path)!r} takes an input {list(shape)}, which does not fit layout={self.layout or 'null'} and "
                f"channels={self.channels}; set both."
            )
        own = shape[2:] if layout == "NCHW" else shape[1:3]
        size = own if self.size is None else ([self.size] * 2 if isinstance(self.size, int) else list(self.size))
        if len(size) != 2 or not all(isinstance(side, int) and side > 0 for side in size):
            raise ValueError(
                f"{str(path)!r} takes images of any size ({list(shape)}); set size to pixels of a side, or [height, width]."
            )
        if any(isinstance(a, int) and a != b for a, b in zip(own, size, strict=True)):
            raise ValueError(
                f"{str(path)!r} takes images of {own[0]} × {own[1]} pixels, not {size[0]} × {size[1]}; set size=null."
            )
        settled = {field.name: getattr(self, field.name) for field in fields(self)}
        return Preparation(**{**settled, "layout": layout, "size": tuple(size)})

    def __call__(self, photograph: Image.Image) -> np.ndarray:
        """A face as one of the network's images, without a batch."""
        height, width = self.size  # type: ignore[misc]
        image = photograph.convert("L" if self.channels == "L" else "RGB")
        filtered = Image.Resampling[self.resize.upper()]
        if self.fit == "crop":
            image = ImageOps.fit(image, (width, height), filtered)
        image = image.resize((width, height), filtered)
        # In double, so that numbers are rounded once: in the cast to the network's own format, at the end.
        pixels = np.asarray(image, dtype=np.float64).reshape(height, width, CHANNELS[self.channels])
        pixels = pixels[..., ::-1] if self.channels == "BGR" else pixels
        pixels = (pixels / 255 * self.scale - np.asarray(self.mean)) / np.asarray(self.std)
        return pixels.transpose(2, 0, 1) if self.layout == "NCHW" else pixels


@dataclass(frozen=True)
class Answer:
    """Where an attribute's classes stand among a network's numbers.

    Args:
        classes: names in the order of the output's columns, all of them; or class → its column, several such as `9-11` or
            `[3, 4]`, whose probabilities are added up, or null for what the other classes leave (a lone sigmoid's `no`).
        output: name or number of the file's output.
        values: `logits` or `probabilities`; or `number` for one estimate of a quantity, such as years of age.
        cuts: of a `number`: where the next class begins, ascending; one fewer than classes, which are in the same order.
        spread: of a `number`: how far off estimates are, as the scale of a logistic distribution (its mean absolute error
            is 2 ln 2 = 1.386 times that). A class's probability is that of the true value lying between its cuts.
        validated: False where nobody has measured how often this answer is right; tables then say so.
    """

    classes: Mapping[Any, Any] | Sequence[Any]
    output: str | int = 0
    values: str = "logits"
    cuts: Sequence[float] = ()
    spread: float | None = None
    validated: bool = True

    def __post_init__(self) -> None:
        if self.values not in ("logits", "probabilities", "number"):
            raise ValueError(f"values must be logits, probabilities or number, got {self.values!r}.")
        names = list(self.classes)
        if len(names) < 2 or not all(isinstance(name, str) for name in names):  # YAML reads a bare no as false
            raise ValueError(f"an attribute needs two classes or more, named in quotes, got {names}.")
        if len(set(names)) < len(names):
            raise ValueError(f"every class has a name of its own, got {names}.")
        if self.values != "number" and (self.cuts or self.spread is not None):
            raise ValueError(f"cuts and spread belong to values=number, not to {self.values}.")
        if self.values == "number":
            between = all(one < other for one, other in pairwise(self.cuts))
            if isinstance(self.classes, Mapping) or len(self.cuts) != len(names) - 1 or not between:
                raise ValueError(
                    f"a number needs a list of classes and ascending cuts between them, one fewer, got {names} and "
                    f"{list(self.cuts)}."
                )
            if self.spread is None or not self.spread > 0:
                raise ValueError(f"a number needs a spread above 0, in its own unit, got {self.spread}.")

    @property
    def names(self) -> tuple[str, ...]:
        """The classes."""
        return tuple(self.classes)

    @property
    def columns(self) -> list[list[int]]:
        """Each class's columns; none for the class of all the rest."""
        if not isinstance(self.classes, Mapping):
            return [[column] for column in range(len(self.classes))]
        return [_columns(value) for value in self.classes.values()]

    def _check(self, width: int) -> None:
        """Refuse an output of so many columns that cannot be read so."""
        if self.values == "number":
            if width != 1:
                raise ValueError(f"it has {width} columns, and a number is one.")
            return
        if not isinstance(self.classes, Mapping) and len(self.classes) != width:
            raise ValueError(
                f"it has {width} columns and {len(self.classes)} classes are named ({', '.join(self.names)}); name all, or "
                "give each class its columns."
            )
        named = [column for columns in self.columns for column in columns]
        if beyond := [column for column in named if not 0 <= column < width]:
            raise ValueError(f"it has the columns 0 to {width - 1}, and no {beyond}.")
        if len(set(named)) < len(named) or self.columns.count([]) > 1:
            raise ValueError(
                f"a column belongs to one class, and one class at most to what is left, got {self.classes}."
            )

    def logits(self, numbers: Float[Tensor, "images columns"]) -> Float[Tensor, "images classes"]:
        """Logits of the classes, whose softmax is the probabilities that the network means.

        Raises:
            ValueError: the columns do not fit, what should be probabilities are none, or what should be logits are some.
        """
        self._check(numbers.shape[1])
        if self.values == "number":
            return self._between_cuts(numbers.double()).float()
        # softmax((0, z)) is sigmoid(z), so beside a lone sigmoid the class of all the rest has the logit 0.
        rest = numbers.new_zeros(len(numbers), 1)
        total = numbers.sum(1)
        within = bool((numbers.min() > -1e-3) & (numbers.max() < 1 + 1e-3))
        if self.values == "logits":
            # A softmax over probabilities is nearly uniform: any set of images would look fair, without an error.
            if within and numbers.shape[1] > 1 and torch.allclose(total, torch.ones_like(total), atol=1e-4):
                raise ValueError("its numbers are probabilities (they sum to 1); set values=probabilities.")
            # log Σ exp(z) over a class's columns: after the softmax it has their probabilities together.
            parts = [numbers[:, columns] if columns else rest for columns in self.columns]
            return torch.stack([part.logsumexp(1) for part in parts], 1)
        if not within:
            raise ValueError(
                f"its numbers are no probabilities ({numbers.min():.3g} to {numbers.max():.3g}); set values=logits."
            )
        sums = [numbers[:, columns].sum(1) for columns in self.columns]
        left = 1 - torch.stack(sums).sum(0)
        # A probability that was rounded to 0 keeps a finite logarithm: infinite logits are refused everywhere.
        chosen = [share if columns else left for columns, share in zip(self.columns, sums, strict=True)]
        return torch.stack(chosen, 1).clamp_min(torch.finfo(torch.float32).tiny).log()

    def _between_cuts(self, number: Float[Tensor, "images 1"]) -> Float[Tensor, "images classes"]:
        """Log-probabilities of the classes: the ordered logit (McCullagh, 1980)."""
        edges = (number.new_tensor([-torch.inf, *self.cuts, torch.inf]) - number) / float(self.spread or 1)
        low, high = edges[:, :-1], edges[:, 1:]
        # log(σ(high) − σ(low)) in a form that stays finite far from the cuts, where the difference rounds to 0.
        return logsigmoid(high) + logsigmoid(-low) + torch.log1p(-torch.exp(low - high))


def _columns(value: Any) -> list[int]:
    """The columns that a setting names (ValueError: it names none)."""
    if value is None:
        return []
    if isinstance(value, int) and not isinstance(value, bool):
        return [value]
    if isinstance(value, str) and all(end.strip().isdecimal() for end in value.split("-")) and value.count("-") < 2:
        first, *last = (int(end) for end in value.split("-"))
        return list(range(first, (last or [first])[0] + 1))
    if isinstance(value, Sequence) and not isinstance(value, str) and value:
        return [column for each in value for column in _columns(each)]
    raise ValueError(
        f"a class has a column, a list of columns, a range such as 9-11, or null for the rest, got {value!r}."
    )


class OnnxNetwork:
    """A network of images in an ONNX file, run by onnxruntime.

    Args:
        file: the network, in one file.
        sha256: of the file, None to accept any.
        obtain: where the file comes from, told if it is not there.
        device: where it runs: `cpu` or `cuda`.
        batch: images at once; a network that was exported for a fixed number is given that many.
        preparation: the arguments of `Preparation`.

    Raises:
        ValueError: onnxruntime is not installed, the file is absent or no ONNX, or the settings do not fit it.
    """

    def __init__(
        self,
        file: str,
        *,
        sha256: str | None = None,
        obtain: str = "whoever trained it",
        device: str = "cpu",
        batch: int = 16,
        **preparation: Any,
    ) -> None:
        self.path = find_weights(file, obtain=obtain, sha256=sha256)
        self._device = check_device(device)
        # Opened to check what fits; it is not known yet whether this network will be asked.
        self._session = OnDemand(self._open)
        asked = _said("preparation", partial(Preparation, **preparation))
        network = self._session()
        self._input = self._only_input(network)
        self._prepare = asked.of(self._input.shape, path=self.path)
        # Exported for one image, or for any fixed number, a network takes no other.
        fixed = self._input.shape[0]
        self._fixed = fixed if isinstance(fixed, int) and fixed > 0 else None
        self.batch = self._fixed or batch
        self._names = [output.name for output in network.get_outputs()]
        self.decisive = {"file": sha256_of(self.path), "preparation": str(self._prepare)}
        """What decides its numbers."""

    def output_name(self, wanted: str | int) -> str:
        """The name of an output that is given by name or number (ValueError: there is none)."""
        if isinstance(wanted, int) and 0 <= wanted < len(self._names):
            return self._names[wanted]
        if wanted not in self._names:
            raise ValueError(f"{str(self.path)!r} has no output {wanted!r}; it has {', '.join(self._names)}.")
        return str(wanted)

    def read(self, photographs: Sequence[Image.Image], names: Sequence[str]) -> dict[str, Tensor]:
        """What these outputs are of at most `batch` photographs: name → float32 [images, columns].

        Raises:
            ValueError: the network does not run on them, or gives no finite row for each.
        """
        pixels = np.stack([self._prepare(photograph) for photograph in photographs])
        # A network of a fixed batch takes no fewer images; it gets the last one again, whose answers are dropped.
        padding = (self._fixed or len(pixels)) - len(pixels)
        pixels = np.pad(pixels, [(0, padding), (0, 0), (0, 0), (0, 0)], mode="edge")
        # A plain cast would cut off the decimals, and 256 would become 0.
        if DTYPES[self._input.type] is np.uint8:
            pixels = pixels.round().clip(0, 255)
        try:
            found = self._session().run([*names], {self._input.name: pixels.astype(DTYPES[self._input.type])})
        except Exception as error:  # onnxruntime's have no base in common
            raise ValueError(
                f"{str(self.path)!r} does not run on images of {self._prepare.size}: {_line(error)}"
            ) from error
        return {
            name: self._numbers(name, value, len(pixels))[: len(photographs)]
            for name, value in zip(names, found, strict=True)
        }

    def free(self) -> None:
        """Give the network's memory back."""
        self._session.free()

    def _open(self) -> Any:
        runtime = import_extra("onnxruntime", extra="onnx")
        options = runtime.SessionOptions()
        # By itself onnxruntime takes every core, whatever torch was limited to, and logs what it raises as well.
        options.intra_op_num_threads, options.log_severity_level = torch.get_num_threads(), 4
        provider = PROVIDERS[self._device.type]
        # onnxruntime would go on with the CPU after a mere warning.
        if provider not in runtime.get_available_providers():
            raise ValueError(
                f"this onnxruntime does not run on {self._device}; set device=cpu, or install onnxruntime-gpu."
            )
        try:
            # By its bytes: weights in further files would not be in the fingerprint.
            return runtime.InferenceSession(self.path.read_bytes(), options, providers=[provider])
        except Exception as error:  # onnxruntime's have no base in common
            raise ValueError(
                f"{str(self.path)!r} is no network in one ONNX file that onnxruntime reads: {_line(error)}"
            ) from error

    def _only_input(self, network: Any) -> Any:
        inputs = network.get_inputs()
        if len(inputs) != 1 or inputs[0].type not in DTYPES:
            found = ", ".join(f"{each.name} ({each.type})" for each in inputs)
            raise ValueError(f"{str(self.path)!r} takes {found or 'nothing'}; it should take images alone, as numbers.")
        return inputs[0]

    def _numbers(self, name: str, value: Any, images: int) -> Float[Tensor, "images columns"]:
        if not isinstance(value, np.ndarray) or value.dtype.kind not in "fiu" or value.shape[:1] != (images,):
            shape = list(value.shape) if isinstance(value, np.ndarray) else type(value).__name__
            raise ValueError(
                f"output {name!r} of {str(self.path)!r} is {shape} for {images} images; a row for each is needed (batch=1?)."
            )
        numbers = torch.from_numpy(value.astype(np.float32).reshape(images, -1))
        # NaN means that no face was found, so a network may not say it for any other reason.
        if not bool(numbers.isfinite().all()):
            raise ValueError(f"output {name!r} of {str(self.path)!r} is NaN or infinite; look at scale, mean and std.")
        return numbers


class OnnxJudge:
    """A classifier in an ONNX file as a `Judge`; an image without a face has rows of NaN.

    Args:
        file: see `OnnxNetwork`.
        outputs: attribute → the arguments of its `Answer`.
        faces: what of an image the network sees.
        name: what tables call it; None takes the file's.
        network: the other arguments of `OnnxNetwork`.

    Raises:
        ValueError: see `OnnxNetwork`.
    """

    def __init__(
        self,
        file: str,
        *,
        outputs: Mapping[str, Mapping[str, Any]] | None,
        faces: FaceCropper | None = None,
        name: str | None = None,
        **network: Any,
    ) -> None:
        if not outputs:
            raise ValueError(
                "outputs is not given; say which numbers are which classes, as in {gender: {classes: [male, female]}}."
            )
        self._network = OnnxNetwork(file, **network)
        self.faces, self.name = faces or WholeImage(), name or self._network.path.stem
        self._answers = {
            attribute: _said(f"outputs.{attribute}", partial(Answer, **described))
            for attribute, described in outputs.items()
        }
        self.classes: Mapping[str, tuple[str, ...]] = {a: answer.names for a, answer in self._answers.items()}
        self.not_validated = tuple(a for a, answer in self._answers.items() if not answer.validated)
        self._outputs = {a: self._network.output_name(answer.output) for a, answer in self._answers.items()}
        described = {
            a: [each.columns, each.names, each.values, [*each.cuts], each.spread, each.validated, self._outputs[a]]
            for a, each in self._answers.items()
        }
        # All that can change an answer: what was read off images before is looked up under this.
        self.fingerprint = fingerprint({**self._network.decisive, "outputs": described, "faces": self.faces.name})
        self._read([Image.new("RGB", (64, 64), "grey")])  # what does not fit is known before images are made
        self.free()

    @torch.inference_mode()
    def __call__(self, images: Float[Tensor, "images channels height width"]) -> dict[str, Tensor]:
        """See `Judge`."""
        sizes = [len(names) for names in self.classes.values()]
        rows = read_faces(images, self.faces, self._read, width=sum(sizes), batch=self._network.batch)
        return dict(zip(self.classes, rows.split(sizes, dim=1), strict=True))

    def free(self) -> None:
        """Give the network's memory back."""
        self._network.free()

    def _read(self, photographs: Sequence[Image.Image]) -> Float[Tensor, "images classes"]:
        """The logits of all attributes side by side."""
        # Several attributes may share one output, which is then computed and checked once.
        numbers = self._network.read(photographs, list(dict.fromkeys(self._outputs.values())))
        return torch.cat([self._logits(a, numbers[self._outputs[a]]) for a in self.classes], dim=1)

    def _logits(self, attribute: str, numbers: Tensor) -> Tensor:
        where = f"{attribute}: output {self._outputs[attribute]!r} of {str(self._network.path)!r}"
        return _said(where, partial(self._answers[attribute].logits, numbers))


class OnnxFeatures:
    """A network of faces in an ONNX file as a `FeatureExtractor`, whose features at unit length are also the embeddings.

    Args:
        file: see `OnnxNetwork`.
        output: name or number of the output that holds the features.
        faces: what of an image the network sees; it finds a face in every one.
        name: what tables call it; None takes the file's.
        network: the other arguments of `OnnxNetwork`.

    Raises:
        ValueError: see `OnnxNetwork`.
    """

    def __init__(
        self,
        file: str,
        *,
        output: str | int = 0,
        faces: FaceCropper | None = None,
        name: str | None = None,
        **network: Any,
    ) -> None:
        self._network = OnnxNetwork(file, **network)
        self._output = self._network.output_name(output)
        self._faces, self.name = faces or WholeImage(), name or self._network.path.stem
        self.resize = f"8 bit, {self._network.decisive['preparation']}, faces: {self._faces.name}"
        self.fingerprint = fingerprint({**self._network.decisive, "output": self._output, "faces": self._faces.name})
        self.dim = self._read([Image.new("RGB", (64, 64), "grey")]).shape[1]
        self.free()

    @torch.inference_mode()
    def __call__(self, images: Float[Tensor, "images channels height width"]) -> Float[Tensor, "images dim"]:
        """Features [N, dim] (float32) of images in [0, 1]."""
        return read_faces(images, self._faces, self._read, width=self.dim, batch=self._network.batch)

    def embed_images(self, images: Float[Tensor, "images channels height width"]) -> Float[Tensor, "images dim"]:
        """The same at unit length."""
        return torch.nn.functional.normalize(self(images), dim=-1)

    @property
    def parts(self) -> Mapping[str, tuple[Callable[[Tensor], dict[str, Tensor]], Callable[[], None]]]:
        """What is read off images in one pass, and how the network's memory is given back."""
        return {"features": (self._both, self.free)}

    def free(self) -> None:
        """Give the network's memory back."""
        self._network.free()

    def _both(self, images: Tensor) -> dict[str, Tensor]:
        features = self(images)
        return {"features": features, "embeddings": torch.nn.functional.normalize(features, dim=-1)}

    def _read(self, photographs: Sequence[Image.Image]) -> Float[Tensor, "images dim"]:
        return self._network.read(photographs, [self._output])[self._output]


def _said(where: str, made: Callable[[], Any]) -> Any:
    """What a call gives; its complaint, a ValueError, begins with what it is about."""
    try:
        return made()
    except (ValueError, TypeError) as error:
        raise ValueError(f"{where}: {error}") from error


def _line(error: Exception) -> str:
    # What happened stands at the end, after the places in onnxruntime's own source.
    return " ".join(str(error).split())[-200:]
