"""What a study will cost on this machine, told before it begins: seconds of every stage, memory and disk.

Arithmetic on a few floors measured here: one denoiser step, one token of the SAE, one image read by each network. Where
the denoiser's weights are not here, or a step of it takes too long, its operations are counted on shapes alone and divided by
what the machine computes in a second.
"""

import json
import math
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import diffusers
import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from difflens.data.mixing import buffer_sizes
from difflens.data.prompts import PromptSet
from difflens.models.devices import DTYPES, choose_precision
from difflens.models.guided_diffusion import Layout, unet_arguments
from difflens.models.load import find_pipeline
from difflens.models.model import GUIDANCE, DiffusionModel
from difflens.models.random_pipeline import read_architecture
from difflens.sae.losses import Objective
from difflens.store.errors import BuildError
from difflens.store.targets import build
from difflens.study.values import built, plain
from difflens.study.workbench import SHARED
from difflens.vocabulary import GenerationPlan

MOVED = {"oracle": 0.25, "early": 0.25}
"""Share of images that an assignment edits, 1 for all others: a bias of a quarter where as few as must be are edited."""

DOUBLINGS = 2
"""How often a calibration doubles its first strength, which nobody knows yet either."""

CARD_IMAGES = 8
LONG = 4.0
"""Seconds of one denoiser step on a micro-batch above which it is counted, not measured."""
LIBRARIES = 1.2e9
"""Bytes of main memory that a process takes before it loads a model."""
# The released checkpoint comes without a configuration; after task=convert the folder's own is read.
P2_CELEBAHQ = unet_arguments(
    Layout(3, 6, 128, 512, (128, 128, 256, 256, 512, 512), (False,) * 4 + (True, False), 1, True, True),
    image_size=256,
    head_channels=64,
)


class Shape(NamedTuple):
    """What the denoiser's configuration tells without its weights; counts are of one row of its batch."""

    operations: float  # floating-point operations of a call
    behind: float  # the share of them that comes after the site
    site: tuple[int, int, int]  # channels, height and width there
    parameters: int  # of the network
    kept: int  # values that are alive at once, about: all skip connections and four times the largest map
    pixels: int  # of the image
    rows: int  # rows per image: 2 with guidance


@dataclass(frozen=True)
class Work:
    """How much of everything a study asks for."""

    images: int  # that are learnt from
    evaluated: int  # evaluation images
    unseen: int  # evaluation images of unseen prompts
    calibrated: int  # images of the calibration
    doses: int  # how often they are sampled
    cards: int  # images drawn for the cards
    reference: int  # images that FID compares with
    moved: float  # share of images that is edited
    edited: float  # cost of an edited trajectory over a plain one
    steps: int  # denoising steps
    micro_batch: int  # images sampled at once
    held_out: int  # images on which denoising loss recovered is measured
    attributes: int  # studied and held ones
    located: int  # images scored for each of them, and those whose usual activity is read
    iterations: int  # of a probe
    tokens: int  # that train the SAE, 0 where there is none
    per_image: int  # tokens of an image at one step
    values: int  # numbers of its map
    online: int  # images sampled for the SAE alone


@dataclass(frozen=True)
class Floor:
    """Seconds on this machine."""

    step: float  # per image and denoising step
    image: float  # per image beside its steps
    train: float  # per token of the SAE's training
    encode: float  # per token that the SAE encodes and scores
    value: float  # per number that is read once from memory
    label: float  # per image that the labelling judge reads; 0 for a network that is not here
    score: float  # per image that the scoring judge reads
    extract: float  # per image whose features are extracted


