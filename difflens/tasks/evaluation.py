"""Measuring a pair of image sets: one row per method, by the second judge, on images never used before."""

import json
import math
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from hydra.utils import instantiate
from torch import Tensor

from difflens.metrics.clip import ClipSimilarity, PromptSimilarity
from difflens.metrics.fairness import FairnessDiscrepancy, IntersectionalFairnessDiscrepancy
from difflens.metrics.frechet import FrechetDistance, KernelDistance
from difflens.metrics.judges import ReferenceStatistics, select_classes
from difflens.metrics.leakage import Leakage
from difflens.tasks.plans import groups
from difflens.tasks.workbench import Workbench, plain
from difflens.types import Attribute, GenerationPlan

if TYPE_CHECKING:
    from difflens.tasks.steer import Steered


def evaluate(bench: Workbench, steered: "Steered", *, name: str = "metrics.json") -> dict[str, Any]:
    """Write `metrics.json`: the row of the originals and that of the mitigation."""
    metric = bench.cfg.metric
    spec = {
        "steered": steered.artifacts[1].fingerprint,
        "judge": bench.scoring_judge.fingerprint,  # type: ignore[attr-defined]
        "extractor": bench.extractor.fingerprint,  # type: ignore[attr-defined]
        "reference": plain(metric.reference),
        "reference_name": metric.reference_name,
        "kid_subset": metric.kid_subset,
        "others": [attribute.name for attribute in bench.others()],
        "target": bench.target.tolist(),
        "method": bench.cfg.mitigation.name,
    }

    def make(folder: Path) -> None:
        (folder / "metrics.json").write_text(json.dumps(measure(bench, steered), allow_nan=True))

    with bench.run.stage("metrics"):
        artifact = bench.run.artifact("metrics", spec, make)
        metrics: dict[str, Any] = json.loads((artifact.folder / "metrics.json").read_text())
        bench.run.write_json(name, metrics)
    return metrics


def measure(bench: Workbench, steered: "Steered") -> dict[str, Any]:
    """The content of `metrics.json`."""
    reference = instantiate(bench.cfg.metric.reference)
    features = bench.extractor(reference.float() / 255)
    statistics = ReferenceStatistics.from_features(
        features, extractor=bench.extractor.name, resize=bench.extractor.resize
    )
    rows = [
        _row(bench, method, steered, images, statistics, features)
        for method, images in (("original", steered.before), (bench.cfg.mitigation.name, steered.after))
    ]
    return {
        "model": bench.cfg.model.name,
        "attribute": bench.attribute.name,
        "classes": list(bench.attribute.classes),
        "target": dict(zip(bench.attribute.classes, bench.target.tolist(), strict=True)),
        "n": len(steered.image_ids),
        "protocol": {
            "judge": bench.scoring_judge.name,  # type: ignore[attr-defined]
            "extractor": statistics.extractor,
            "resize": statistics.resize,
            "reference": {"name": bench.cfg.metric.reference_name, "n": statistics.n, "sha256": statistics.sha256},
            "assignment": bench.cfg.mitigation.assignment,
            "steps": bench.model.steps,
            "seed": bench.cfg.metric.base_seed,
        },
        "rows": rows,
    }


def _row(
    bench: Workbench,
    method: str,
    steered: "Steered",
    images: Tensor,
    statistics: ReferenceStatistics,
    reference: Tensor,
) -> dict[str, Any]:
    ids, changed = steered.image_ids, method != "original"
    logits = judged(bench, images)
    features = bench.extractor(images.float() / 255)
    frechet, kernel = (
        FrechetDistance(bench.extractor.dim, statistics),
        KernelDistance(reference, ids, subset_size=bench.cfg.metric.kid_subset),
    )
    frechet.update(features)
    kernel.update(features, ids)
    kid = kernel.compute()
    return {
        "method": method,
        "n": len(ids),
        "edited": int(steered.edited.sum()) if changed else 0,
        **_fairness(bench, logits),
        **(_prompts(bench, steered.plan, images, logits) if steered.plan.prompts else {}),
        "fid": frechet.compute().distance,
        "kid": kid.distance,
        "kid_sd": kid.subset_sd,
        **(_pairs(bench, steered, logits) if changed else {"clip_i": None, "clip_i_paper": None, "leakage": {}}),
    }


