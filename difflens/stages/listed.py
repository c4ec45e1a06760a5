"""The measures that `metric.measures` lists: checked before any stage, and those of a class of one's own run over images."""

import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig
from torch import Tensor

from difflens.report.measures import Measure
from difflens.store.files import sha256_of
from difflens.store.targets import build
from difflens.study.values import blaming, plain

if TYPE_CHECKING:
    from difflens.stages.reading import Reading, Study

GIVEN = ("images", "originals", "probabilities", "features", "embeddings", "prompts", "edited")
"""What the `update` of a metric of one's own may name (see `difflens.metrics`)."""

MEASURED = (
    *("fd", "fd_hard", "fd_official", "fd_chance", "fd_squared_unbiased", "fd_max", "intersectional_fd", "fid", "kid"),
    *("kid_sd", "clip_i", "clip_i_paper", "obeyed", "clip_t", "clip_t_paper", "editing_precision", "judges_agree"),
    *("edited", "reached", "missing_faces", "n", "pairs", "pairs_without_face", "fd_prompt_mean"),
    *("fd_hard_prompt_mean", "fd_official_prompt_mean", "fd_low_prompt_mean", "fd_high_prompt_mean"),
    *("fd_perfect_prompt_mean", "deviation_ratio", "entropy", "l1", "kl", "fd_low", "fd_high", "fd_perfect"),
    "named_obeyed",
    *("clip_i_edited", "clip_i_floor", "nothing_else", "flips", "compute", "fd_corrected", "oddness"),
    *("reached_low", "reached_high", "reached_unedited", "nothing_else_low", "nothing_else_high"),
    *("moved", "reached_moved", "nothing_else_moved", "clip_i_moved"),
)
"""The numbers that a row has without any metric of one's own."""

GROUPED = (
    *("method", "shares", "parts", "other", "intersectional", "intersectional_attributes", "prompts", "leakage"),
    *("named", "judges_agree_by_prompt", "dose", "strength", "worst_leakage"),
)
"""What else a row may have."""


def listed_measures(cfg: DictConfig) -> list[dict[str, Any]]:
    """The list as `metrics.json` has it, in reading order.

    Raises:
        ValueError: an entry is not of the list's form, names a number that nobody measures, or takes the name of one.
    """
    entries = plain(cfg.metric.get("measures"))
    if not isinstance(entries, dict) or not entries:
        raise ValueError(f"metric.measures must list at least one measure by its key, got {entries!r}.")
    found = []
    for key, entry in entries.items():
        own = isinstance(entry, dict) and "_target_" in entry
        described = {name: each for name, each in entry.items() if name in Measure.DESCRIBED} if own else entry
        measure = Measure.described(key, described, where="metric.measures")
        found.append({name: getattr(measure, name) for name in ("key", *Measure.DESCRIBED)})
        # Under a name that is taken, tables would compare it with another number.
        if own and key in (*MEASURED, *GROUPED):
            raise ValueError(f"metric.measures.{key} is measured already: give the metric of your own another key.")
        if not own and key not in MEASURED:
            raise ValueError(
                f"metric.measures.{key} is no number that is measured; a metric of your own needs a `_target_`, and without "
                f"one the key is one of {', '.join(MEASURED)}."
            )
    return found


def own_metrics(cfg: DictConfig) -> dict[str, Any]:
    """The metrics of classes of one's own by key, built.

    Raises:
        ValueError: one cannot be built, or its `update` asks for what nobody gives.
    """
    metrics = {}
    for key, entry in plain(cfg.metric.measures).items():
        if "_target_" in entry:
            described = {name: each for name, each in entry.items() if name not in Measure.DESCRIBED}
            metrics[key] = build(described, f"metric.measures.{key}")
            # By the signature, before any stage: an argument that nobody gives would be found out in the last one.
            if unknown := [name for name in _named(metrics[key])[0] if name not in GIVEN]:
                raise ValueError(
                    f"metric.measures.{key}: {entry['_target_']}.update asks for {', '.join(unknown)}; it may ask for "
                    f"{', '.join(GIVEN)}."
                )
    return metrics


