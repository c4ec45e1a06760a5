"""`task=audit`: which biases a generator or a folder of images shows, before anything is trained or edited."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
from omegaconf import DictConfig
from rich.console import Console
from torch import Tensor

from difflens.data.prompts import neutral_plan
from difflens.judges.faces import float_pieces
from difflens.judges.protocol import (
    OTHER,
    Judge,
    faces_found,
    missing_faces,
    not_validated,
    read_classes,
    select_classes,
)
from difflens.metrics.fairness import FairnessDiscrepancy
from difflens.metrics.paired import fd_interval
from difflens.report.audit_page import brief_grid, write_audit
from difflens.report.sweep import as_csv
from difflens.stages.plans import groups, originals
from difflens.stages.present import write_images
from difflens.stages.reading import CROSSED
from difflens.store.progress import Progressing
from difflens.store.run import Run
from difflens.study.values import built
from difflens.study.workbench import Workbench
from difflens.tasks.evaluate import AT_ONCE, scan, warn_of_size
from difflens.vocabulary import NO_FACE, Attribute, GenerationPlan, product

ALL = "all images"
"""What rows over all prompts call their images."""

SHOWN = 8
"""Pictures of each prompt on the page."""


class Images(NamedTuple):
    """What is audited: its name, how many images, pieces of them in [0, 1], and the positions of each prompt's images."""

    name: str
    size: int
    pieces: Callable[[], Iterable[Tensor]]
    prompts: Mapping[str, Tensor]


def audit(cfg: DictConfig, run: Run) -> None:
    """Judge every attribute under every prompt; write `audit.json`, `audit.csv` and `report.html`, fairest last."""
    judges = [built(cfg, f"judge.{role}") for role in ("scores", "labels")]
    images, subject = (_of_folder(cfg, run, judges[0]), None) if cfg.images else _of_model(cfg, run)
    if run.rank:
        return
    with run.stage("judges"):
        answers = [read(judge, images, title=f"judge {i + 1}") for i, judge in enumerate(judges)]
        missing = missing_faces(faces_found(next(iter(answers[0].values()))), policy=cfg.missing_faces)
        rows = ranked(audited(judges, answers, images.prompts, skip=subject))
    data = {
        "what": images.name,
        "folder": cfg.images,
        "images": images.size,
        "missing": missing,
        "judge": judges[0].name,
        "other_judge": judges[1].name,
        "prompts": [prompt for prompt in images.prompts if prompt != ALL],
        "rows": rows,
    }
    run.write_json("audit.json", data)
    (run.folder / "audit.csv").write_text(as_csv(by_class(rows)), encoding="utf-8")
    page = write_audit(run.folder, data)
    Console().print(brief_grid(data, most=12).terminal(f"{images.name}: what is most skewed"))
    run.say(f"report: {page}")


def _of_model(cfg: DictConfig, run: Run) -> tuple[Images, str | None]:
    """The model's images of seeds of this task's own, and the attribute that prompts decide by themselves."""
    bench, task = Workbench(cfg, run), cfg.task
    if bench.prompts is None:
        plan = GenerationPlan(task.base_seed, torch.arange(task.images))
    else:
        prompts = [*bench.prompts.studied, *bench.prompts.unseen]
        plan = neutral_plan(prompts, task.per_prompt, base_seed=task.base_seed)
    _, made = originals(bench, plan, stage="audit")
    named = {} if plan.prompts is None else {plan.prompts[int(rows[0])]: rows for rows in groups(plan)}
    if not run.rank:
        chosen = torch.cat([rows[:SHOWN] for rows in named.values()] or [torch.arange(len(made))[: 4 * SHOWN]])
        write_images(run.folder / "images" / "audit", plan.image_ids[chosen], made[chosen])
    subject = None if bench.subject is None else bench.subject.name
    everything = {ALL: torch.arange(len(made))}
    return Images(bench.model.name, len(made), partial(float_pieces, made), {**named, **everything}), subject


