"""How often a judge is right: `uv run python experiments/judges_on_photographs.py <folder of photographs> <labels.csv>`.

The CSV has a line for each photograph: a column `file`, its name in the folder, and one for each labelled attribute,
with classes as the judge calls them (`gender`: female, male; `age`: under_40, from_40); an empty cell is an unknown
label. Every photograph is read as it is, and reduced until its longer side has 1,024, 64 and 32 pixels and enlarged
again. What is told, also in `outputs/judges_on_photographs.json`: the share that each judge reads right, that of each
class (recall, with Wilson's 95 % interval), AUC of each class against the rest, photographs without a face, and how
often both judges see the same.
Recalls of the judge that scores correct FD where they stand in the configuration (`judge.recalls`, CLEAM).

Another judge, or settings: `… <folder> <labels.csv> judge=fairface`.
"""

import argparse
import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from PIL import Image
from rich.console import Console
from scipy.stats import rankdata
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor  # type: ignore[import-untyped]

from difflens.cli.products import register_products
from difflens.judges.protocol import Judge, faces_found
from difflens.main import conf_folder
from difflens.metrics.functional import wilson_interval
from difflens.report.measures import number, percent
from difflens.report.tables import Grid
from difflens.store.progress import progress
from difflens.study.values import built

SIZES = (1024, 64, 32)


def main() -> None:
    """Measure, print and keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("labels", type=Path)
    parser.add_argument("overrides", nargs="*", default=[], help="settings of the judges, such as judge=fairface")
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    options = parser.parse_args()
    register_products(conf_folder())
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        cfg = compose("config", overrides=["judge=photographs", *options.overrides])
    judges = {role: built(cfg, f"judge.{role}") for role in ("scores", "labels")}
    try:
        files, truth = read_labels(options.labels, options.folder, judges["scores"].classes)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    found: dict[str, Any] = {"images": len(files), "judges": {role: judge.name for role, judge in judges.items()}}
    found["sizes"] = {str(size): measure(judges, files, truth, size=size) for size in (None, *options.sizes)}
    outputs = Path("outputs")
    outputs.mkdir(exist_ok=True)
    (outputs / "judges_on_photographs.json").write_text(json.dumps(found, indent=2) + "\n")
    Console().print(grid(found).terminal(f"{len(files)} photographs of {options.folder}"))
    print(f"of {judges['scores'].name}, as the photographs are, for conf/judge:\n{recalls(found)}")


def read_labels(
    table: Path, folder: Path, classes: Mapping[str, Sequence[str]]
) -> tuple[list[Path], dict[str, list[int]]]:
    """The photographs, and attribute → the number of each one's class, −1 where that is unknown.

    Raises:
        ValueError: the table lacks a column, or names a file, attribute or class that does not exist.
    """
    with table.open(newline="", encoding="utf-8-sig") as stream:
        lines = list(csv.DictReader(stream))
    header = list(lines[0]) if lines else []
    columns = [name for name in header if name != "file"]
    if "file" not in header or not columns or not set(columns) <= set(classes):
        raise ValueError(
            f"{str(table)!r} needs a line for each photograph with a column `file` and others of {', '.join(classes)}, which "
            f"the judge that scores reads; its columns are {', '.join(header) or 'none'}."
        )
    files = [folder / line["file"] for line in lines]
    if missing := [path.name for path in files if not path.is_file()]:
        raise ValueError(
            f"{str(folder)!r} lacks {len(missing)} of the files in {str(table)!r}, such as {missing[0]!r}."
        )
    truth: dict[str, list[int]] = {}
    for name in columns:
        if strange := {line[name] for line in lines} - {"", *classes[name]}:
            raise ValueError(f"{name} is one of {', '.join(classes[name])}, or empty; got {sorted(strange)}.")
        truth[name] = [classes[name].index(line[name]) if line[name] else -1 for line in lines]
    return files, truth


def reduced(photograph: Image.Image, size: int | None) -> Image.Image:
    """A photograph with as much detail as one whose longer side has `size` pixels, in its own size."""
    scale = 1 if size is None else size / max(photograph.size)
    if scale >= 1:
        return photograph
    small = photograph.resize([max(1, round(side * scale)) for side in photograph.size], Image.Resampling.BOX)
    return small.resize(photograph.size, Image.Resampling.BICUBIC)


def measure(
    judges: Mapping[str, Judge], files: Sequence[Path], truth: Mapping[str, Sequence[int]], *, size: int | None
) -> dict[str, Any]:
    """What each judge reads right at a size (None: as they are), and how often the two agree."""
    answers: dict[str, dict[str, list[Tensor]]] = {role: {name: [] for name in truth} for role in judges}
    for path in progress(files, "as they are" if size is None else f"{size} px"):
        with Image.open(path) as opened:
            image = pil_to_tensor(reduced(opened.convert("RGB"), size))[None].float() / 255
        # One by one, since photographs have sizes of their own.
        for role, judge in judges.items():
            for name, logits in judge(image).items():
                if name in truth:
                    answers[role][name].append(logits)
    found: dict[str, Any] = {}
    for name, labels in truth.items():
        # By name: each judge has an order of its own, and may know other classes.
        order = {role: list(judge.classes.get(name, ())) for role, judge in judges.items()}
        read = {role: torch.cat(answers[role][name]) for role in judges if order[role]}
        found[name] = {
            role: right(logits, torch.tensor(labels), order["scores"], order[role]) for role, logits in read.items()
        }
        if len(read) == 2 and set(order["scores"]) == set(order["labels"]):
            found[name]["judges_agree"] = agreement(read, order)
    return found


def agreement(read: Mapping[str, Tensor], order: Mapping[str, list[str]]) -> float | None:
    """The share of photographs with a face to both judges in which both see the same class."""
    both = torch.stack([faces_found(logits) for logits in read.values()]).all(0)
    seen = [[order[role][i] for i in logits[both].argmax(-1).tolist()] for role, logits in read.items()]
    return sum(a == b for a, b in zip(*seen, strict=True)) / len(seen[0]) if seen[0] else None


def right(logits: Tensor, labels: Tensor, classes: Sequence[str], known: Sequence[str]) -> dict[str, Any]:
    """How well a judge's logits, of its classes `known`, tell labels that count in `classes`."""
    labelled = labels >= 0
    read = labelled & faces_found(logits)
    shown = [known[i] for i in logits[read].argmax(-1).tolist()]
    hits = torch.tensor([name == classes[i] for name, i in zip(shown, labels[read].tolist(), strict=True)])
    of_class = {}
    for i, name in enumerate(classes):
        own = labels[read] == i
        if name not in known or not bool(own.any()):
            continue
        count, n = hits[own].sum()[None], int(own.sum())
        low, high = (float(end) for end in wilson_interval(count, n))
        probability = logits[read].double().softmax(-1)[:, known.index(name)]
        of_class[name] = {"n": n, "recall": float(count) / n, "low": low, "high": high, "auc": auc(probability, own)}
    return {
        "n": int(read.sum()),
        "missing": int((labelled & ~read).sum()),
        "right": float(hits.double().mean()) if len(hits) else None,
        "classes": of_class,
    }