def seconds(work: Work, floor: Floor) -> dict[str, float]:
    """Seconds of every stage, named as the program names them."""

    def sampled(images: float, *, edited: float = 1.0) -> float:
        padded = math.ceil(images / work.micro_batch) * work.micro_batch  # the last micro-batch is filled up
        return padded * (work.steps * edited * floor.step + floor.image)

    per_step = work.steps * work.per_image * floor.encode
    # Untouched, reconstructed and ablated.
    recovered = 3 * work.steps * work.held_out * floor.step if work.tokens else 0.0
    pushed = work.calibrated * work.moved
    read = floor.score + floor.extract
    everything = work.evaluated + work.unseen
    return {
        "activations": sampled(work.images),
        "sae": work.tokens * floor.train + sampled(work.online) + recovered,
        # Forward and backward, and a search along the line, on the maps in single precision.
        "probe": floor.label * work.images
        + 3 * work.attributes * work.iterations * work.steps * work.images * work.values * floor.value,
        "attribution": work.attributes * work.located * per_step if work.tokens else 0.0,
        "calibrate": (sampled(work.calibrated) + floor.label * work.calibrated if work.doses else 0.0)
        + work.doses * (sampled(pushed, edited=work.edited) + pushed * floor.label),
        "originals": sampled(work.evaluated) + (sampled(work.unseen) if work.unseen else 0.0),
        "steer": floor.label * everything
        + sampled(work.evaluated * work.moved, edited=work.edited)
        + (sampled(work.unseen * work.moved, edited=work.edited) if work.unseen else 0.0),
        # Originals and edited images, as if every one were changed.
        "metrics": 2 * everything * read + work.reference * floor.extract,
        "cards": sampled(work.cards, edited=work.edited) if work.cards else 0.0,
    }


def disk(work: Work, shape: Shape) -> float:
    """Bytes that a study leaves behind: activations in half precision, and images twice, as tensors and as files."""
    pictures = work.images + 2 * (work.evaluated + work.unseen) * (1 + work.moved)
    return work.images * work.steps * work.values * 2.0 + pictures * 3 * shape.pixels


def memory(cfg: DictConfig, work: Work, shape: Shape, sae: tuple[int, int]) -> dict[str, float]:
    """Bytes at the peak: of the denoiser at one micro-batch, of the SAE's training, of one step's maps for the probe."""
    dim, width = sae
    precision = OmegaConf.select(cfg, "model.precision", default="fp32")
    size = 2 if precision in ("fp16", "bf16") else 4
    denoiser = size * (shape.parameters + work.micro_batch * shape.rows * shape.kept)
    buffers = buffer_sizes(cfg.data.buffer, batch=cfg.sae.training.batch, dim=dim)
    # Weights, gradients and two moments of Adam; statistics take the sample in double precision several times.
    trained = 4 * 2 * dim * width * 4 + buffers.refilling + 2 * buffers.sample_bytes
    # As stored, in float32, and standardised.
    maps = work.images * work.values * (2 + 4 + 4)
    return {"denoiser": denoiser, "SAE's training": trained if work.tokens else 0.0, "probe": maps}


def unet_config(cfg: DictConfig) -> dict[str, Any]:
    """The denoiser's configuration, from its files or of the published architecture of that name (ValueError: neither)."""
    model = cfg.model
    source = model.get("source") or model.get("folder")
    if source and model.get("weights") != "random":
        try:
            found = find_pipeline(str(source), obtain="")
            part = found / "unet" if (found / "unet").is_dir() else found
            return dict(json.loads((part / "config.json").read_text(encoding="utf-8")))
        except (ValueError, OSError):
            pass  # then the published one of that name
    if model.name == "p2_celebahq":
        return {"_class_name": "UNet2DModel", **P2_CELEBAHQ}
    kind, config = read_architecture(str(model.get("architecture") or model.name))["unet"]
    return {"_class_name": kind, **config}