def judged(bench: Workbench, images: Tensor) -> dict[str, Tensor]:
    """The scoring judge's logits of every studied attribute, columns in the attribute's order."""
    answer = bench.scoring_judge(images.float() / 255)
    return {a.name: answer[a.name][:, select_classes(bench.scoring_judge, a)] for a in _studied(bench)}


def _studied(bench: Workbench) -> list[Attribute]:
    return [bench.attribute, *bench.others()]


def _fairness(bench: Workbench, logits: dict[str, Tensor]) -> dict[str, Any]:
    single = FairnessDiscrepancy(bench.attribute.classes, bench.target)
    single.update(logits[bench.attribute.name])
    result = single.compute()
    crossed = {a.name: a.classes for a in _studied(bench) if a.name in ("gender", "age", "race")}
    joint = IntersectionalFairnessDiscrepancy(crossed)
    joint.update(logits)
    return {
        "missing_faces": result.missing,
        "fd": result.fd,
        "fd_hard": result.fd_hard,
        "fd_chance": result.fd_chance,
        "fd_squared_unbiased": result.fd_squared_unbiased,
        "fd_max": result.fd_maximum,
        "shares": {name: share._asdict() for name, share in result.shares.items()},
        "intersectional_fd": joint.compute().fd_hard,
        "intersectional_attributes": list(crossed),
    }


def _prompts(bench: Workbench, plan: GenerationPlan, images: Tensor, logits: dict[str, Tensor]) -> dict[str, Any]:
    """The discrepancy under every prompt, their means (METHOD section 7: not the pooled one), and CLIP-T."""
    assert plan.prompts is not None
    by_prompt: dict[str, dict[str, Any]] = {}
    for rows in groups(plan):
        single = FairnessDiscrepancy(bench.attribute.classes, bench.target)
        single.update(logits[bench.attribute.name][rows])
        found = single.compute()
        by_prompt[plan.prompts[int(rows[0])]] = {
            "n": len(rows),
            "fd": found.fd,
            "fd_hard": found.fd_hard,
            "fd_chance": found.fd_chance,
            "shares": {name: share._asdict() for name, share in found.shares.items()},
        }
    similarity = PromptSimilarity()
    texts = bench.extractor.embed_texts(list(plan.prompts))  # type: ignore[attr-defined]
    similarity.update(bench.extractor.embed_images(images.float() / 255), texts)  # type: ignore[attr-defined]
    clip = similarity.compute()
    means = {f"{key}_prompt_mean": fmean(row[key] for row in by_prompt.values()) for key in ("fd", "fd_hard")}
    return {**means, "prompts": by_prompt, "clip_t": clip.cosine, "clip_t_paper": clip.paper}


def _pairs(bench: Workbench, steered: "Steered", after: dict[str, Tensor]) -> dict[str, Any]:
    ids = steered.image_ids
    similarity = ClipSimilarity(bench.extractor.embed_images(steered.before.float() / 255), ids)  # type: ignore[attr-defined]
    similarity.update(bench.extractor.embed_images(steered.after.float() / 255), ids)  # type: ignore[attr-defined]
    classes = {a.name: a.classes for a in _studied(bench)}
    leakage = Leakage(bench.attribute.name, judged(bench, steered.before), ids, classes=classes)
    leakage.update(after, ids, edited=steered.edited)
    clip, leaked = similarity.compute(), leakage.compute()
    return {
        "clip_i": clip.cosine,
        "clip_i_paper": clip.paper,
        "leakage": {
            name: {k: _finite(v) for k, v in entry._asdict().items()} for name, entry in leaked.attributes.items()
        },
        "editing_precision": _finite(leaked.editing_precision),
    }


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
