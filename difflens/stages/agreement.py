"""What the two judges owe each other: the one that labels decides which images are edited, the other one scores them."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from difflens.judges.protocol import faces_found
from difflens.stages.reading import Reading, Study
from difflens.vocabulary import NO_FACE

if TYPE_CHECKING:
    from difflens.stages.generate import Steered


def agreement(reading: Reading, study: Study, steered: "Steered") -> dict[str, Any]:
    """The share of the unedited images in which both judges see the same class, of all and by prompt.

    Where the judges differ on images that no edit touches, no strength brings the measured shares to the target.

    Args:
        reading: what the scoring judge read off the images without mitigation.
        study: what is measured.
        steered: has the labelling judge's classes.

    Returns:
        `judges_agree`, None where no image has a face for both, and `judges_agree_by_prompt` if there are prompts.
    """
    logits = reading.logits(study.judge, study.attribute)
    known = faces_found(logits) & (steered.labels != NO_FACE)
    same = logits.argmax(-1) == steered.labels
    found: dict[str, Any] = {"judges_agree": _share(same[known])}
    if steered.plan.prompts:
        rows = {prompt: torch.tensor([p == prompt for p in steered.plan.prompts]) for prompt in steered.plan.prompts}
        found["judges_agree_by_prompt"] = {prompt: _share(same[known & own]) for prompt, own in rows.items()}
    return found


def arrival(reading: Reading, study: Study, steered: "Steered") -> dict[str, float | None]:
    """`reached`, the share of the images pushed towards a class that show it to the scoring judge; None if none was."""
    logits = reading.logits(study.judge, study.attribute)
    pushed = faces_found(logits) & (steered.targets >= 0)
    return {"reached": _share((logits.argmax(-1) == steered.targets)[pushed])}


def _share(hits: Tensor) -> float | None:
    return float(hits.double().mean()) if len(hits) else None