@torch.no_grad()
def read_shape(cfg: DictConfig) -> Shape:
    """One call of the denoiser on shapes alone, without memory and without weights.

    Raises:
        ValueError: its configuration is not known, or it has no such site.
    """
    config = unet_config(cfg)
    settings = {name: value for name, value in config.items() if not name.startswith("_")}
    # Shapes without storage: a U-Net of gigabytes is built in a moment.
    with torch.device("meta"):
        unet: Any = getattr(diffusers, config["_class_name"])(**settings)
    pixels, prompted = OmegaConf.select(cfg, "model.height"), "cross_attention_dim" in config
    side = settings["sample_size"] if pixels is None else pixels // 8
    sizes: dict[str, list[int]] = {"all": [], "skips": []}
    at_site: list[tuple[float, tuple[int, ...]]] = []
    counter = FlopCounterMode(display=False)
    site = cfg.data.site.module
    if site not in dict(unet.named_modules()):
        raise ValueError(f"data.site.module={site} is no module of the denoiser.")
    first = lambda out: out[0] if isinstance(out, tuple) else out  # noqa: E731
    # What was counted by then came before the site; the rest is what the asymmetric update computes twice.
    unet.get_submodule(site).register_forward_hook(
        lambda _, __, out: at_site.append((counter.get_total_flops(), tuple(first(out).shape)))
    )
    for name, module in unet.named_modules():
        if isinstance(module, torch.nn.Conv2d | torch.nn.Linear):
            module.register_forward_hook(lambda _, __, out: sizes["all"].append(out.numel()))
        # What the way up waits for: `down_blocks.<i>.resnets.<j>`.
        if name.startswith("down_blocks.") and name.count(".") == 3 and ".resnets." in name:
            module.register_forward_hook(lambda _, __, out: sizes["skips"].append(out.numel()))
    with counter:
        unet(*_call(unet, side, prompted), **_conditions(unet))
    whole = float(counter.get_total_flops())
    before, shape = at_site[0]
    if len(shape) != 4:
        raise ValueError(f"data.site.module={site} gives no map.")
    guidance = OmegaConf.select(cfg, "model.guidance")
    guided = prompted and (GUIDANCE if guidance is None else guidance) > 1
    kept = sum(sizes["skips"]) + 4 * max(sizes["all"])
    parameters = sum(each.numel() for each in unet.parameters())
    # Latents have other channels than pictures; eight pixels a side is what most autoencoders make of one.
    scale = 1 if settings["in_channels"] == 3 else 8
    return Shape(
        whole,
        1 - before / whole,
        (shape[1], shape[2], shape[3]),
        parameters,
        kept,
        (side * scale) ** 2,
        2 if guided else 1,
    )


def _call(unet: Any, side: int, prompted: bool) -> tuple[Tensor, ...]:
    sample = torch.zeros(1, unet.config.in_channels, side, side, device="meta")
    # CLIP reads 77 tokens.
    words = torch.zeros(1, 77, unet.config.cross_attention_dim, device="meta") if prompted else None
    return (sample, torch.zeros((), device="meta"), *([] if words is None else [words]))


def _conditions(unet: Any) -> dict[str, Any]:
    """What SDXL's U-Net is told beside the prompt."""
    if unet.config.get("addition_embed_type") != "text_time":
        return {}
    # Beside the pooled text stand the embeddings of six numbers, for sizes and crop.
    width = unet.config.projection_class_embeddings_input_dim - 6 * unet.config.addition_time_embed_dim
    told = {"text_embeds": torch.zeros(1, width, device="meta"), "time_ids": torch.zeros(1, 6, device="meta")}
    return {"added_cond_kwargs": told}