def auc(scores: Tensor, positive: Tensor) -> float | None:
    """The chance that a photograph of the class has a higher score than one of the rest, ties counting half."""
    inside, outside = int(positive.sum()), int((~positive).sum())
    if not inside or not outside:
        return None
    ranks = torch.from_numpy(rankdata(scores.numpy()))
    return float(ranks[positive].sum() - inside * (inside + 1) / 2) / (inside * outside)


def grid(found: Mapping[str, Any]) -> Grid:
    """A line for each attribute, judge and size."""
    header = ["attribute", "judge", "longer side", "photographs", "no face", "right", "recalls", "AUC", "judges agree"]
    lines = []
    for size, attributes in found["sizes"].items():
        for name, of in attributes.items():
            for role in (role for role in found["judges"] if role in of):
                each, classes = of[role], of[role]["classes"]
                kept = [
                    f"{c} {percent(v['recall'])} ({percent(v['low'])}–{percent(v['high'])})" for c, v in classes.items()
                ]
                areas = [f"{c} {number(v['auc'], 3)}" for c, v in classes.items()]
                lines.append(
                    [
                        *(name, found["judges"][role], "as it is" if size == "None" else f"{size} px", str(each["n"])),
                        *(str(each["missing"]), percent(each["right"]), ", ".join(kept), ", ".join(areas)),
                        percent(of.get("judges_agree")),
                    ]
                )
    return Grid(header, lines, numbers=6)


def recalls(found: Mapping[str, Any]) -> str:
    """The scoring judge's recalls as `judge.recalls` takes them."""
    lines = ["recalls:"]
    for name, each in found["sizes"]["None"].items():
        values = [f"{c}: {v['recall']:.4f}" for c, v in each["scores"]["classes"].items()]
        lines.append(f"  {name}: {{{', '.join(values)}}}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
