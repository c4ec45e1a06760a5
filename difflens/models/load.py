"""Loading a model: from a local folder, from the hub's cache, or an architecture with random weights."""

import json
import pickle
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderTiny,
    DDIMScheduler,
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    UNet2DModel,
    VQModel,
)
from huggingface_hub import constants, snapshot_download
from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError

from difflens.models.devices import DTYPES, check_device, choose_precision, quietly
from difflens.models.model import DiffusionModel, LatentPipeline, UnconditionalPipeline
from difflens.store.locations import PACKAGE, locate

SCHEDULERS = {
    "ddim": DDIMScheduler,
    "dpm": DPMSolverMultistepScheduler,
    "euler": EulerDiscreteScheduler,
    "euler_ancestral": EulerAncestralDiscreteScheduler,
}

DECODERS = {kind.__name__: kind for kind in (VQModel, AutoencoderKL, AutoencoderTiny)}
"""What may turn latents of an unconditional model into images, by the name in its configuration."""

LEFT_OUT = ("safety_checker", "feature_extractor")
"""Parts of a pipeline that no measurement loads."""

WEIGHTS = ("*.safetensors", "*.bin")
"""Files of a part's weights."""

HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")

OBTAIN = "hf download <repository>"
"""The command that brings a model here, where its configuration names none."""


def load_unconditional(
    folder: str,
    *,
    obtain: str = OBTAIN,
    respaced: bool = False,
    precision: str = "fp32",
    device: str = "cpu",
    **settings: Any,
) -> DiffusionModel:
    """The unconditional model of a diffusers pipeline, with a DDIM sampler on its noise schedule; nothing is downloaded.

    Args:
        folder: a folder (or `package:…`) with `unet/` and `scheduler/` or with the files of both side by side, or the hub id
            of such a repository in the local cache; beside them a model of latents has `vqvae/` or `vae/`.
        obtain: the command that brings the files where they are looked for, told if they are not there.
        respaced: sample on the grid of the paper's release (see `RespacedScheduler`), not on DDIM's own.
        precision: `fp32`, `bf16` under autocast, or `auto`: bf16 where the device computes it.
        device: where it runs.
        settings: passed to `DiffusionModel`.

    Raises:
        ValueError: the files are not there, incomplete or another kind of model, or a setting is out of its range.
    """
    path = find_pipeline(folder, obtain=obtain)
    unet_folder, scheduler_folder = (
        next(place for place in (path / part, path) if (place / config).is_file())
        for part, config in (("unet", "config.json"), ("scheduler", "scheduler_config.json"))
    )
    kind = _json(unet_folder / "config.json").get("_class_name", "UNet2DModel")
    if kind != "UNet2DModel":
        named = _json(path / "model_index.json").get("_class_name")
        described = f"a {named} ({kind})" if named else f"a {kind}"
        raise ValueError(f"the model in {str(path)!r} is {described}, which load_unconditional cannot sample.")
    precision, place = choose_precision(precision, device, among=("fp32", "bf16")), check_device(device)
    local: dict[str, Any] = {"local_files_only": True}
    try:
        with quietly():
            # The default of low_cpu_mem_usage asks for accelerate, which is no dependency here.
            unet = UNet2DModel.from_pretrained(
                unet_folder, low_cpu_mem_usage=False, variant=_variant(unet_folder), **local
            )
            scheduler = DDIMScheduler.from_pretrained(scheduler_folder, **local)
            vae = _decoder(path, **local)
    except OSError as error:
        raise ValueError(f"the model in {path} is incomplete ({error}); get it again with `{obtain}`.") from error
    # In float32 even from files of half precision, since bf16 runs under autocast.
    unet = _laid_out(unet.float().to(place))
    if vae is None:
        pipeline = UnconditionalPipeline(unet, scheduler, respaced=respaced)
    else:
        pipeline = LatentPipeline(unet, scheduler, vae.float().to(place), respaced=respaced)
    return DiffusionModel(pipeline, precision=precision, **settings)


def _laid_out(denoiser: Any) -> Any:
    """The denoiser with its channels last in memory, as convolutions are fastest; what it computes is the same."""
    # 1.1 to 1.3 times as fast on CPUs (mini_ddpm, float32); diffusers advises it for tensor cores too.
    return denoiser.to(memory_format=torch.channels_last)