def read_work(cfg: DictConfig, shape: Shape) -> tuple[Work, tuple[int, int]]:
    """What the configuration asks for, and the SAE's dimension and width."""
    settings, (channels, height, width) = cfg.mitigation, shape.site
    method = build({k: v for k, v in plain(settings).items() if k not in SHARED}, "mitigation")
    located = "attribution" in method.needs
    prompts: PromptSet | None = built(cfg, "prompt")
    studied, unseen = (1, 0) if prompts is None else (len(prompts.studied), len(prompts.unseen))
    classes = len(cfg.attribute.get("classes") or [0, 0])
    held = len([name for name in settings.hold.attributes if name != cfg.attribute.get("name")])
    window = settings.get("window")
    share = (window.stop - window.start) if window else 1.0
    # The asymmetric update calls the denoiser again from the site on; the symmetric one costs the edit alone.
    again = shape.behind if method.update == "asymmetric" else 0.1
    # Where an edit has a focus, the unedited trajectory goes on beside the edited one from the window's beginning until it is
    # let go.
    until = getattr(method, "release", 1.0) if getattr(method, "focus", 0.0) else 0.0
    beside = max(0.0, until - (window.start if window else 0.0))
    validation = max(1, round(cfg.data.images * cfg.data.validation))
    whole_map = cfg.sae.token == "map"
    dim = channels * height * width if whole_map else channels
    per_image = 1 if whole_map else height * width
    training = cfg.sae.training
    tokens = training.tokens if located and cfg.sae.saved is None else 0
    online = math.ceil(tokens / (per_image * cfg.model.steps)) if cfg.data.source == "online" else 0
    work = Work(
        images=cfg.data.images,
        evaluated=cfg.metric.images * studied,
        unseen=cfg.metric.images * unseen,
        calibrated=settings.calibration.images,
        doses=1 + DOUBLINGS + settings.calibration.refinements if settings.strength == "auto" else 0,
        cards=cfg.metric.cards * CARD_IMAGES if located else 0,
        reference=OmegaConf.select(cfg, "metric.reference.images") or 0,
        moved=MOVED.get(settings.assignment, 1.0),
        edited=1 + share * again + beside,
        steps=cfg.model.steps,
        micro_batch=cfg.model.micro_batch,
        held_out=min(validation, max(1, cfg.model.micro_batch // 2)),
        attributes=1 + held,
        located=cfg.attribution.images_per_class * classes + cfg.attribution.statistics_images,
        iterations=cfg.probe.get("iterations", 1),
        tokens=tokens,
        per_image=per_image,
        values=channels * height * width,
        online=online,
    )
    return work, (dim, round(cfg.sae.expansion * dim))


def best_of(work: Callable[[], object], times: int = 3) -> float:
    """The shortest of some timings, after one that does not count."""
    found = []
    for _ in range(times + 1):
        start = time.perf_counter()
        work()
        if torch.cuda.is_available():
            # A call returns before the GPU is done.
            torch.cuda.synchronize()
        found.append(time.perf_counter() - start)
    return min(found[1:])


def throughput(device: torch.device, dtype: torch.dtype) -> float:
    """Operations per second in what U-Nets consist of: a 3 × 3 convolution and a product of matrices."""
    # Sizes of Stable Diffusion 1.5: its widest map, and the channels of its bottleneck.
    x = torch.randn(1, 320, 64, 64, device=device, dtype=dtype)
    layer = torch.nn.Conv2d(320, 320, 3, padding=1, device=device, dtype=dtype).requires_grad_(False)
    a, b = (torch.randn(size, 1280, device=device, dtype=dtype) for size in (2048, 1280))
    # Two for each product: it is also added.
    operations = 2 * 320 * 320 * 9 * 64 * 64 + 2 * 2048 * 1280 * 1280
    return operations / (best_of(lambda: layer(x)) + best_of(lambda: a @ b))


def measure_floor(cfg: DictConfig, shape: Shape, sae: tuple[int, int]) -> tuple[Floor, str]:
    """The floors of this machine, and in words how that of the denoiser was found."""
    device = torch.device(cfg.model.get("device") or "cpu")
    if device.type == "cuda" and not torch.cuda.is_available():
        device = torch.device("cpu")
    try:
        precision = choose_precision(cfg.model.get("precision") or "auto", device.type)
    except ValueError:  # a precision for the GPU that is not here
        precision = choose_precision("auto", device.type)
    per_second = throughput(device, DTYPES[precision])
    step, image = shape.operations * shape.rows / per_second, 0.0
    how = f"counted: {shape.operations * shape.rows / 1e9:,.0f} GFLOP per image and step at {per_second / 1e9:,.0f} GFLOP/s"
    if step * cfg.model.micro_batch < LONG:
        with suppress(BuildError):  # its weights are not here
            (step, image), how = _sampled(cfg), "measured"
    train, encode = _token(cfg, sae)
    # 64 MB, more than most caches hold: the probe waits for memory, not for arithmetic.
    numbers = torch.ones(2**24)
    value = best_of(lambda: numbers.sum()) / numbers.numel()
    label, score, extract = (_reading(cfg, key) for key in ("judge.labels", "judge.scores", "metric.extractor"))
    return Floor(step, image, train, encode, value, label, score, extract), f"{how}, on {device.type}"


@torch.inference_mode()
def _sampled(cfg: DictConfig) -> tuple[float, float]:
    """Seconds per image and step, and per image beside its steps, of the model itself: from three steps and from one."""
    spent, size = [], cfg.model.micro_batch
    if not torch.cuda.is_available():
        size = min(size, 16)  # a processor is busy with these already
    # Their difference is two steps without encoder and decoder.
    for steps in (1, 3):
        few = OmegaConf.merge(cfg, {"model": {"steps": steps, "micro_batch": size}})
        assert isinstance(few, DictConfig)
        model = built(few, "model")
        ids = torch.arange(model.micro_batch)
        plan = GenerationPlan(0, ids, None, ("a face",) * len(ids) if model.prompted else None)
        spent.append(best_of(partial(_exhaust, model, plan), 2))
    step = max(spent[1] - spent[0], 0.0) / 2
    return step / len(ids), max(spent[0] - step, 0.0) / len(ids)


def _exhaust(model: DiffusionModel, plan: GenerationPlan) -> None:
    for _ in model.sample(plan):
        pass


def _token(cfg: DictConfig, sae: tuple[int, int]) -> tuple[float, float]:
    """Seconds per token of a training step and of an encoding, scaled from an SAE no larger than is quickly made."""
    dim, width = sae
    channels, expansion = min(dim, 1024), min(cfg.sae.expansion, 8)
    described = {k: v for k, v in plain(cfg.sae).items() if k not in ("training", "saved")}
    described |= {"token": "position", "expansion": expansion}
    autoencoder = build(described, "sae", positions=1)(channels)
    # Fused like the training's own: otherwise Adam takes nine times as long.
    optimizer = torch.optim.Adam(autoencoder.parameters(), fused=True)
    batch = min(int(cfg.sae.training.batch), 2048)
    tokens, alive = torch.randn(batch, channels), torch.zeros(autoencoder.width, dtype=torch.bool)
    objective = Objective(torch.tensor(1.0), lambda codes: alive, aux_coefficient=0.0, k_aux=None)

    def update() -> None:
        autoencoder.loss(tokens, objective).total.backward()
        optimizer.step()
        optimizer.zero_grad()

    # Time is taken to grow with the number of weights.
    larger = dim * width / (channels * autoencoder.width) / batch
    train = best_of(update) * larger
    with torch.inference_mode():
        encode = best_of(lambda: autoencoder.encode(tokens).dense(autoencoder.width)) * larger
    return train, encode


@torch.inference_mode()
def _reading(cfg: DictConfig, key: str, images: int = 32) -> float:
    """Seconds per image of a judge or an extractor; 0 where its weights are not here."""
    try:
        reader = built(cfg, key)
    except BuildError:
        return 0.0
    size = getattr(reader, "drawn_size", None) or 256
    pixels = torch.rand(images, 3, size, size)
    embed = getattr(reader, "embed_images", lambda _: None)
    return best_of(lambda: (reader(pixels), embed(pixels)), 1) / images


def forecast(cfg: DictConfig) -> dict[str, Any]:
    """Seconds per stage, bytes of memory and disk, and how the floor was found (ValueError: no architecture is known)."""
    shape = read_shape(cfg)
    work, sae = read_work(cfg, shape)
    floor, how = measure_floor(cfg, shape, sae)
    return {
        "floor": how,
        "seconds_per_image_and_step": floor.step,
        "seconds": seconds(work, floor),
        "memory": memory(cfg, work, shape, sae),
        "disk": disk(work, shape),
        "unread": [key for key in ("label", "score", "extract") if not getattr(floor, key)],
    }


def describe_forecast(found: dict[str, Any]) -> list[str]:
    """The forecast in lines."""
    spent, gib = found["seconds"], 2**30
    stages = ", ".join(f"{name} {_time(value)}" for name, value in spent.items() if value >= 0.5)
    peaks = ", ".join(f"{name} {value / gib:.1f} GiB" for name, value in found["memory"].items() if value)
    lines = [
        f"forecast: {_time(sum(spent.values()))} ({stages})",
        f"  a denoiser's step takes {1000 * found['seconds_per_image_and_step']:,.1f} ms per image ({found['floor']}); a "
        "quarter of the images is taken to be edited under early and oracle, and the calibration to double its strength",
        f"  memory at the peak, beside {LIBRARIES / gib:.1f} GiB of libraries: {peaks}; disk {found['disk'] / gib:.1f} GiB",
    ]
    if found["unread"]:
        lines.append("  not counted, since their weights are not here: networks that " + ", ".join(found["unread"]))
    return lines


def _time(spent: float) -> str:
    for unit, size in (("d", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if spent >= 2 * size:
            return f"{spent / size:.1f} {unit}"
    return f"{spent:.0f} s"
