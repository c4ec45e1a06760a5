"""`task=doctor`: every file, package and device that experiments need, found or missing, and how to get what is missing."""

import importlib.util
import os
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from huggingface_hub import constants
from hydra import compose
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from difflens.judges.clip import find_pretrained
from difflens.judges.weights import find_weights
from difflens.models.devices import check_device
from difflens.models.load import find_pipeline
from difflens.store.errors import NotReadyError, one_line
from difflens.store.files import disk_space
from difflens.store.locations import locate
from difflens.store.run import Run, main_memory
from difflens.store.targets import entries
from difflens.tasks.forecast import describe_forecast, forecast

PACKAGES = {
    **{"YunetFaces": ("cv2", "faces"), "HaarFaces": ("cv2", "faces"), "DlibFaces": ("dlib", "dlib")},
    **dict.fromkeys(("OnnxJudge", "OnnxFeatures"), ("onnxruntime", "onnx")),
}
"""What classes of face croppers, judges and extractors import, and the extra that installs it."""

SHOWN = 4
"""Missing things of an experiment that are named."""


class Need(NamedTuple):
    """Something an experiment needs."""

    key: str  # where the configuration names it
    what: str  # the file, folder, package or device, and where it is looked for
    sha256: str | None  # that the file must have, None where none was published
    found: Path | None  # where it is, None if it is missing or another file
    remedy: str  # how to get it, empty if it is found


def doctor(cfg: DictConfig, run: Run) -> None:
    """Print what the configuration needs, the machine, and which experiments can run; write `doctor.json`.

    Raises:
        NotReadyError: something is missing for what the command line asks for.
    """
    asked = list(needs(cfg))
    # Hydra's own list, which has the experiments of a user's folders as well.
    names = GlobalHydra.instance().config_loader().get_group_options("experiment")
    given = list(HydraConfig.get().overrides.task)
    experiments = {name: missing(ask(name, given, model=cfg.model.name)) for name in names}
    about = [
        f"what {cfg.model.name}, {cfg.attribute.name} needs:",
        *(line for need in asked for line in described(need)),
    ]
    ready = [f"experiment={name}: {_lacking(lacking)}" for name, lacking in experiments.items()]
    # Printed whole, so that paths, addresses and commands can be copied from a narrow terminal too.
    told, costs = foretell(cfg)
    print("\n".join([*about, "", *machine(Path(cfg.paths.outputs)), *told, *places(cfg), "", *ready]))
    found = {"needs": [_plain(need) for need in asked], "experiments": experiments, "forecast": costs}
    run.write_json("doctor.json", found)
    # Last, so that all is told and written whatever the exit code.
    if lacking := missing(asked):
        raise NotReadyError(
            f"what was asked for cannot run: missing {', '.join(lacking)}; the list above says how to get it."
        )


def foretell(cfg: DictConfig) -> tuple[list[str], dict[str, Any] | None]:
    """What the study will cost here, in lines and in numbers; None where nothing is known of its denoiser."""
    try:
        costs = forecast(cfg)
    except ValueError as error:
        return [f"forecast: none ({one_line(error)})"], None
    return describe_forecast(costs), costs


def ask(experiment: str, given: Sequence[str], *, model: str) -> list[Need]:
    """What an experiment needs, with the command line's folders, and its settings of `model` where that is the same."""
    overrides = [f"experiment={experiment}", *(each for each in given if each.startswith("paths."))]
    cfg = compose("config", overrides=overrides)
    # A setting such as `model.source` means one model; another may not even have it.
    if cfg.model.name == model:
        cfg = compose("config", overrides=[*overrides, *(each for each in given if each.startswith("model."))])
    return list(needs(cfg))


def places(cfg: DictConfig) -> Iterator[str]:
    """Where files are looked for, and what moves that."""
    yield f"weights are looked for in {cfg.paths.weights} (paths.weights, environment variable DIFFLENS_WEIGHTS)"
    yield f"models of the hub are looked for in {constants.HF_HUB_CACHE} (environment variables HF_HUB_CACHE, HF_HOME)"


