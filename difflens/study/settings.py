"""Values of the configuration that no stage could use, refused before the first stage begins."""

import math
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, get_args

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from difflens.attribution.select import Rank
from difflens.data.mixing import BufferSizes, in_gb
from difflens.vocabulary import Branch, Where


class Range(NamedTuple):
    """What a number must be: words for the message, and the test."""

    words: str
    holds: Callable[[Any], bool]


MOST = 10**9
"""A larger count of anything is a slip of the keyboard: it would run out of disk, memory or years."""


def _whole(least: int, most: int = MOST) -> Range:
    words = f"a whole number of at least {least}" + (f" and at most {most}" if most != MOST else "")
    return Range(words, lambda value: isinstance(value, int) and least <= value <= most)


POSITIVE = Range("a number above 0", lambda value: value > 0)
NOT_NEGATIVE = Range("a number of at least 0", lambda value: value >= 0)
SHARE = Range("a number above 0 and below 1", lambda value: 0 < value < 1)
FINITE = Range("a number", lambda value: True)

SEED = _whole(0, 2**32 - 1)
"""Torch's generator on a processor keeps 32 bits: two larger seeds could be one."""

NUMBERS: Mapping[str, Range] = {
    "seed": SEED,
    "model.steps": _whole(1),
    "model.micro_batch": _whole(1, 4096),
    "model.eta": Range("a number from 0 to 1", lambda value: 0 <= value <= 1),
    "model.guidance": NOT_NEGATIVE,
    "data.images": _whole(2),
    "data.base_seed": SEED,
    "data.validation": SHARE,
    "data.buffer": _whole(1),
    "sae.expansion": POSITIVE,
    "sae.k": _whole(1),
    "sae.training.tokens": _whole(1),
    "sae.training.batch": _whole(1),
    "sae.training.lr": POSITIVE,
    "sae.training.warmup": _whole(0),
    "sae.training.decay": Range("a number from 0 to 1", lambda value: 0 <= value <= 1),
    "sae.training.aux_coefficient": NOT_NEGATIVE,
    "sae.training.k_aux": _whole(1),
    "probe.l2": NOT_NEGATIVE,
    "probe.iterations": _whole(1),
    "probe.held_out": SHARE,
    "attribution.temperature": POSITIVE,
    "mitigation.times": NOT_NEGATIVE,
    "attribution.specificity": NOT_NEGATIVE,
    "attribution.images_per_class": _whole(1),
    "attribution.statistics_images": _whole(1),
    "mitigation.suppress": FINITE,
    "mitigation.calibration.images": _whole(1, 10**6),
    "mitigation.calibration.first": FINITE,
    "mitigation.calibration.largest": FINITE,
    "mitigation.calibration.tolerance": NOT_NEGATIVE,
    "mitigation.calibration.refinements": _whole(0),
    "mitigation.hold.ratio": NOT_NEGATIVE,
    "mitigation.held_top": _whole(1),
    "metric.images": _whole(2),
    "metric.base_seed": SEED,
    "metric.reference.images": _whole(2),
    "metric.kid_subset": _whole(2, 10**6),
    "metric.cards": _whole(1, 1000),
    "mitigation.calibration.margin": Range("a number of at least 1", lambda value: value >= 1),
    "probe.hidden": _whole(1),
    "task.port": _whole(0, 65535),
    "task.largest": POSITIVE,
    "task.images": _whole(1),
    "task.pairs": _whole(1),
    "task.size": _whole(1),
}
GROUPS = (
    "attribute",
    "attribution",
    "data",
    "data.site",
    "judge",
    "judge.labels",
    "judge.scores",
    "metric",
    "metric.extractor",
    "metric.reference",
    "mitigation",
    "mitigation.calibration",
    "mitigation.hold",
    "model",
    "paths",
    "probe",
    "sae",
    "trainer",
)
"""Groups of settings that no study can do without."""

LISTS = ("judge.others", "mitigation.hold.attributes", "task.doses", "task.steps", "task.models")
"""Lists whose entries may not be repeated."""

STRONGEST = 1e6
"""A larger strength than this, whatever its unit, is a slip of the keyboard."""

NULLABLE = ("sae.training.lr", "sae.training.k_aux", "mitigation.suppress", "data.site.branch")
WORDS: Mapping[str, tuple[Any, ...]] = {
    "data.source": ("shards", "online"),
    "mitigation.calibration.per_prompt": (True, False),
    "attribution.baseline": ("zero", "contrast"),
    "attribution.rank": get_args(Rank),
    "data.site.tensor": get_args(Where),
    "data.site.branch": get_args(Branch),
    "mitigation.unit": ("level", "code"),
    "missing_faces": ("count", "error"),
}
TAKEN = ("original", "features")
"""Names of the report's own folders of pictures, and of the row of unmitigated images."""


