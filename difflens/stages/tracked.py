"""What stages tell the run's tracker, whichever that is, beside single curves and figures."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from difflens.methods.calibration import Calibration
from difflens.report.images import select_pairs
from difflens.report.run_folder import flat, read_run
from difflens.study.workbench import Workbench


def track_sae(bench: Workbench, health: Mapping[str, Any]) -> None:
    """The health of the trained SAE on held-out images."""
    bench.tracker.scalars({f"sae/held_out/{key}": health[key] for key in ("fvu", "l0", "dead_share")})
    for key in ("fvu_per_step", "loss_recovered_per_step"):
        bench.tracker.curve(f"sae/held_out/{key}", _known(health[key]))
    bench.tracker.histogram("sae/held_out/density", health["density_histogram"], health["density_edges"])


def track_calibration(bench: Workbench, names: Sequence[str], found: Calibration) -> None:
    """The dose–response curve, a row per class and strength tried."""
    rows = [
        [name, *_known([float(values[index]) for values in (dose.strength, dose.success, dose.shares)])]
        for dose in found.doses
        for index, name in enumerate(names[: len(dose.strength)])
    ]
    bench.tracker.table("dose_response", ("class", "strength", "success", "share"), rows)


def track_metrics(bench: Workbench, metrics: Mapping[str, Any]) -> None:
    """Every number of metrics.json: shares with their intervals, FD, FID, KID, CLIP-I, leakage."""
    for row in metrics["rows"]:
        numbers = {f"{row['method']}/{key}": value for key, value in flat(row) if isinstance(value, int | float)}
        bench.tracker.scalars(numbers)


def track_pictures(bench: Workbench, features: Sequence[Mapping[str, Any]]) -> None:
    """Pairs of the same seed, and the feature cards."""
    folder, method = bench.run.folder, bench.cfg.mitigation.name
    seed = bench.cfg.metric.base_seed
    # The report's own choice of pairs, evenly spaced, so that nobody picked them.
    pairs = select_pairs(folder / "images", read_run(folder).edits, method=method)
    moves = [(pair.edit.before, pair.edit.after) if pair.edit else ("", "") for pair in pairs]
    rows = [[seed, pair.id, pair.before, pair.after, *move] for pair, move in zip(pairs, moves, strict=True)]
    bench.tracker.table("images", ("seed", "id", "before", "after", "from", "to"), rows)
    keys = ("class", "rank", "latent", "score")
    cards = [[*(card[key] for key in keys), folder / card["top"], folder / card["effect"]] for card in features]
    bench.tracker.table("features", (*keys, "fires most on", "effect"), cards)


def _known(values: Sequence[float | None]) -> list[float | None]:
    return [None if value is None or math.isnan(value) else value for value in values]
