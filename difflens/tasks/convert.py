"""`task=convert`: write a guided-diffusion checkpoint as a diffusers pipeline folder, once."""

import os
import shutil
from pathlib import Path

from diffusers import DDIMPipeline
from omegaconf import DictConfig

from difflens.models.guided_diffusion import convert_unet
from difflens.models.tensor_files import read_state_dict
from difflens.store.files import TEMPORARY, sha256_of, sync, write_json
from difflens.store.run import Run
from difflens.study.values import built


def convert(cfg: DictConfig, run: Run) -> None:
    """Convert `task.checkpoint` and write it to `task.export_to`, which must not exist yet."""
    checkpoint, export_to = Path(cfg.task.checkpoint).expanduser(), Path(cfg.task.export_to).expanduser()
    if export_to.exists():
        raise ValueError(
            f"{export_to} exists and is not overwritten; delete it or set task.export_to to another folder."
        )
    names = ("image_size", "head_channels", "num_heads", "new_attention_order")
    settings = {name: cfg.task.get(name) for name in names}
    unet = convert_unet(read_state_dict(checkpoint, part=cfg.task.get("weights")), **settings)
    pipeline = DDIMPipeline(unet=unet, scheduler=built(cfg, "task.scheduler"))
    with run.stage("convert"):
        origin = {"checkpoint": checkpoint.name, "weights": cfg.task.get("weights"), "sha256": sha256_of(checkpoint)}
        write_pipeline(pipeline, export_to, origin | settings)
    parameters = sum(parameter.numel() for parameter in unet.parameters())
    run.say(f"{checkpoint.name} ({parameters / 1e6:.1f} million parameters) converted to {export_to}")


def write_pipeline(pipeline: DDIMPipeline, folder: Path, origin: dict[str, str | int | bool | None]) -> None:
    """Save a pipeline, and in `conversion.json` what it was made from, so that the folder is there whole or not at all."""
    partial = folder.with_name(f".{folder.name}.{os.getpid()}{TEMPORARY}")
    try:
        pipeline.save_pretrained(partial)
        write_json(partial / "conversion.json", origin)
        # safetensors leaves files that their owner alone can read. Their bytes are on the disk before the folder has
        # its name, so that a power cut leaves no half of it.
        for path in (path for path in partial.rglob("*") if path.is_file()):
            path.chmod(0o644)
            sync(path)
        os.rename(partial, folder)
        sync(folder.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
