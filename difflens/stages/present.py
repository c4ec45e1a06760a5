"""`task=report`: write the pictures and `report.html` of a run."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig
from PIL import Image
from rich.console import Console
from torch import Tensor

from difflens.report import summary_table, write_report
from difflens.report.diagnosis import diagnose
from difflens.report.run_folder import read_run
from difflens.stages import probe as probe_task
from difflens.stages import sae as sae_task
from difflens.stages.calibrate import Prepared, prepare, slot_names
from difflens.stages.cards import draw_cards
from difflens.stages.examine import examine
from difflens.stages.generate import Steered, generate_pairs
from difflens.stages.measure import check_measures, evaluate
from difflens.stages.tracked import track_pictures
from difflens.store.run import Run
from difflens.study.workbench import Workbench
from difflens.vocabulary import EVERY_CLASS, NO_FACE


def report(cfg: DictConfig, run: Run) -> None:
    """Run the stage alone."""
    bench = Workbench(cfg, run)
    check_measures(bench)
    prepared = prepare(bench)
    steered = generate_pairs(bench, prepared)
    metrics = evaluate(bench, steered)
    present(bench, prepared, steered, {"": metrics}, examine(bench, prepared, steered))


def present(
    bench: Workbench,
    prepared: Prepared,
    steered: Steered,
    measured: Mapping[str, dict[str, Any]],
    examined: Mapping[str, Any],
) -> None:
    """Write images, `report.json` and `report.html` into the run folder, and print the summary of all that was measured.

    `measured` has the metrics under the words that tell its summaries apart, `examined` what `examine` found.
    """
    if bench.run.rank:
        return
    cards, features = draw_cards(bench, prepared)
    with bench.run.stage("report"):
        folder = bench.run.folder / "images"
        write_images(folder / "original", steered.image_ids, steered.before)
        write_images(folder / bench.cfg.mitigation.name, steered.image_ids, steered.after)
        if cards is not None:
            # The artifact's own records are no pictures.
            pictures = lambda _, names: [n for n in names if not n.endswith(".png")]  # noqa: E731
            shutil.copytree(cards.folder, folder / "features", ignore=pictures)
        # Before the page, which is drawn from the folder's files and from nothing else.
        bench.run.write_json("images/edited.json", _edits(bench, steered))
        bench.run.write_json("report.json", {**_contents(bench, prepared, features), **examined})
        path = write_report(bench.run.folder)
        track_pictures(bench, features)
    for about, metrics in measured.items():
        Console().print(summary_table(metrics, about=about))
    for sign in diagnose(read_run(bench.run.folder)):
        if sign.found:
            bench.run.say(f"{sign.title}: {sign.evidence} {sign.advice}")
    bench.run.say(f"report: {path}")


def write_images(folder: Path, image_ids: Tensor, images: Tensor) -> None:
    """One PNG per image, named by its id."""
    folder.mkdir(parents=True, exist_ok=True)
    for image_id, image in zip(image_ids.tolist(), images, strict=True):
        Image.fromarray(np.asarray(image.permute(1, 2, 0))).save(folder / f"{image_id}.png")


def _edits(bench: Workbench, steered: Steered) -> list[dict[str, Any]]:
    """Which images were pushed, from which class to which."""
    columns = (each[steered.edited].tolist() for each in (steered.image_ids, steered.labels, steered.targets))
    names = {**dict(enumerate(bench.attribute.classes)), NO_FACE: "no face", EVERY_CLASS: "all classes"}
    return [{"id": i, "from": names[before], "to": names[after]} for i, before, after in zip(*columns, strict=True)]


def _contents(bench: Workbench, prepared: Prepared, features: list[dict[str, Any]]) -> dict[str, Any]:
    """What the report shows besides metrics and pictures."""
    classes = bench.attribute.classes
    found: dict[str, Any] = {
        "dose": _doses(prepared, classes),
        "features": features,
        "strength": dict(zip(slot_names(bench), prepared.strength.tolist(), strict=True)),
    }
    if "probe" in bench.method.needs:
        accuracy = probe_task.fit(bench)[2]
        found["probe"] = {"accuracy_per_step": accuracy.tolist(), "chance": 1 / len(classes)}
    if prepared.located is not None:
        found["sae"] = _sae(bench)
        found["attribution"] = {
            "method": str(bench.cfg.attribution.scorer["_target_"]).rsplit(".", 1)[-1],
            "completeness_gap": prepared.located.result.completeness_gap,
        }
    return found


def _sae(bench: Workbench) -> dict[str, Any]:
    artifact, autoencoder = sae_task.train(bench)
    health = json.loads((artifact.folder / "health.json").read_text())
    return {
        "width": autoencoder.width,
        "k": autoencoder.k,
        "dim": autoencoder.dim,
        **{key: health[key] for key in ("fvu", "fvu_per_step", "l0", "dead_share")},
        **{key: values for key, values in health.items() if key.startswith("loss_recovered")},
        "density": {"edges": health["density_edges"], "counts": health["density_histogram"]},
    }


def _doses(prepared: Prepared, classes: tuple[str, ...]) -> dict[str, Any] | None:
    """The dose-response curve; of a calibration per prompt, the mean over the prompts in which a class was pushed."""
    found = prepared.calibration
    if found is None:
        return None
    # NaN at every dose: under this prompt nothing was pushed towards this class.
    unused = torch.stack([dose.success for dose in found.doses]).isnan().all(0)

    def by_class(values: Tensor, *, everywhere: bool = False) -> dict[str, float | None]:
        table, out = values.unflatten(0, (-1, len(classes))), unused.unflatten(0, (-1, len(classes)))
        # A class that no prompt pushed keeps its numbers, or its mean would be one of nothing.
        used = table if everywhere else torch.where(out & ~out.all(0), torch.nan, table)
        means = used.double().nanmean(0).tolist()
        # JSON knows no NaN.
        return {name: None if mean != mean else mean for name, mean in zip(classes, means, strict=True)}

    met = torch.tensor(found.met).unflatten(0, (-1, len(classes))).all(0)
    return {
        "neutral": prepared.mitigation.neutral,
        "chosen": by_class(found.strength),
        "met": dict(zip(classes, met.tolist(), strict=True)),
        "points": [
            {
                "strength": by_class(dose.strength),
                "success": by_class(dose.success),
                "shares": by_class(dose.shares, everywhere=True),
            }
            for dose in found.doses
        ],
    }