def check_settings(cfg: DictConfig) -> None:
    """Check every number and word of the tables above that the configuration holds; a component of one's own may lack some.

    Raises:
        ValueError: with the key, what its value must be, and the value.
    """
    check_shape(cfg)
    for key, wanted in NUMBERS.items():
        value = OmegaConf.select(cfg, key, default=...)
        if value is not ... and not (value is None and key in NULLABLE) and not _is(value, wanted):
            raise ValueError(f"{key} must be {wanted.words}, got {value!r}.")
    for key, words in WORDS.items():
        value = OmegaConf.select(cfg, key, default=...)
        if value is not ... and not (value is None and key in NULLABLE) and value not in words:
            raise ValueError(f"{key} must be one of {', '.join(map(str, words))}, got {value!r}.")
    check_agreement(cfg)


def check_shape(cfg: DictConfig) -> None:
    """Check that no group was replaced by a value, no list is empty or repeats itself, and no name leaves its folder.

    Raises:
        ValueError: with the key and the value.
    """
    for key in GROUPS:
        value = OmegaConf.select(cfg, key, default=...)
        if value is not ... and not (OmegaConf.is_dict(value) and len(value)):
            raise ValueError(f"{key} must be a group of settings, got {value!r}; leave it as the configuration has it.")
    if cfg.get("published") is not None and not OmegaConf.is_dict(cfg.published):
        raise ValueError(f"published must be null or numbers of a paper by name, got {cfg.published!r}.")
    negative = OmegaConf.select(cfg, "model.negative_prompt", default=None)
    if negative is not None and not isinstance(negative, str):
        raise ValueError(f"model.negative_prompt must be a text or null, got {negative!r}; put it in quotes: '\"5\"'.")
    for key in LISTS:
        value = OmegaConf.select(cfg, key, default=...)
        if value is ...:
            continue
        entries = list(value) if OmegaConf.is_list(value) else None
        if entries is None or len(set(map(str, entries))) < len(entries):
            raise ValueError(f"{key} must be a list without repeats, got {value!r}.")
        if key.startswith("task.") and not entries:
            raise ValueError(f"{key} must name at least one, got [].")
    for dose in OmegaConf.select(cfg, "task.doses", default=None) or ():
        if not _is(dose, NOT_NEGATIVE):
            raise ValueError(f"task.doses must be numbers of at least 0, got {dose!r}.")
    steps = OmegaConf.select(cfg, "task.steps", default=None) or ()
    for share in steps:
        if not _is(share, Range("", lambda value: 0 <= value <= 1)):
            raise ValueError(f"task.steps must be shares of the trajectory from 0 to 1, got {share!r}.")
    for key in ("name", "model.name", "paths.outputs", "paths.artifacts"):
        value = OmegaConf.select(cfg, key, default=...)
        if value is not ... and (not isinstance(value, str) or not value.strip()):
            raise ValueError(f"{key} must be a text that is not empty, got {value!r}.")
        if value is not ... and key.endswith("name") and not re.fullmatch(r"[^/\\\x00-\x1f]{1,200}", value):
            raise ValueError(f"{key} must be a name without '/' and control characters, got {value!r}.")


def check_agreement(cfg: DictConfig) -> None:
    """Check values that must fit each other.

    Raises:
        ValueError: two base seeds are one, no image is left to train on, the calibration has nowhere to go, or the method's
            name is taken.
    """
    if cfg.data.base_seed == cfg.metric.base_seed:
        raise ValueError(
            f"data.base_seed and metric.base_seed are both {cfg.data.base_seed}; "
            "evaluation images must never have been used before: give them different seeds."
        )
    if round(cfg.data.images * cfg.data.validation) >= cfg.data.images:
        raise ValueError(
            f"data.validation={cfg.data.validation} of data.images={cfg.data.images} leaves no image to train on; "
            "lower data.validation or raise data.images."
        )
    calibration = cfg.mitigation.calibration
    if cfg.mitigation.strength == "auto" and not 0 < calibration.first <= calibration.largest:
        raise ValueError(
            f"mitigation.calibration needs 0 < first ≤ largest, got first={calibration.first}, "
            f"largest={calibration.largest}."
        )
    check_everyone(cfg)
    name = cfg.mitigation.name
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9][\w-]*", name) or name in TAKEN:
        raise ValueError(
            f"mitigation.name must be a word of letters, digits, '_' and '-' other than {', '.join(TAKEN)}, got {name!r}."
        )


