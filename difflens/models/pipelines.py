"""Loading a text-to-image model: from a local folder, from the hub, or an architecture with random weights."""

import re
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    DDIMScheduler,
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
)
from huggingface_hub import snapshot_download
from huggingface_hub.errors import GatedRepoError

from difflens.models.precision import DTYPES, choose_precision
from difflens.models.quiet import quietly
from difflens.models.random_pipeline import build_random_pipeline
from difflens.models.text_to_image import TextToImageModel
from difflens.store.locations import PACKAGE, locate

SCHEDULERS = {
    "ddim": DDIMScheduler,
    "dpm": DPMSolverMultistepScheduler,
    "euler": EulerDiscreteScheduler,
    "euler_ancestral": EulerAncestralDiscreteScheduler,
}


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
) -> TextToImageModel:
    """A text-to-image model; its safety checker is not loaded, since black images would enter every measurement.

    Args:
        source: a local pipeline folder, `package:…`, or a hub id.
        weights: `pretrained`, or `random` for the architecture alone.
        architecture: with random weights, which one (see `build_random_pipeline`).
        divide_widths: with random weights, makes every network narrower.
        offline: never asks the hub; a model that was not fetched before is an error.
        variant: of the weight files, such as `fp16`.
        scheduler: `ddim`, `dpm`, `euler` or `euler_ancestral`, built on the pipeline's own noise schedule, or `own`.
        precision: `fp32`, `fp16`, `bf16`, or `auto`: bf16 where the device computes it, else fp32; on a CPU `bf16`
            keeps float32 weights from files and runs the U-Net under autocast.
        device: where it runs.
        settings: passed to `TextToImageModel`.

    Raises:
        ValueError: no such model here, or a setting is out of its range.
    """
    precision = choose_precision(precision, device)
    dtype = DTYPES[precision]
    if weights == "random":
        pipeline = build_random_pipeline(architecture or "", dtype=dtype, device=device, divide_widths=divide_widths)
    elif weights == "pretrained":
        held = torch.float32 if device == "cpu" else dtype
        pipeline = _load(source, offline=offline, variant=variant, dtype=held).to(device)
    else:
        raise ValueError(f"model.weights must be pretrained or random, got {weights!r}.")
    pipeline.scheduler = choose_scheduler(pipeline.scheduler, scheduler)
    return TextToImageModel(pipeline, precision=precision, **settings)


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


def _load(source: str, *, offline: bool, **settings: Any) -> DiffusionPipeline:
    local = source.startswith(PACKAGE) or Path(source).expanduser().exists()
    if local or not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", source):
        folder = locate(source)
        if not (folder / "model_index.json").is_file():
            raise ValueError(f"no model_index.json in model folder {str(folder)!r}; save a diffusers pipeline there.")
        return _from_pretrained(str(folder), local_files_only=True, **settings)
    try:
        # By its id, the hub's client would ask the network even for what the cache holds.
        place = snapshot_download(source, local_files_only=True) if offline else source
        return _from_pretrained(place, local_files_only=offline, **settings)
    except OSError as error:
        raise ValueError(_how_to_get(source, error, offline=offline)) from error


def _how_to_get(source: str, error: OSError, *, offline: bool) -> str:
    # diffusers reports a gated repository as one that does not exist; the hub's own error is what it was handling.
    if isinstance(error, GatedRepoError) or isinstance(error.__context__, GatedRepoError):
        page = f"https://huggingface.co/{source}"
        return f"model {source!r} is gated: accept its licence at {page}, run `hf auth login`, then `hf download {source}`."
    reason = "is not on this machine, and model.offline is true" if offline else "could not be fetched from the hub"
    return (
        f"model {source!r} {reason}: run `hf download {source}` where there is a network, or put a diffusers pipeline "
        f"folder on this machine and set model.source to its path."
    )


def _from_pretrained(source: str, *, local_files_only: bool, **settings: Any) -> DiffusionPipeline:
    with quietly():
        parts = DiffusionPipeline.load_config(source, local_files_only=local_files_only)
        left_out: dict[str, Any] = {
            name: None for name in ("safety_checker", "feature_extractor") if "safety_checker" in parts
        }
        if left_out:
            left_out["requires_safety_checker"] = False
        pipeline = DiffusionPipeline.from_pretrained(
            source, local_files_only=local_files_only, low_cpu_mem_usage=False, **left_out, **settings
        )
    library, *_ = parts.get("safety_checker") or (None,)
    pipeline.had_safety_checker = library is not None
    return pipeline