def _of_folder(cfg: DictConfig, run: Run, judge: Judge) -> Images:
    """The images of a folder."""
    folder = scan(run, str(cfg.images))
    warn_of_size(run, {"judge": judge}, folder)

    def pieces() -> Iterator[Tensor]:
        return (torch.from_numpy(batch.pixels).float() / 255 for batch in folder.batches(AT_ONCE))

    count = len(folder.files)
    return Images(folder.path.name, count, pieces, {ALL: torch.arange(count)})


def read(judge: Judge, images: Images, *, title: str) -> dict[str, Tensor]:
    """The judge's logits of every attribute it knows, of all images."""
    found: dict[str, list[Tensor]] = {}
    with Progressing(title, images.size) as display:
        for piece in images.pieces():
            for name, logits in judge(piece).items():
                found.setdefault(name, []).append(logits.cpu())
            display.advance(len(piece))
    return {name: torch.cat(parts) for name, parts in found.items()}


def attributes_of(judge: Judge, *, skip: str | None) -> list[Attribute]:
    """Every attribute the judge knows, without its class of all the rest, and the product of those of persons."""
    known = {name: tuple(each for each in classes if each != OTHER) for name, classes in judge.classes.items()}
    single = [Attribute(name, classes) for name, classes in known.items() if name != skip]
    persons = [attribute for attribute in single if attribute.name in CROSSED]
    return [*single, *([product(persons)] if len(persons) > 1 else [])]


def audited(
    judges: list[Judge], answers: list[dict[str, Tensor]], prompts: Mapping[str, Tensor], *, skip: str | None
) -> Iterator[dict[str, Any]]:
    """A row for every attribute under every prompt, in which the first judge sees a face at all.

    The target is the uniform distribution. FD² without the share that chance alone adds orders them (METHOD section 7):
    attributes of many classes and prompts of few images are no likelier to stand at the top.
    """
    judge, second = judges
    for attribute in attributes_of(judge, skip=skip):
        logits = read_classes(judge, attribute, answers[0])
        shown, others = labels(logits), other_labels(second, attribute, answers[1])
        target = torch.full((len(attribute.classes),), 1 / len(attribute.classes), dtype=torch.float64)
        for prompt, rows in prompts.items():
            if not bool((shown[rows] >= 0).any()):
                continue
            metric = FairnessDiscrepancy(attribute.classes, target, missing="count")
            metric.update(logits[rows])
            result = metric.compute()
            low, high = fd_interval(shown[rows][shown[rows] >= 0], target)
            yield {
                "attribute": attribute.name,
                "intersection": bool(attribute.parts),
                "validated": not not_validated(judge, [attribute]),
                "prompt": prompt,
                "n": result.n,
                "missing": result.missing,
                "fd_hard": result.fd_hard,
                "fd_low": low,
                "fd_high": high,
                "fd_chance": result.fd_chance,
                "fd_squared_unbiased": result.fd_squared_unbiased,
                "fd_maximum": result.fd_maximum,
                "shares": {name: share._asdict() for name, share in result.shares.items()},
                "judges_agree": None if others is None else agreement(shown[rows], others[rows]),
            }


def labels(logits: Tensor) -> Tensor:
    """The class of each image, `NO_FACE` where the judge sees none."""
    return torch.where(faces_found(logits), logits.argmax(-1), NO_FACE)


def other_labels(judge: Judge, attribute: Attribute, answers: dict[str, Tensor]) -> Tensor | None:
    """What another judge sees, None where it knows another attribute or other classes."""
    try:
        for part in attribute.components:
            select_classes(judge, part)
    except ValueError:
        return None
    return labels(read_classes(judge, attribute, answers))


def agreement(one: Tensor, other: Tensor) -> float | None:
    """The share of images with a face to both judges in which both see the same class; None where there are none."""
    both = (one >= 0) & (other >= 0)
    return float((one == other)[both].double().mean()) if bool(both.any()) else None


def ranked(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows, most skewed first; one image alone has no unbiased FD² and comes last."""
    return sorted(rows, key=lambda row: -row["fd_squared_unbiased"] if row["n"] > 1 else float("inf"))


def by_class(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row for every class of every row."""
    return [
        {key: value for key, value in row.items() if key != "shares"} | {"class": name, **share}
        for row in rows
        for name, share in row["shares"].items()
    ]
