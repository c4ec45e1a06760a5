"""`task=calibrate`: find, per class, the smallest strength whose realised share meets the requested one."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from safetensors.torch import load_file, save_file
from torch import Tensor

from difflens.data.sampled import Shards
from difflens.methods.assignment import assign_batches, assign_by_nearness, assign_exact, assign_iid, check_rule
from difflens.methods.base import Steering
from difflens.methods.calibration import Calibration, Dose, assigned_shares, read_dose
from difflens.methods.calibration import calibrate as find_strength
from difflens.models.devices import placed
from difflens.stages import probe as probe_stage
from difflens.stages.attribution import Located
from difflens.stages.fit import fit
from difflens.stages.plans import calibration_plan, groups, originals, plan_spec
from difflens.stages.tracked import track_calibration
from difflens.store.artifacts import Artifact, fingerprint, is_finished, read_shard, write_shard
from difflens.store.progress import Progressing
from difflens.store.run import Run
from difflens.study.values import plain
from difflens.study.workbench import Workbench
from difflens.training.steering_module import sample
from difflens.vocabulary import EVERY_CLASS, NO_FACE, UNTOUCHED, Attribute, GenerationPlan

DRAWN = {"exact": assign_exact, "iid": assign_iid, "batch": assign_batches}
"""Rules that look at nothing an image shows."""


@dataclass(frozen=True)
class Prepared:
    """A method at its chosen strength, and the calibration that chose it (None for a given strength).

    `own` is its edit of the attribute under study alone, of no strength; `located` None where it asked for no attribution.
    """

    mitigation: Steering
    own: Steering
    strength: Tensor
    calibration: Calibration | None
    spec: dict[str, Any]
    located: Located | None
    attached: bool = True
    """False where the edit is asked for no times: then no image is touched, whatever the method does at strength 0."""


def calibrate(cfg: DictConfig, run: Run) -> None:
    """Run the stage alone."""
    bench = Workbench(cfg, run)
    prepared = prepare(bench)
    for name, strength in zip(slot_names(bench), prepared.strength.tolist(), strict=True):
        run.say(f"{name}: strength {strength:.3g}")


def slot_names(bench: Workbench) -> list[str]:
    """What each strength is for: a class, or a class of a prompt."""
    if not bench.per_prompt or bench.fixed_strength is not None:
        return list(bench.attribute.classes)
    return [f"{prompt}, {name}" for prompt in bench.per_prompt for name in bench.attribute.classes]


def prepare(bench: Workbench) -> Prepared:
    """The mitigation under test, its strength given by the configuration or calibrated."""
    fitted = fit(bench)
    mitigation, spec, calibration = fitted.edit, dict(fitted.spec), None
    times, neutral = bench.cfg.mitigation.times, mitigation.neutral
    # Without a dial the edit acts fully or not at all: any strength but the neutral one stands for fully.
    if not bench.method.dial:
        strength = torch.full((len(bench.attribute.classes),), neutral + 1, dtype=torch.float64)
    elif bench.fixed_strength is not None:
        # Multiples count from the strength that changes nothing, which is 1 for `scale`, not 0.
        strength = neutral + times * (bench.fixed_strength - neutral)
        spec["strength"] = strength.tolist()
    else:
        if bench.per_prompt:
            mitigation = mitigation.for_prompts(bench.per_prompt)
        artifact, calibration = _calibrated(bench, mitigation, spec)
        track_calibration(bench, slot_names(bench), calibration)
        for name, met in zip(slot_names(bench), calibration.met, strict=True):
            if not met:
                bench.run.say(
                    f"{name}: the requested share was not met at any strength tried; the one that came nearest is used"
                )
        strength = neutral + times * (calibration.strength - neutral)
        # Once is what the calibration itself says; other multiples make other images.
        spec |= {"calibration": artifact.fingerprint, **({} if times == 1 else {"times": times})}
    edit = mitigation.with_strength(strength)
    return Prepared(edit, fitted.own, strength, calibration, spec, fitted.located, attached=times != 0)


def assign(bench: Workbench, images: Tensor, plan: GenerationPlan, *, seed: int) -> tuple[Tensor, Tensor]:
    """Target class of each image under the configured rule, `UNTOUCHED` where none, and the class each shows now.

    The images of each prompt meet the target by themselves; of one that names a class they are left alone (`prompt.gate`).
    Under `oracle` so is an image without a face; no other rule looks at finished images.
    """
    # Read under every rule, for what doses and tables say of each image; `oracle` alone decides by it.
    labels, logits = bench.labels(images)
    rule = check_rule(bench.cfg.mitigation.assignment)
    targets = torch.full_like(labels, UNTOUCHED)
    if rule == "early":
        read = read_states(bench, plan, [bench.attribute])[bench.attribute.name]
    # Prompt by prompt: in a pooled quota one prompt's surplus would make up for what another lacks.
    for number, rows in enumerate(groups(plan)):
        prompt = None if plan.prompts is None else plan.prompts[int(rows[0])]
        if bench.leaves_alone(prompt):
            continue
        target = bench.goals.of(prompt)
        if rule == "everyone":
            targets[rows] = EVERY_CLASS
        elif rule == "early":
            targets[rows] = assign_by_nearness(target, read[rows].argmax(-1), read[rows])
        elif rule == "oracle":
            # It sees finished images: FD then measures the quota, so tables never lead with it (METHOD section 6).
            seen = rows[labels[rows] != NO_FACE]
            targets[seen] = assign_by_nearness(target, labels[seen], logits[seen])
        else:
            # A shuffle of its own for every prompt, or the same places of all prompts would get the same class.
            targets[rows] = DRAWN[rule](target, len(rows), seed=seed + number)
    return targets, labels


def left_alone(bench: Workbench, plan: GenerationPlan) -> dict[str, list[str]]:
    """The plan's prompts whose images no rule gives a class, for artifact specs; nothing where there are none."""
    found = [prompt for prompt in dict.fromkeys(plan.prompts or ()) if bench.leaves_alone(prompt)]
    return {"left_alone": found} if found else {}