def _decoder(path: Path, **settings: Any) -> Any:
    """The autoencoder of a model of latents; None where the model works on pixels.

    Raises:
        ValueError: it is of a kind that is not known here.
    """
    # LDMPipeline names it after its first kind, whatever it is.
    folder = next((path / part for part in ("vqvae", "vae") if (path / part / "config.json").is_file()), None)
    if folder is None:
        return None
    kind = _json(folder / "config.json").get("_class_name")
    if kind not in DECODERS:
        raise ValueError(f"the latents of {str(path)!r} belong to a {kind}; known here are {', '.join(DECODERS)}.")
    return DECODERS[kind].from_pretrained(folder, low_cpu_mem_usage=False, variant=_variant(folder), **settings)


def load_text_to_image(
    source: str,
    *,
    weights: str = "pretrained",
    architecture: str | None = None,
    divide_widths: int = 1,
    offline: bool = True,
    variant: str | None = None,
    scheduler: str = "ddim",
    precision: str = "fp32",
    device: str = "cpu",
    **settings: Any,
) -> DiffusionModel:
    """A text-to-image model; its safety checker is not loaded, since black images would enter every measurement.

    Args:
        source: a local pipeline folder, `package:…`, or a hub id.
        weights: `pretrained`, or `random` for the architecture alone.
        architecture: with random weights, which one (see `build_random_pipeline`).
        divide_widths: with random weights, makes every network narrower.
        offline: never asks the hub; a model that was not fetched before is an error.
        variant: of the weight files, such as `fp16`; None takes fp16 files where there are no others.
        scheduler: `ddim`, `dpm`, `euler` or `euler_ancestral`, built on the pipeline's own noise schedule, or `own`.
        precision: `fp32`, `fp16`, `bf16`, or `auto`: bf16 where the device computes it, else fp32; on a CPU `bf16`
            keeps float32 weights from files and runs the U-Net under autocast.
        device: where it runs.
        settings: passed to `DiffusionModel`.

    Raises:
        ValueError: no such model here, it is another kind of model, or a setting is out of its range.
    """
    precision = choose_precision(precision, device)
    dtype = DTYPES[precision]
    if weights == "random":
        # Imported by need: unconditional models have no use for transformers.
        from difflens.models.random_pipeline import build_random_pipeline

        pipeline = build_random_pipeline(architecture or "", dtype=dtype, device=device, divide_widths=divide_widths)
    elif weights == "pretrained":
        held = torch.float32 if device == "cpu" else dtype
        pipeline = _load(source, offline=offline, variant=variant, dtype=held).to(device)
    else:
        raise ValueError(f"model.weights must be pretrained or random, got {weights!r}.")
    pipeline.scheduler = choose_scheduler(pipeline.scheduler, scheduler)
    pipeline.unet = _laid_out(pipeline.unet)
    return DiffusionModel(pipeline, precision=precision, **settings)


def choose_scheduler(own: Any, name: str) -> Any:
    """The scheduler of that name on the noise schedule of the pipeline's own, or its own.

    Raises:
        ValueError: no such scheduler.
    """
    if name == "own":
        return own
    if name not in SCHEDULERS:
        raise ValueError(f"model.scheduler must be own or one of {', '.join(SCHEDULERS)}, got {name!r}.")
    kind = SCHEDULERS[name]
    # DDIM clips to [-1, 1] unless told otherwise: right for pixels, wrong for latents.
    unclipped = {"clip_sample": False} if kind is DDIMScheduler and "clip_sample" not in own.config else {}
    return own if type(own) is kind else kind.from_config(own.config, **unclipped)


def find_pipeline(source: str, *, obtain: str, key: str = "model.folder") -> Path:
    """Where a pipeline's files lie, all of them: the folder itself, or the hub's cache.

    Raises:
        ValueError: there is neither, or files are lacking; the message says where it was looked for, that `obtain` is the
            command to get them, and that `key` of the configuration names another place.
    """
    # Looked for first: of a folder that is not there, from_pretrained would ask the hub five times.
    if source.startswith(PACKAGE) or Path(source).expanduser().exists():
        return _complete(locate(source), obtain=obtain)
    looked = f"no model at {str(Path(source).expanduser())!r}"
    if HUB_ID.fullmatch(source):
        try:
            return _complete(Path(snapshot_download(source, local_files_only=True)), obtain=obtain)
        except LocalEntryNotFoundError:
            looked += f" and no repository of that name in {constants.HF_HUB_CACHE!r}"
    raise ValueError(f"{looked}; get it with `{obtain}`, or set {key} to where it lies.")


def _json(path: Path) -> dict[str, Any]:
    """What a file says; nothing if it is not there."""
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return found


def _complete(path: Path, *, obtain: str) -> Path:
    """The folder itself, once it holds every part of a pipeline with its weights; whatever is lacking is refused by name."""
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
    named = [name for name, entry in _json(index).items() if isinstance(entry, list) and entry[0] is not None]
    return [name for name in named if name not in LEFT_OUT and not name.startswith("_")]


