"""Published unconditional models: a local folder, or a hub repository that was fetched before; nothing is downloaded here."""

import re
from pathlib import Path
from typing import Any

from diffusers import DDIMScheduler, UNet2DModel
from huggingface_hub import constants, snapshot_download
from huggingface_hub.errors import LocalEntryNotFoundError

from difflens.locations import PACKAGE, locate
from difflens.models.quiet import quietly
from difflens.models.unconditional import UnconditionalModel


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


def find_pipeline(source: str, *, obtain: str) -> Path:
    """Where a pipeline's files lie: the folder itself, or the hub's cache.

    Raises:
        ValueError: there is neither; the message says where it was looked for and how to get the files.
    """
    if source.startswith(PACKAGE) or Path(source).expanduser().exists():
        return locate(source)
    looked = f"no model at {str(Path(source).expanduser())!r}"
    if re.fullmatch(r"[\w.-]+/[\w.-]+", source):
        try:
            return Path(snapshot_download(source, local_files_only=True))
        except LocalEntryNotFoundError:
            looked += f" and no repository of that name in {constants.HF_HUB_CACHE!r}"
    raise ValueError(f"{looked}; get it with `{obtain}`, or set model.folder to where it lies.")


def _part(path: Path, name: str, config: str) -> Path:
    """The folder of a pipeline's part: its own, or the pipeline's where all files lie side by side."""
    for folder in (path / name, path):
        if (folder / config).is_file():
            return folder
    raise ValueError(
        f"no {name}/{config} and no {config} in model folder {str(path)!r}; put a diffusers pipeline there."
    )