def aimed(
    bench: Workbench, mitigation: Steering, plan: GenerationPlan, images: Tensor, targets: Tensor
) -> GenerationPlan:
    """The plan of the images that have a target class, with what the mitigation must be told of each.

    What the unedited images show of the attributes that are held is read off the model's states, or under `oracle` off
    `images`, those of the plan without an edit.
    """
    shown: dict[str, Tensor] = {}
    held = list(mitigation.held)
    if held and bench.cfg.mitigation.assignment == "oracle":
        answers = bench.answers(images)
        shown = {attribute.name: bench.classified(answers, attribute)[0] for attribute in held}
    # All that a deployed edit can know of an image are the model's own states (METHOD section 6).
    elif held:
        shown = {name: logits.argmax(-1) for name, logits in read_states(bench, plan, held).items()}
    # Images without a target are the originals bit for bit, and need no second sampling.
    return plan.towards(targets, shown).take((targets != UNTOUCHED).nonzero()[:, 0])


def read_states(bench: Workbench, plan: GenerationPlan, attributes: list[Attribute]) -> dict[str, Tensor]:
    """The probes' logits [N, C] of these attributes, by name, on the model's own states at a step of the plan's images."""
    # Under `early` where classes are read, else at the last step of an unedited trajectory beside the edited one.
    share = bench.cfg.mitigation.read if bench.cfg.mitigation.assignment == "early" else 1.0
    # A share of 1 would be the step after the last.
    wanted = min(int(share * bench.model.steps), bench.model.steps - 1)
    # A sampler with fewer steps than were studied does not come by all of them.
    step = min(bench.model.step_of.values(), key=lambda step: abs(step - wanted))
    fitted = {attribute.name: probe_stage.fit(bench, attribute)[:2] for attribute in attributes}
    spec = {
        "model": bench.model.spec(),
        "site": bench.site_spec,
        **plan_spec(plan),
        "step": step,
        "probes": {name: artifact.fingerprint for name, (artifact, _) in fitted.items()},
    }

    def make(folder: Path) -> None:
        found: dict[str, list[Tensor]] = {name: [] for name in fitted}
        with Progressing("states", len(plan.image_ids)) as display:
            for maps in bench.model.states(plan, bench.site, step):
                for name, (_, probe) in fitted.items():
                    # The logits alone are stored, less than a thousandth of the maps that they are read from.
                    found[name].append(placed(probe, maps.device)(maps.float(), step).cpu())
                display.advance(len(maps))
        save_file({name: torch.cat(parts) for name, parts in found.items()}, folder / "states.safetensors")

    with bench.run.stage("states"):
        artifact = bench.run.artifact("states", spec, make)
    return load_file(artifact.folder / "states.safetensors")


