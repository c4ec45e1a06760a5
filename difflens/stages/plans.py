"""Which images a run asks its model for: those it learns from, those that choose a strength, those it is measured on."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from difflens.data.activations import ActivationStore
from difflens.data.prompts import neutral_plan, repeated_plan, study_plan
from difflens.data.sampled import Shards
from difflens.store.artifacts import Artifact
from difflens.study.workbench import Workbench
from difflens.training.steering_module import sample
from difflens.vocabulary import UNNAMED, Attribute, GenerationPlan


def learning_plan(bench: Workbench) -> GenerationPlan:
    """The `data.images` images whose activations are stored; half of them name a class where the model takes prompts."""
    if bench.prompts is None:
        return GenerationPlan(bench.cfg.data.base_seed, torch.arange(bench.cfg.data.images))
    return _prompted(bench, bench.words)[0]


def named_classes(bench: Workbench) -> Tensor:
    """The class that the prompt of each learning image names, `UNNAMED` where it names none."""
    return _prompted(bench, bench.words)[1]


def _prompted(bench: Workbench, words: Sequence[str]) -> tuple[GenerationPlan, Tensor]:
    """The learning images of a model that takes prompts, which name classes by these words, and the class each names."""
    assert bench.prompts is not None
    return study_plan(bench.prompts, words, bench.cfg.data.images, base_seed=bench.cfg.data.base_seed)


def contrast_plan(bench: Workbench) -> GenerationPlan:
    """The learning images whose prompts name a class, with the same noise under prompts that name the next class.

    Raises:
        ValueError: the model takes no prompts.
    """
    if bench.prompts is None:
        raise ValueError(f"attribution.baseline=contrast needs prompts, and {bench.model.name} takes none; use zero.")
    # Only the words move on by one: ids and seed, and with them the noise, are those of the learning images.
    plan, labels = _prompted(bench, (*bench.words[1:], bench.words[0]))
    return plan.take((labels != UNNAMED).nonzero()[:, 0])


def calibration_plan(bench: Workbench) -> GenerationPlan:
    """The images that choose the strength, and nothing else: about `calibration.images`."""
    settings = bench.cfg.mitigation.calibration
    return spread_plan(bench, settings.images, base_seed=settings.base_seed)


def spread_plan(bench: Workbench, images: int, *, base_seed: int) -> GenerationPlan:
    """So many images, or the next larger number of which every studied prompt has as many."""
    if bench.prompts is None:
        return GenerationPlan(base_seed, torch.arange(images))
    prompts = bench.prompts.studied
    return neutral_plan(prompts, -(-images // len(prompts)), base_seed=base_seed)


def evaluation_plan(bench: Workbench, *, unseen: bool = False) -> GenerationPlan:
    """The evaluation images: `metric.images`, or so many of every prompt; `unseen` takes the prompts kept for that."""
    metric = bench.cfg.metric
    if bench.prompts is None:
        return GenerationPlan(metric.base_seed, torch.arange(metric.images))
    prompts, first = bench.prompts.studied, 0
    if unseen:
        # Ids go on where the studied prompts end: equal ids of one base seed begin with the same noise.
        first = len(prompts) * metric.images
        prompts = bench.prompts.unseen
    return neutral_plan(prompts, metric.images, base_seed=metric.base_seed, first_id=first)


def naming_plan(bench: Workbench) -> GenerationPlan | None:
    """`metric.named` images of every prompt that shows whether named classes are obeyed; None where there are none."""
    if not bench.named:
        return None
    assert bench.prompts is not None
    metric = bench.cfg.metric
    # Ids go on where those of the unseen prompts end.
    first = (len(bench.prompts.studied) + len(bench.prompts.unseen)) * metric.images
    return repeated_plan([*bench.named], metric.named, base_seed=metric.base_seed, first_id=first)


def originals(bench: Workbench, plan: GenerationPlan, *, stage: str = "originals") -> tuple[Artifact, Tensor]:
    """The plan's images without mitigation, uint8 [N, 3, H, W]; shared by every attribute and method."""
    # Nothing of attribute or method: all rows of a table are compared with the same images.
    spec = {"model": bench.model.spec(), **plan_spec(plan)}

    def make(folder: Path) -> None:
        sample(bench.trainer(stage), bench.model, plan, Shards(folder))

    with bench.run.stage(stage):
        artifact = bench.run.artifact("images", spec, make, resumable=True, together=True)
    return artifact, Shards(artifact.folder).images(plan.image_ids)


def plan_spec(plan: GenerationPlan) -> dict[str, Any]:
    """What artifact specs say of a plan: seed, size, the prompts in order, and where ids do not begin at 0."""
    # Where the ids begin depends on what else the study has prompts for: the same prompts may have other images.
    first = int(plan.image_ids[0]) if len(plan.image_ids) else 0
    return {
        "base_seed": plan.base_seed,
        "images": len(plan.image_ids),
        **({} if plan.prompts is None else {"prompts": list(plan.prompts)}),
        **({"first_id": first} if first else {}),
    }


def learning_labels(bench: Workbench, store: ActivationStore, attribute: Attribute) -> Tensor:
    """The class of each learning image: named by its prompt if `prompt.labels` says so, else as the labelling judge sees it.

    Images of neutral prompts are `UNNAMED` in the first case. Prompts name classes of the attribute under study alone.
    """
    if bench.prompts is not None and bench.prompts.labels == "prompt" and attribute == bench.attribute:
        return named_classes(bench)
    return judged_labels(bench, store, attribute)


def judged_labels(bench: Workbench, store: ActivationStore, attribute: Attribute) -> Tensor:
    """The class of each learning image as the labelling judge sees it, `NO_FACE` where it sees none; read once per run."""
    # The judge reads all attributes in one go, so those that are held or measured cost nothing more.
    answers = bench.once("answers on the learning images", lambda: bench.answers(store.images))
    return bench.classified(answers, attribute)[0]


def groups(plan: GenerationPlan) -> list[Tensor]:
    """Positions of the images of each prompt, in the order in which the prompts come; all of them where there are none."""
    if plan.prompts is None:
        return [torch.arange(len(plan.image_ids))]
    order = dict.fromkeys(plan.prompts)
    number = {prompt: index for index, prompt in enumerate(order)}
    which = torch.tensor([number[prompt] for prompt in plan.prompts])
    return [(which == index).nonzero()[:, 0] for index in range(len(order))]