def _lacking(path: Path, part: str, *, alone: bool) -> Iterator[str]:
    """What a part of a pipeline lacks; `alone`: there is no index, and files may lie side by side instead of in folders."""
    config = "scheduler_config.json" if part == "scheduler" else "config.json"
    places = [path / part, *([path] if alone else [])]
    if "tokenizer" in part:
        if not (places[0].is_dir() and any(places[0].iterdir())):
            yield f"no {part}/"
        return
    place = next((place for place in places if (place / config).is_file()), None)
    if place is None:
        yield f"no {part}/{config}" + (f" and no {config}" if alone else "")
    elif part != "scheduler":
        # Weights in shards; of a variant the index is named `….index.fp16.json`.
        indices = place.glob("*.index*.json")
        shards = {name for index in indices for name in _json(index).get("weight_map", {}).values()}
        yield from (f"no {part}/{name}" for name in sorted(shards) if not (place / name).is_file())
        if not any(file.is_file() for kind in WEIGHTS for file in place.glob(kind)):
            yield f"no weights beside {place.name}/{config}"


def _variant(*places: Path) -> str | None:
    """`fp16` where some place holds weights in files of that variant alone."""
    for place in places:
        files = [file.name for kind in WEIGHTS for file in place.glob(kind)]
        if files and all(".fp16." in name or ".fp16-" in name for name in files):
            return "fp16"
    return None


def _load(source: str, *, offline: bool, variant: str | None, **settings: Any) -> DiffusionPipeline:
    on_the_hub = HUB_ID.fullmatch(source) and not Path(source).expanduser().exists()
    if on_the_hub and not offline:
        try:
            return _from_pretrained(source, variant, **settings)
        except OSError as error:
            raise ValueError(_how_to_get(source, error)) from error
    # Of a hub id the folder in the cache: by its id, the hub's client would ask the network even for what is there.
    folder = find_pipeline(source, obtain=f"hf download {source}" if on_the_hub else OBTAIN, key="model.source")
    if not (folder / "model_index.json").is_file():
        raise ValueError(f"no model_index.json in model folder {str(folder)!r}; save a diffusers pipeline there.")
    return _from_pretrained(folder, variant, **settings)


def _how_to_get(source: str, error: OSError) -> str:
    # diffusers reports a gated repository as one that does not exist; the hub's own error is what it was handling.
    if isinstance(error, GatedRepoError) or isinstance(error.__context__, GatedRepoError):
        page = f"https://huggingface.co/{source}"
        return f"model {source!r} is gated: accept its licence at {page}, run `hf auth login`, then `hf download {source}`."
    return (
        f"model {source!r} could not be fetched from the hub: run `hf download {source}` where there is a network, or put "
        f"a diffusers pipeline folder on this machine and set model.source to its path."
    )


def _from_pretrained(source: Path | str, variant: str | None, **settings: Any) -> DiffusionPipeline:
    """The pipeline of a folder that holds all of its parts, or of a hub id, for which the network is asked (else OSError)."""
    local = isinstance(source, Path)
    settings["local_files_only"] = local
    settings["variant"] = variant
    if isinstance(source, Path):
        parts = (source / name for name in _parts_of(source / "model_index.json"))
        # diffusers looks for files of a variant only where it is named.
        settings["variant"] = variant or _variant(*(part for part in parts if part.is_dir()))
    with quietly():
        index = DiffusionPipeline.load_config(str(source), local_files_only=local)
        kind = getattr(diffusers, str(index.get("_class_name")), None)
        # A class of the folder's own would be run from its files.
        if kind is None or "unet" not in index or "text_encoder" not in index:
            raise ValueError(
                f"the model at {str(source)!r} is a {index.get('_class_name')}; text-to-image models here are diffusers "
                "pipelines with a U-Net and a text encoder, such as StableDiffusionPipeline."
            )
        if "safety_checker" in index:
            settings |= {name: None for name in LEFT_OUT} | {"requires_safety_checker": False}
        try:
            pipeline = kind.from_pretrained(str(source), low_cpu_mem_usage=False, **settings)
        except (OSError, pickle.UnpicklingError, ValueError) as error:
            # The hub's: whoever asked for it tells how to get it.
            if isinstance(error, OSError) and not local:
                raise
            # Code in the folder, parts of other libraries, and pickles of anything but tensors: never run, said in one line.
            raise ValueError(f"the model in {str(source)!r} cannot be loaded: {str(error).splitlines()[0]}") from error
    # By the index, since the checker itself was not loaded; runs say that one was switched off.
    library, *_ = index.get("safety_checker") or (None,)
    pipeline.had_safety_checker = library is not None
    return pipeline
