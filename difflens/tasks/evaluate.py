"""`task=evaluate`: measure a folder of images, whoever made them, and compare it with the originals of the same names."""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from rich.console import Console
from safetensors.torch import load_file, save_file
from torch import Tensor

from difflens.data.folder import ImageFolder, Pairs, Reference, collect_reference, pair_by_name, readable, scan_folder
from difflens.judges.protocol import ReferenceStatistics, select_classes
from difflens.methods.assignment import read_goals
from difflens.models.devices import return_memory_at_once
from difflens.stages.listed import listed_measures, measure_own, own_metrics
from difflens.stages.reading import Reading, Study, protocol, read_images
from difflens.store.progress import Progressing
from difflens.store.run import Run
from difflens.study.values import built, plain, read_attribute
from difflens.vocabulary import Attribute

FOR_PHOTOGRAPHS = {"judge": "judge=photographs", "extractor": "metric=photographs"}
"""What reads photographs in each role."""

AT_ONCE = 16
"""Images that are decoded at once, as many as networks read."""


def evaluate(cfg: DictConfig, run: Run) -> None:
    """Write `metrics.json` and `report.html` on the folders that `images`, `reference` and `originals` name."""
    # Networks come and go here, and glibc would keep the freed ones in pieces too small for the next.
    return_memory_at_once()
    places = read_places(cfg)
    # What the configuration gets wrong is told before thousands of files are opened.
    listed, own = listed_measures(cfg), own_metrics(cfg)
    study = read_study(cfg)
    # A folder with two roles, as originals that are the reference, is read once.
    scanned = {place: scan(run, place) for place in dict.fromkeys(places.values())}
    folders = {role: scanned[place] for role, place in places.items()}
    for role, folder in folders.items():
        if len(folder.files) < 2:
            raise ValueError(
                f"{role} needs 2 images at least, since FID compares means and covariances (and thousands for a number that "
                f"means something), got {folder.describe()}."
            )
    warn_of_size(run, {"judge": study.judge, "extractor": study.extractor}, folders["images"])
    originals = folders.get("originals")
    shared = None if originals is None else _pair(originals, folders["images"], cfg.pairs)
    metrics = measure(run, study, folders, shared, own) | {"measures": listed}
    run.write_json("metrics.json", metrics)
    # Not before the networks are gone, like all that is needed for the numbers alone.
    from difflens.report import summary_table, write_report

    page = write_report(run.folder)
    Console().print(summary_table(metrics))
    run.say(f"report: {page}")


def read_places(cfg: DictConfig) -> dict[str, str]:
    """The folders by their roles (ValueError: one is not given)."""
    places = {role: plain(cfg[role]) for role in ("images", "reference", "originals")}
    for role, place in places.items():
        if place in (None, "") and role != "originals":
            raise ValueError(f"{role} is not given; name a folder: {role}=<folder>.")
    return {role: str(place) for role, place in places.items() if place not in (None, "")}


def warn_of_size(run: Run, readers: Mapping[str, Any], images: ImageFolder) -> None:
    """Say so where networks that know nothing but drawn faces of one size are to read other images, by the first of them."""
    height, width = next(images.batches(1)).pixels.shape[-2:]
    drawn = {role: size for role, reader in readers.items() if (size := getattr(reader, "drawn_size", None))}
    if any((height, width) != (size, size) for size in drawn.values()):
        named = " and ".join(f"{role} {readers[role].name} reads" for role in drawn)
        size = next(iter(drawn.values()))
        chosen, what = " ".join(FOR_PHOTOGRAPHS[role] for role in drawn), "the numbers"
        if "judge" not in drawn:
            what = "FID, KID and CLIP-I"
        run.say(
            f"warning: {named} drawn faces of {size} × {size} pixels, and these images have {width} × {height}: {what} mean "
            f"nothing on photographs; for those choose {chosen}"
        )


def _pair(originals: ImageFolder, images: ImageFolder, pairs: str) -> Pairs:
    try:
        return pair_by_name(originals, images, pairs=pairs)
    except ValueError as error:
        raise ValueError(f"{error} Where the two are no pairs at all, set originals=null.") from error


def read_study(cfg: DictConfig) -> Study:
    """What the scoring judge is to read: the attribute and `judge.others` (ValueError: it does not read one of them)."""
    attribute, judge = read_attribute(plain(cfg.attribute)), built(cfg, "judge.scores")
    own = [part.name for part in attribute.components]
    if unknown := [name for name in cfg.judge.others if name not in judge.classes]:
        raise ValueError(
            f"judge.others names {unknown}, which the judge does not read; it reads {list(judge.classes)}."
        )
    for part in attribute.components:
        select_classes(judge, part)
    return Study(
        attribute,
        read_goals(attribute, plain(cfg.mitigation.target)),
        tuple(Attribute(name, tuple(judge.classes[name])) for name in cfg.judge.others if name not in own),
        judge,
        built(cfg, "metric.extractor"),
        missing=cfg.missing_faces,
        kid_subset=cfg.metric.kid_subset,
        recalls=plain(cfg.judge.get("recalls") or {}),
    )