def metrics_spec(cfg: DictConfig, metrics: Mapping[str, Any]) -> dict[str, Any]:
    """What decides the numbers of the metrics of one's own: their arguments, and the files that their classes stand in."""
    entries = plain(cfg.metric.measures)
    found = {
        key: {
            **{name: each for name, each in entries[key].items() if name not in Measure.DESCRIBED},
            # A class that was edited keeps its name, and would be given its old numbers.
            "code": sha256_of(Path(inspect.getfile(type(metric)))),
        }
        for key, metric in metrics.items()
    }
    return {"measures": found} if found else {}


def measure_own(
    metrics: Mapping[str, Any],
    reading: "Reading",
    study: "Study",
    pieces: Iterable[Tensor],
    *,
    originals: Iterable[Tensor] | None = None,
    prompts: Sequence[str] | None = None,
    edited: Tensor | None = None,
) -> dict[str, float | None]:
    """The numbers of the metrics of one's own on a set of images, None of one that asks for what these images lack.

    Args:
        metrics: by key.
        reading: what was read off the images.
        study: what is measured.
        pieces: the images in [0, 1], in the reading's order.
        originals: those of the same ids without mitigation, in pieces of the same sizes.
        prompts: of every image.
        edited: which images the mitigation acted on [N].

    Raises:
        ValueError: a metric fails, or gives no single number.
    """
    per_image = {"features": reading.features, "embeddings": reading.embeddings, "prompts": prompts, "edited": edited}
    present = {name: values for name, values in per_image.items() if values is not None}
    has = {"images", "probabilities", *present, *(() if originals is None else ("originals",))}
    able = {key: metric for key, metric in metrics.items() if has.issuperset(_named(metric)[0])}
    for metric in able.values():
        # The first rank measures alone: one that waited for the others' states would wait for ever.
        metric.distributed_available_fn = lambda: False
        # The same object measures the originals, the edited images and unseen prompts in turn.
        metric.reset()
    for batch in _batches(reading, study, pieces, originals, present) if able else ():
        for key, metric in able.items():
            wanted = _named(metric)[1]
            with blaming(f"metric.measures.{key}"):
                metric.update(**{name: value for name, value in batch.items() if wanted is None or name in wanted})
    return {key: _number(key, able[key]) if key in able else None for key in metrics}


def _batches(
    reading: "Reading",
    study: "Study",
    pieces: Iterable[Tensor],
    originals: Iterable[Tensor] | None,
    present: Mapping[str, Any],
) -> Iterator[dict[str, Any]]:
    """What the metrics are given, piece by piece."""
    probabilities = {each.name: reading.logits(study.judge, each).softmax(-1) for each in study.studied}
    start = 0
    # `repeat` never ends, so that lengths can be compared only where there are originals.
    for images, before in zip(pieces, repeat(None) if originals is None else originals, strict=originals is not None):
        rows = slice(start, start + len(images))
        start = rows.stop
        batch = {"images": images, "probabilities": {name: each[rows] for name, each in probabilities.items()}}
        batch |= {name: values[rows] for name, values in present.items()}
        yield batch if before is None else {**batch, "originals": before}


def _named(metric: Any) -> tuple[list[str], set[str] | None]:
    """What the `update` of a metric cannot do without, and all that it takes: None where it takes anything."""
    parameters = inspect.signature(metric.update).parameters.values()
    named = [each for each in parameters if each.kind not in (each.VAR_KEYWORD, each.VAR_POSITIONAL)]
    needed = [each.name for each in named if each.default is each.empty]
    anything = any(each.kind is each.VAR_KEYWORD for each in parameters)
    return needed, None if anything else {each.name for each in named}


def _number(key: str, metric: Any) -> float:
    with blaming(f"metric.measures.{key}"):
        found = metric.compute()
        try:
            return float(found)
        except (TypeError, ValueError, RuntimeError):
            raise ValueError(
                f"{type(metric).__name__}.compute must give one number, got {type(found).__name__} {found!r:.80}."
            ) from None