def missing(wanted: list[Need]) -> list[str]:
    """Keys of what is not there."""
    return [need.key for need in wanted if need.found is None and need.remedy]


def needs(cfg: DictConfig) -> Iterator[Need]:
    """Everything outside of the program that the model, the judges and the measures of a configuration use."""
    parts = {part: OmegaConf.to_container(cfg[part], resolve=True) for part in ("model", "judge", "metric")}
    for key, node in entries(parts):
        if isinstance(node, Mapping):
            yield from _own(node, key)


def _own(node: Mapping[str, Any], key: str) -> Iterator[Need]:
    """What an object's own arguments name, known by the words that all loaders share."""
    obtain = str(node.get("obtain", ""))
    name = str(node.get("_target_", "")).rpartition(".")[2]
    if name in PACKAGES:
        module, extra = PACKAGES[name]
        spec = importlib.util.find_spec(module)
        where = Path(spec.origin) if spec is not None and spec.origin else None
        remedy = "" if where else f"pip install 'difflens[{extra}]'"
        yield Need(f"{key}._target_", f"package {module}", None, where, remedy)
    for word in ("weights", "file", "detector", "landmarks"):
        if obtain and node.get(word) is not None:
            told = {"sha256": node.get("sha256"), "package": node.get("package")}
            find = partial(find_weights, node[word], obtain=obtain, **told)
            yield _look(key, word, node[word], node.get("sha256"), find)
    if "pretrained" in node:
        model, tag, folder = (str(node[word]) for word in ("model", "pretrained", "folder"))
        what = f"{folder}/{model}-{tag}.safetensors, or the hub's cache"
        yield _look(key, "pretrained", what, node.get("sha256"), lambda: Path(find_pretrained(model, tag, folder)))
    elif "folder" in node:
        folder = str(node["folder"])
        find = partial(find_pipeline, folder, obtain=obtain) if obtain else partial(locate, folder)
        yield _look(key, "folder", folder, None, find)
    if "source" in node and node.get("weights") != "random":
        source = str(node["source"])
        find = partial(find_pipeline, source, obtain=f"hf download {source}", key=f"{key}.source")
        yield _look(key, "source", source, None, find)
    if (device := str(node.get("device", "cpu"))) != "cpu":
        # A device is no file: any path that exists says that it was found.
        yield _look(key, "device", device, None, lambda: check_device(device) and Path("/dev"))


def _look(key: str, word: str, what: Any, sha256: str | None, find: Any) -> Need:
    try:
        return Need(f"{key}.{word}", str(what), sha256, find(), "")
    except ValueError as error:
        return Need(f"{key}.{word}", str(what), sha256, None, one_line(error))


def machine(outputs: Path) -> Iterator[str]:
    """GPU, memory and disk."""
    gpus = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    yield "GPU: " + (", ".join(f"{gpu.name}, {gpu.total_memory / 2**30:.0f} GiB" for gpu in gpus) or "none")
    yield f"memory: {main_memory() / 2**30:.0f} GiB, {os.cpu_count()} CPU cores"
    free = disk_space(outputs.resolve())[1]
    yield f"disk: {free / 2**30:.0f} GiB free for {outputs} (paths.outputs, environment variable DIFFLENS_OUTPUTS)"


def described(need: Need) -> Iterator[str]:
    """What is there in one line; what is missing in two, the second on how to get it."""
    sha256 = f", SHA-256 {need.sha256}" if need.sha256 else ""
    yield f"{'found  ' if need.found else 'MISSING'}  {need.key}: {need.what}{_size(need.found)}{sha256}"
    if not need.found:
        yield f"         {need.remedy}"


def _lacking(names: Sequence[str]) -> str:
    """The first of the names, and how many there are besides; doctor.json has all."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"lacks {', '.join(names[:SHOWN])}{more}" if names else "can run now"


def _size(path: Path | None) -> str:
    if path is None:
        return ""
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()] if path.is_dir() else []
    return f", {sum(file.stat().st_size for file in files) / 2**20:.1f} MiB" if files and path != Path("/dev") else ""


def _plain(need: Need) -> dict[str, Any]:
    return {**need._asdict(), "found": None if need.found is None else str(need.found)}