def scan(run: Run, place: str) -> ImageFolder:
    """A folder whose every file was looked at; what was converted or refused is said."""
    with Progressing(f"files in {readable(place)}", None) as display:
        images = scan_folder(place, seen=display.advance)
    run.say(images.describe())
    return images


def measure(
    run: Run, study: Study, folders: dict[str, ImageFolder], shared: Pairs | None, own: dict[str, Any]
) -> dict[str, Any]:
    """The content of `metrics.json`: a row of the images and, where there are any, one of their originals."""
    images, originals = folders["images"], folders.get("originals")
    # Nothing that was read off one folder is in memory while networks read another.
    stored = [read_folder(run, folder, study) for folder in (images, originals) if folder is not None]
    same = originals is not None and originals.sha256 == folders["reference"].sha256
    with run.stage("metrics"):
        made, *others = (Reading.of(load_file(file)) for file in stored)
        first = others[0] if others else None
        # The features of these images were just read.
        if first is not None and same:
            reference = _reference_of(first, study)
        else:
            reference = collect_reference(folders["reference"], study.extractor, store=run.store)
        # Not before the networks are gone: torchmetrics takes 100 MB.
        from difflens.stages.rows import build_row, pairs, smaller_subsets

        nobody_knows = {"edited": None}
        rows = [build_row("images", made, study, reference) | nobody_knows]
        rows[0] |= measure_own(own, made, study, _pieces(images))
        if first is not None and originals is not None and shared is not None:
            names = shared.names
            before, after = part(first, originals, names), part(made, images, names)
            rows[0] |= {"pairs": len(names), **pairs(before, after, study, None)}
            # Metrics that ask for originals could say nothing of all images; of the pairs they can.
            of_pairs = {key: metric for key, metric in own.items() if rows[0][key] is None}
            made_pieces, others_pieces = (_pieces(folder, names) for folder in (images, originals))
            rows[0] |= measure_own(of_pairs, after, study, made_pieces, originals=others_pieces)
            # Compared with itself, the reference would show a perfect FID.
            unmeasured = dict.fromkeys(("fid", "kid", "kid_sd")) if same else {}
            own_row = measure_own(own, first, study, _pieces(originals))
            rows.insert(0, build_row("original", first, study, reference) | nobody_knows | unmeasured | own_row)
    statistics = reference.statistics
    return {
        "model": readable(images.path.name),
        "attribute": study.attribute.name,
        "classes": list(study.attribute.classes),
        "target": dict(zip(study.attribute.classes, study.goals.shared.tolist(), strict=True)),
        "n": len(images.files),
        "protocol": {
            **protocol(study),
            **smaller_subsets(study, reference, len(images.files)),
            "reference": {
                "name": readable(folders["reference"].path.name),
                "n": statistics.n,
                "sha256": statistics.sha256,
            },
        },
        "folders": {role: folder.report() for role, folder in folders.items()},
        "unpaired": {} if shared is None else {"originals": shared.only_first, "images": shared.only_second},
        "rows": rows,
    }


def read_folder(run: Run, images: ImageFolder, study: Study) -> Path:
    """The file of what judge and extractor read off a folder, kept for all runs that ask for these images and networks."""
    spec = {
        "images": images.sha256,
        "judge": study.judge.fingerprint,  # type: ignore[attr-defined]
        "extractor": study.extractor.fingerprint,  # type: ignore[attr-defined]
    }
    ids = torch.arange(len(images.files))

    def make(folder: Path) -> None:
        reading = read_images(partial(_pieces, images), ids, study, title=f"reading {readable(images.path.name)}")
        save_file(reading.tensors(), folder / "reading.safetensors")

    with run.stage("read"):
        artifact = run.artifact("reading", spec, make)
    return artifact.folder / "reading.safetensors"


def part(reading: Reading, folder: ImageFolder, names: tuple[str, ...]) -> Reading:
    """The reading of the images of these names, numbered in their order."""
    position = {name: row for row, name in enumerate(folder.files)}
    return reading.take(torch.tensor([position[name] for name in names]))


def _pieces(images: ImageFolder, names: Sequence[str] | None = None) -> Iterator[Tensor]:
    """The images in [0, 1]; those of `names` one by one, as batches of two folders may end at different ones."""
    batches = images.batches(AT_ONCE if names is None else 1, names)
    return (torch.from_numpy(batch.pixels).float() / 255 for batch in batches)


def _reference_of(reading: Reading, study: Study) -> Reference:
    extractor = study.extractor
    statistics = ReferenceStatistics.from_features(reading.features, extractor=extractor.name, resize=extractor.resize)
    return Reference(reading.features, statistics)
