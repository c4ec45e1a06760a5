"""Photorealistic faces to learn from: any number of them, drawn by a published network, a shard at a time.

The network is the MobileStyleGAN of the package `random-face` (Belousov 2021, arXiv 2104.04767), distilled from StyleGAN2,
which learnt from FFHQ: what is trained on its faces is for research (CC BY-NC-SA 4.0).
"""

import math
import os
import zipfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from difflens.judges.faces import import_extra
from difflens.store.artifacts import is_finished, read_shard, write_shard
from difflens.store.errors import UserError
from difflens.store.locations import locate
from difflens.store.progress import progress

OBTAIN = "pip download --no-deps random-face"
"""The command that brings the networks; what the package asks for beside them is needed for nothing here."""
LEFT, TOP, SIDE = 14, 18, 100
"""The square around the face in the maps of 128 × 128 places, of 8 pixels each: half of the picture is background."""
MARGIN = 8
"""Pixels of the square of 400 at each edge that see the cut; the 384 within are those of the whole picture, bit for bit."""
POOL = 4
"""Pixels of 384 that make one of 96, in each direction."""
SIZE = (4 * SIDE - 2 * MARGIN) // POOL


@dataclass(eq=False)
class FaceRecipe:
    """Faces uint8 [3, 96, 96] in shards; those of a shard depend on its number alone, so that a stopped run goes on.

    Args:
        networks: the wheel of `random-face`, or the folder of its four files.
        faces: how many, in whole shards.
        truncation: 1 is as varied as the network can, 0 one face; 0.8 looks best.
        shard: faces that are written at once.
        seed: of the styles.
    """

    networks: str
    faces: int
    truncation: float = 0.8
    shard: int = 64
    seed: int = 1611

    def __post_init__(self) -> None:
        _openvino()  # told before anything is drawn

    def make(self, folder: Path) -> None:
        """Draw the shards that `folder` lacks, one process for each core."""
        folder.mkdir(parents=True, exist_ok=True)
        missing = [number for number in range(-(-self.faces // self.shard)) if not is_finished(folder, _name(number))]
        if not missing:
            return
        unpacked = unpack(Path(self.networks).expanduser(), folder / "networks")
        mean = mean_style(unpacked, seed=self.seed)
        workers = min(len(missing), os.cpu_count() or 1)
        with ProcessPoolExecutor(
            workers, get_context("spawn"), initializer=_open, initargs=(unpacked, mean, self)
        ) as pool:
            drawn = pool.map(_draw, missing)
            for number in progress(missing, "faces"):
                write_shard(folder, _name(number), {"faces": torch.from_numpy(next(drawn))})


def load_faces(folder: str) -> UInt8[Tensor, "faces 3 height width"]:
    """All faces of a folder that `FaceRecipe` has filled (ValueError: there are none)."""
    place = Path(folder)
    names = sorted(path.stem for path in place.glob("faces-*.safetensors"))
    if not names:
        raise ValueError(f"task.recipes: no faces in {folder!r}; make them first, with task.models=[photo_faces].")
    return torch.cat([read_shard(place, name)["faces"] for name in names])


def save_sheet(faces: UInt8[Tensor, "faces 3 side side"], file: Path) -> None:
    """Write square pictures into one, row by row, without loss."""
    side, columns = faces.shape[-1], math.isqrt(len(faces) - 1) + 1
    sheet = Image.new("RGB", (columns * side, -(-len(faces) // columns) * side))
    for number, face in enumerate(faces):
        row, column = divmod(number, columns)
        sheet.paste(Image.fromarray(face.permute(1, 2, 0).numpy()), (column * side, row * side))
    sheet.save(file, lossless=True, method=6)


def load_sheet(file: str, *, side: int, images: int) -> UInt8[Tensor, "faces 3 side side"]:
    """The pictures that `save_sheet` wrote into one.

    Raises:
        ValueError: the file is not there, or holds fewer.
    """
    with Image.open(locate(file)) as image:
        sheet = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)
    rows, columns = sheet.shape[1] // side, sheet.shape[2] // side
    if rows * columns < images:
        raise ValueError(f"{file!r} holds {rows * columns} pictures of {side} pixels, not {images}.")
    tiles = sheet[:, : rows * side, : columns * side].unflatten(2, (columns, side)).unflatten(1, (rows, side))
    return tiles.permute(1, 3, 0, 2, 4).flatten(0, 1)[:images].contiguous()


class FaceNetwork:
    """The network, cut to the part of the picture that holds the face.

    Args:
        folder: of its four files.
        mean: the mean style [1, 512], towards which truncation draws.
        truncation: see `FaceRecipe`.
    """

    def __init__(self, folder: Path, mean: np.ndarray, *, truncation: float) -> None:
        self.mean, self.truncation = mean, truncation
        self.styles, self.synthesis = (
            _compile(model) for model in (_read(folder, "Mapping"), _cut(_synthesis(folder)))
        )

    def draw(self, variables: Float[np.ndarray, "faces 512"]) -> UInt8[np.ndarray, "faces 3 height width"]:
        """A face for each row of standard normal numbers."""
        return np.stack([self._face(row[None]) for row in variables.astype(np.float32)])

    def _face(self, variable: np.ndarray) -> np.ndarray:
        style = self.mean + self.truncation * (self.styles(variable)[0] - self.mean)
        # The first three of twelve wavelet coefficients: twice the mean of each 2 × 2 pixels of the picture of 1024.
        picture = self.synthesis(style)[0][0, :3] / 2
        inner = picture[:, MARGIN:-MARGIN, MARGIN:-MARGIN]
        pooled = inner.reshape(3, SIZE, POOL, SIZE, POOL).mean((2, 4))
        return (127.5 * (pooled.clip(-1, 1) + 1)).round().astype(np.uint8)


def unpack(networks: Path, folder: Path) -> Path:
    """The folder of the networks' files, taken out of the wheel where they are in one.

    Raises:
        UserError: they are not there.
    """
    place, names = networks, [f"{part}Network.{end}" for part in ("Mapping", "Synthesis") for end in ("xml", "bin")]
    if networks.is_file() and zipfile.is_zipfile(networks):
        folder.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(networks) as wheel:
            held = {Path(name).name: name for name in wheel.namelist()}
            for name in names:
                if name in held:
                    (folder / name).write_bytes(wheel.read(held[name]))
        place = folder
    if lacking := [name for name in names if not (place / name).is_file()]:
        raise UserError(
            f"task.recipes: no {lacking[0]} in {str(networks)!r}; get the networks with `{OBTAIN}` and name that file."
        )
    return place


def mean_style(folder: Path, *, seed: int, draws: int = 4096) -> Float[np.ndarray, "1 512"]:
    """The mean of the styles of `draws` faces."""
    styles = _compile(_read(folder, "Mapping"))
    variables = np.random.default_rng([seed]).standard_normal((draws, 512)).astype(np.float32)
    return np.mean([styles(row[None])[0] for row in variables], axis=0)


def _name(number: int) -> str:
    return f"faces-{number:05d}"


_DRAWN: list[Any] = []
"""In a process that draws: the recipe and its network."""


def _open(folder: Path, mean: np.ndarray, recipe: FaceRecipe) -> None:
    _DRAWN[:] = [recipe, FaceNetwork(folder, mean, truncation=recipe.truncation)]


def _draw(number: int) -> np.ndarray:
    recipe, network = _DRAWN
    variables = np.random.default_rng([recipe.seed, number]).standard_normal((recipe.shard, 512))
    return network.draw(variables)  # type: ignore[no-any-return]


def _openvino() -> Any:
    return import_extra("openvino", extra="photographs")


def _read(folder: Path, part: str) -> Any:
    return _openvino().Core().read_model(folder / f"{part}Network.xml")


def _compile(model: Any) -> Any:
    # One thread each: a process for each core is faster than a face on all of them.
    settings = {"ENABLE_CPU_PINNING": False, "INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": "f32"}
    compiled = _openvino().Core().compile_model(model, "CPU", settings)
    return compiled


def _synthesis(folder: Path) -> Any:
    """The network up to the wavelet coefficients of 512 × 512 places; what joins them to 1024 is left out."""
    model = _read(folder, "Synthesis")
    coefficients = next(op for op in model.get_ops() if op.get_friendly_name() == "Add_754")
    return _openvino().Model([coefficients.output(0)], model.get_parameters(), "faces")


def _cut(model: Any) -> Any:
    """The network, from its maps of 128 × 128 places on, on the square around the face alone: 2.6 times as fast."""
    for op in model.get_ordered_ops():
        shape = list(op.get_output_shape(0)) if op.get_output_size() else []
        noise = op.get_type_name() == "Constant" and shape in ([1, 1, 256, 256], [1, 1, 512, 512])
        if noise or op.get_friendly_name() == "LeakyRelu_542":
            _crop(op.output(0), shape[-1] // 128)
    model.validate_nodes_and_infer_types()
    return model


def _crop(output: Any, scale: int) -> None:
    begin = [TOP * scale, LEFT * scale]
    end = [place + SIDE * scale for place in begin]
    ends: Sequence[Any] = [np.array(each, dtype=np.int64) for each in (begin, end, [1, 1], [2, 3])]
    consumers = output.get_target_inputs()
    cropped = import_extra("openvino.opset13", extra="photographs").slice(output, *ends)
    for consumer in consumers:
        consumer.replace_source_output(cropped.output(0))
