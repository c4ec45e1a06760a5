"""Published models: a local folder, or a hub repository that was fetched before; nothing is downloaded here."""

import json
import re
from pathlib import Path
from typing import Any

from diffusers import DDIMScheduler, UNet2DModel
from huggingface_hub import constants, snapshot_download
from huggingface_hub.errors import LocalEntryNotFoundError

from difflens.models.quiet import quietly
from difflens.models.unconditional import UnconditionalModel
from difflens.store.locations import PACKAGE, locate

LEFT_OUT = ("safety_checker", "feature_extractor")
"""Parts of a pipeline that no measurement loads."""

WEIGHTS = ("*.safetensors", "*.bin")
"""Files of a part's weights."""


def load_pretrained(folder: str, *, obtain: str, **settings: Any) -> UnconditionalModel:
    """The unconditional model of a diffusers pipeline, with a DDIM sampler on its noise schedule.

    Args:
        folder: a folder with `unet/` and `scheduler/` or with the files of both side by side, or the hub id of such a
            repository in the local cache.
        obtain: the command that brings the files where they are looked for, told if they are not there.
        settings: passed to `UnconditionalModel`.

    Raises:
        ValueError: the files are not there or incomplete.
    """
    path = find_pipeline(folder, obtain=obtain)
    parts = _part(path, "unet", "config.json"), _part(path, "scheduler", "scheduler_config.json")
    try:
        with quietly():
            unet = UNet2DModel.from_pretrained(parts[0], local_files_only=True, low_cpu_mem_usage=False)
            scheduler = DDIMScheduler.from_pretrained(parts[1], local_files_only=True)
    except OSError as error:
        raise ValueError(f"the model in {path} is incomplete ({error}); get it again with `{obtain}`.") from error
    return UnconditionalModel(unet, scheduler, **settings)


def find_pipeline(source: str, *, obtain: str, key: str = "model.folder") -> Path:
    """Where a pipeline's files lie, all of them: the folder itself, or the hub's cache.

    Args:
        source: a folder or a hub id.
        obtain: the command that brings the files there.
        key: where the configuration names the source.

    Raises:
        ValueError: there is neither, or files are lacking; the message says where it was looked for and how to get them.
    """
    if source.startswith(PACKAGE) or Path(source).expanduser().exists():
        return _complete(locate(source), obtain=obtain)
    looked = f"no model at {str(Path(source).expanduser())!r}"
    if re.fullmatch(r"[\w.-]+/[\w.-]+", source):
        try:
            return _complete(Path(snapshot_download(source, local_files_only=True)), obtain=obtain)
        except LocalEntryNotFoundError:
            looked += f" and no repository of that name in {constants.HF_HUB_CACHE!r}"
    raise ValueError(f"{looked}; get it with `{obtain}`, or set {key} to where it lies.")


def _complete(path: Path, *, obtain: str) -> Path:
    """The folder itself, once it holds every part of a pipeline with its weights.

    Raises:
        ValueError: a part or its weights are lacking; all are named.
    """
    index = path / "model_index.json"
    parts = _parts_of(index) if index.is_file() else ["unet", "scheduler"]
    lacking = [what for part in parts for what in _lacking(path, part, alone=not index.is_file())]
    if lacking:
        raise ValueError(
            f"the model in {str(path)!r} is incomplete ({', '.join(lacking)}); get it again with `{obtain}`."
        )
    return path


def _parts_of(index: Path) -> list[str]:
    """The parts that a pipeline names, but for those that are never loaded here."""
    described = json.loads(index.read_text(encoding="utf-8"))
    named = [name for name, entry in described.items() if isinstance(entry, list) and entry[0] is not None]
    return [name for name in named if name not in LEFT_OUT]


def _lacking(path: Path, part: str, *, alone: bool) -> list[str]:
    """What a part of a pipeline lacks; `alone`: there is no index, and files may lie side by side instead of in folders."""
    config = "scheduler_config.json" if part == "scheduler" else "config.json"
    places = [path / part, *([path] if alone else [])]
    if "tokenizer" in part:
        return [] if places[0].is_dir() and any(places[0].iterdir()) else [f"no {part}/"]
    place = next((place for place in places if (place / config).is_file()), None)
    if place is None:
        return [f"no {part}/{config}" + (f" and no {config}" if alone else "")]
    weighs = part != "scheduler" and not any(file.is_file() for kind in WEIGHTS for file in place.glob(kind))
    return [f"no weights beside {place.name}/{config}"] if weighs else []


def _part(path: Path, name: str, config: str) -> Path:
    """The folder of a pipeline's part: its own, or the pipeline's where all files lie side by side."""
    for folder in (path / name, path):
        if (folder / config).is_file():
            return folder
    raise ValueError(
        f"no {name}/{config} and no {config} in model folder {str(path)!r}; put a diffusers pipeline there."
    )