def check_buffer(sizes: BufferSizes, *, dim: int, memory: int) -> None:
    """Check that the buffer that mixes an SAE's tokens of `dim` values fits into `memory` bytes.

    Raises:
        ValueError: it does not.
    """
    if sizes.refilling > memory:
        least = int(sizes.capacity * memory / sizes.refilling / 2)
        raise ValueError(
            f"data.buffer and sae.training.batch ask for {sizes.capacity} tokens of {dim} values in a buffer: "
            f"{in_gb(sizes.buffer)}, and {in_gb(sizes.refilling)} while it is refilled, but this machine has "
            f"{in_gb(memory)} of memory; lower data.buffer to {least} or less, and sae.training.batch to half of it."
        )


def check_everyone(cfg: DictConfig) -> None:
    """Check that the edits of all classes can act on one image, where `mitigation.assignment=everyone` asks for that.

    Raises:
        ValueError: the strength is to be calibrated, or something else needs a target class for each image.
    """
    settings = cfg.mitigation
    if settings.assignment != "everyone":
        return
    studied = str(cfg.attribute.name).split("+")
    held = [name for name in settings.hold.attributes if name not in studied]
    needs = {
        "strength=auto": (settings.strength == "auto", "give strengths, such as {female: 1, male: 1.43}"),
        "mode=contrast": (settings.get("mode") == "contrast", "take scale, add or clamp"),
        f"suppress={settings.get('suppress')}": (settings.get("suppress") is not None, "set it to null"),
        f"hold.attributes={held}": (bool(held), "set it to []"),
    }
    for setting, (is_set, remedy) in needs.items():
        if is_set:
            raise ValueError(
                f"mitigation.{setting} needs a target class for each image, and mitigation.assignment=everyone gives "
                f"none: {remedy}, or choose another assignment, such as affinity."
            )


def check_target(target: Any) -> None:
    """Check that a target distribution is written as shares by class, by prompt and class, or by part and class.

    Raises:
        ValueError: it is not.
    """
    if not _are_shares(target):
        raise ValueError(
            "mitigation.target must give each class a share, such as {female: 0.75, male: 0.25}, or each prompt or part "
            f"such shares, or be null for equal shares; got {target!r}."
        )


def _are_shares(target: Any) -> bool:
    """Whether this is a mapping to numbers, or to such mappings."""
    return isinstance(target, Mapping) and all(_is(each, FINITE) or _are_shares(each) for each in target.values())


def read_strength(strength: Any, *, classes: tuple[str, ...]) -> Tensor | None:
    """A strength per class [C] (float64) as the configuration gives it, None where it is to be calibrated.

    Raises:
        ValueError: it is neither `auto`, nor a number, nor a number for each class.
    """
    if strength == "auto":
        return None
    if strength is None:
        raise ValueError(
            "strength=published: no strength was published for this model and attribute; take strength=calibrated, or give "
            "mitigation.strength."
        )
    per_class = strength if isinstance(strength, dict) else dict.fromkeys(classes, strength)
    try:
        values = torch.tensor([float(per_class[name]) for name in classes], dtype=torch.float64)
        numbers = [isinstance(value, int | float) and not isinstance(value, bool) for value in per_class.values()]
        if set(per_class) != set(classes) or not all(numbers) or not (values.abs() <= STRONGEST).all():
            raise ValueError
        return values
    except (KeyError, TypeError, ValueError):
        raise ValueError(
            f"mitigation.strength must be auto, a number, or a number for each of {list(classes)}, got {strength!r}."
        ) from None


def check_top(top: Any, *, classes: tuple[str, ...], width: int, key: str = "attribution.top") -> None:
    """Check the number of latents per class.

    Raises:
        ValueError: it is no number up to the SAE's width, selects nothing, or names other classes than the attribute's.
    """
    counts = list(top.values()) if isinstance(top, Mapping) else [top]
    if not any(counts) or not all(_is(count, _whole(0)) and count <= width for count in counts):
        raise ValueError(f"{key} must be 1 to {width} (the SAE's width), got {top!r}; or raise sae.expansion.")
    if isinstance(top, Mapping) and set(top) != set(classes):
        raise ValueError(f"{key} must name each of {list(classes)}, got {list(top)}.")


def _is(value: Any, wanted: Range) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and math.isfinite(value) and wanted.holds(value)
