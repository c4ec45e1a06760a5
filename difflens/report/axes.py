"""What a sweep varies: seeds, which are pooled, strengths, which are joined by lines, and factors."""

import re
from collections.abc import Sequence

from difflens.report.sweep import Job

AFTER_SAMPLING = ("task", "data", "sae", "probe", "attribution", "mitigation", "seed")
"""Groups that cannot change the unmitigated images and what is measured on them; exceptions are in `TARGET`."""

TARGET = ("mitigation", "mitigation.target")
"""FD is the distance from the target, which a file of the group may set too."""

STRENGTHS = ("mitigation.times", "mitigation.strength")
"""Keys that say how strongly is edited, the first of them first."""

SEEDS = {
    "seed": "how the autoencoder starts and meets its tokens, and which images train it and the probe",
    "data.base_seed": "the images that are learned from",
    "metric.base_seed": "the evaluation images",
}
"""What each seed of the configuration draws."""

OTHER_IMAGES = "metric.base_seed"


def is_seed(key: str) -> bool:
    """Whether an override's key names a seed."""
    return key.rpartition(".")[2] == "seed" or key.endswith("_seed")


def moves_originals(key: str) -> bool:
    """Whether an override's key can change the row of the unmitigated images."""
    return key in TARGET or key.startswith("mitigation.target.") or re.split(r"[./@]", key)[0] not in AFTER_SAMPLING


def seeds_of(jobs: Sequence[Job]) -> list[str]:
    """The keys of all seeds that the jobs were asked for."""
    return list(dict.fromkeys(key for job in jobs for key in job.overrides if is_seed(key)))


def factors_of(jobs: Sequence[Job]) -> list[str]:
    """The keys, other than seeds, whose values differ between jobs."""
    keys = dict.fromkeys(key for job in jobs for key in job.overrides if not is_seed(key))
    return [key for key in keys if _differs(key, jobs)]


def _differs(key: str, jobs: Sequence[Job]) -> bool:
    return len({job.overrides.get(key) for job in jobs}) > 1


def strength_axis(factors: Sequence[str]) -> str | None:
    """The factor that is the strength of the edit, None if it was not varied."""
    return next((key for key in STRENGTHS if key in factors), None)


def strength_of(value: str | None) -> float | None:
    """A strength as the command line writes it: a number, or the mean of one for each class; None if it is calibrated."""
    try:
        numbers = [float(part.rpartition(":")[2]) for part in (value or "").strip("{} ").split(",")]
    except ValueError:
        return None
    return sum(numbers) / len(numbers)


def spread_sentence(jobs: Sequence[Job]) -> str:
    """What the ± of the comparison covers, and what it does not."""
    varied = [key for key in seeds_of(jobs) if _differs(key, jobs)]
    remedy = f"sweep {OTHER_IMAGES} for the spread over images"
    if not varied:
        return f"One seed per setting, so no spread is known; {remedy}."
    covers = "; ".join(f"{key} ({SEEDS[key]})" if key in SEEDS else key for key in varied)
    sentence = f"Mean ± standard deviation over {covers}."
    same = f" All runs are measured on the same images, whose choice ± does not cover: {remedy}."
    return sentence if OTHER_IMAGES in varied else sentence + same