def _calibrated(bench: Workbench, mitigation: Steering, spec: dict[str, Any]) -> tuple[Artifact, Calibration]:
    settings = plain(bench.cfg.mitigation.calibration)
    plan = calibration_plan(bench)
    source, images = originals(bench, plan, stage="calibrate")
    # What aims at the shares of all images together does so with one strength.
    together = not bench.method.assigns
    full = {
        **spec,
        "originals": source.fingerprint,
        "calibration": settings,
        "seed": bench.cfg.seed,
        **({"together": True} if together else {}),
        **left_alone(bench, plan),
    }

    def make(folder: Path) -> None:
        measure, assigned = dose_meter(bench, mitigation, images, plan, folder=folder / "doses")
        # Every rank searches by itself, on the same doses, and comes to the same strength.
        found = find_strength(
            measure,
            assigned,
            neutral=mitigation.neutral,
            first=settings["first"],
            largest=settings["largest"],
            tolerance=settings["tolerance"],
            refinements=settings["refinements"],
            images=len(plan.image_ids) // max(1, len(bench.per_prompt)),
            margin=settings["margin"],
            together=together,
        )
        # No two ranks may write the same file.
        if bench.run.rank:
            return
        columns = {"dose_strength": "strength", "success": "success", "shares": "shares", "held": "held"}
        doses = {name: torch.stack([getattr(dose, field) for dose in found.doses]) for name, field in columns.items()}
        save_file({"strength": found.strength, **doses}, folder / "calibration.safetensors")
        (folder / "met.json").write_text(json.dumps(found.met))

    with bench.run.stage("calibrate"):
        artifact = bench.run.artifact("calibration", full, make, resumable=True, together=True)
    stored = load_file(artifact.folder / "calibration.safetensors")
    columns = (stored[name] for name in ("dose_strength", "success", "shares", "held"))
    doses = tuple(Dose(*row) for row in zip(*columns, strict=True))
    met = tuple(json.loads((artifact.folder / "met.json").read_text()))
    return artifact, Calibration(stored["strength"], met, doses)


def dose_meter(
    bench: Workbench, mitigation: Steering, images: Tensor, plan: GenerationPlan, *, folder: Path
) -> tuple[Callable[[Tensor], Dose], Tensor]:
    """A function from strength per class to what it does to these images, and the shares a perfect edit would make of them.

    `images` are those that the plan gave without an edit.
    What is measured, and meanwhile what is sampled for it, is kept in `folder`: an interrupted calibration goes on there.
    """
    targets, labels = assign(bench, images, plan, seed=bench.cfg.seed)
    moved, asked = targets != UNTOUCHED, aimed(bench, mitigation, plan, images, targets)
    parts = torch.zeros_like(targets)
    for number, rows in enumerate(groups(plan) if bench.per_prompt else []):
        parts[rows] = number
    classes = len(bench.attribute.classes)
    # An edit of one image knows nothing of the other classes' strengths, unless images or classes are coupled.
    alone = bench.method.assigns and not bench.method.couples and not bool((targets == EVERY_CLASS).any())
    slots = torch.where(moved, parts * classes + targets, 0)
    doses: list[tuple[Tensor, Tensor]] = []

    def sampled(strength: Tensor, shards: Shards) -> Tensor:
        after, fresh = labels.clone(), moved.clone()  # what nothing moved shows what it showed; it is not read again
        for used, shown in doses if alone else []:
            same = fresh & (used[slots] == strength[slots])
            after[same], fresh = shown[same], fresh & ~same
        trainer, plan = bench.trainer("calibrate"), asked.take(fresh[moved].nonzero()[:, 0])
        if len(plan.image_ids):
            sample(trainer, bench.model, plan, shards, edit=mitigation.with_strength(strength))
            after[fresh] = bench.labels(shards.images(plan.image_ids))[0]
        trainer.strategy.barrier()  # the first rank removes the shards when all have read them
        return after

    def recall(strength: Tensor) -> Dose:
        # By its strength: a calibration that goes on finds every dose it has measured, in whatever order it asks.
        name = f"dose-{fingerprint({'strength': strength.tolist()})}"
        known = is_finished(folder, name)
        after = read_shard(folder, name)["after"] if known else sampled(strength, Shards(folder / name))
        doses.append((strength, after))
        if not bench.run.rank:
            # Labels first, then the images go: a kill between the two costs neither.
            if not known:
                write_shard(folder, name, {"after": after})
            shutil.rmtree(folder / name, ignore_errors=True)
        dose = read_dose(
            strength,
            before=labels,
            after=after,
            targets=targets,
            groups=parts,
            classes=classes,
            # A method that aims at shares gives no image a class that it could miss.
            by_share=not bench.method.assigns,
        )
        bench.run.say(f"strength {_list(strength)}: success {_list(dose.success)}, shares {_list(dose.shares)}")
        return dose

    # No image has a class of its own here, so the shares asked for stand in for those assigned.
    if bool((targets == EVERY_CLASS).any()):
        goals = [bench.goals.of(prompt) for prompt in bench.per_prompt] or [bench.goals.pooled(plan.prompts)]
        return recall, torch.cat(goals)
    return recall, assigned_shares(targets, labels, parts, classes=classes)


def _list(values: Tensor) -> str:
    return "/".join(f"{value:.3g}" for value in values.tolist())
