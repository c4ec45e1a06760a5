"""Checks of the whole configuration: what every group holds, and which values fit each other.

Imports no torch, so that a mistake is told within a second. What a `_target_` names takes further settings, which its
constructor checks when it is built.
"""

import ast
import itertools
import math
import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from difflens.data.naming import OTHER
from difflens.schema import LARGEST, MOST, OURS, TAKEN, AnAttribute, Settings, validated
from difflens.store.errors import UserError
from difflens.store.exits import nearest
from difflens.store.targets import entries


def check_settings(config: Mapping[str, Any]) -> Settings:
    """Check a resolved configuration (UserError: with the key, what its value must be, and the value)."""
    settings = validated(Settings, config, "")
    for where, node in entries(config):
        if not (isinstance(node, Mapping) and isinstance(node.get("_target_"), str)):
            continue
        if node["_target_"] in OURS:
            validated(OURS[node["_target_"]], node, where)
        check_arguments(node, where)
    check_trainer(settings)
    if settings.mitigation is not None and settings.attribute is not None:
        check_study(settings)
    return settings


BESIDE: Mapping[str, frozenset[str]] = {
    "mitigation": frozenset(("name", "strength", "times", "assignment", "read", "target", "hold", "calibration")),
    "sae": frozenset(("training", "saved")),
    "attribute": frozenset(("words", "synonyms", "unless", "place", "parts")),
    "task": frozenset(("name",)),
    "metric.measures": frozenset(("label", "unit", "digits", "better", "meaning")),
}
"""Settings beside a `_target_` that are not its constructor's."""


def check_arguments(node: Mapping[str, Any], where: str) -> None:
    """Check by its source that a class of this package takes the settings beside its `_target_`; else UserError."""
    inside = ("attribute.parts", "metric.measures")
    group = next((outer.removesuffix(".parts") for outer in inside if where.startswith(outer)), where)
    # A task is given the configuration and the run: its settings are no arguments.
    known = None if group == "task" else _parameters(node["_target_"])
    if known is None:
        return
    beside = BESIDE.get(group, frozenset())
    for name in node:
        # Words such as `_partial_` are read by whoever builds the object.
        if name[:1] != "_" and name not in known | beside:
            told = [f"{where}.{each}" for each in sorted(known | beside)]
            raise UserError(
                f"nothing reads '{where}.{name}': {node['_target_'].rpartition('.')[2]} takes no {name!r}; take it "
                f"away.{nearest(f'{where}.{name}', told)}"
            )


@cache
def _parameters(target: str) -> frozenset[str] | None:
    """The names that a function or class of this package takes, None where its source alone does not tell."""
    package, *parts, name = target.split(".")
    path = Path(__file__).parent.joinpath(*parts).with_suffix(".py")
    if package != "difflens" or not path.is_file():
        return None
    for node in ast.parse(path.read_bytes()).body:
        if isinstance(node, ast.FunctionDef) and node.name == name:
            return _arguments(node)
        if isinstance(node, ast.ClassDef) and node.name == name:
            made = [each for each in node.body if isinstance(each, ast.FunctionDef) and each.name == "__init__"]
            return _arguments(made[0]) if made else None
    return None


def _arguments(function: ast.FunctionDef) -> frozenset[str] | None:
    taken = function.args
    # What it passes on to another function, its own source does not tell.
    return None if taken.kwarg else frozenset(each.arg for each in taken.args + taken.kwonlyargs)


def check_trainer(settings: Settings) -> None:
    """Check that no more processes are to compute on the processor than it has cores; else UserError."""
    devices, cores = settings.trainer.devices, max(os.cpu_count() or 1, 2)
    # A bool is an int to Python: `true` would ask for one process.
    if isinstance(devices, bool) or not isinstance(devices, int | str | list) or devices in (0, "", []):
        raise UserError(f"trainer.devices must be a whole number of at least 1, got {devices!r}.")
    where = settings.trainer.accelerator or (settings.model and settings.model.device) or "cpu"
    if where == "cpu" and isinstance(devices, int) and devices > cores:
        raise UserError(f"trainer.devices={devices} asks for more processes than this machine has cores ({cores}).")


def check_study(settings: Settings) -> None:
    """Check values that must fit each other; else UserError."""
    data, metric, method = settings.data, settings.metric, settings.mitigation
    # Images that taught a method, or chose its strength, would flatter it in every table (METHOD section 6).
    seeds = {
        "data.base_seed": data.base_seed,
        "metric.base_seed": metric.base_seed,
        "mitigation.calibration.base_seed": method.calibration.base_seed,
    }
    for (first, one), (second, other) in itertools.combinations(seeds.items(), 2):
        if one == other:
            raise UserError(
                f"{first} and {second} are both {one}; the images that teach, those that choose the strength and those that "
                "measure must be different ones: give them different seeds."
            )
    if round(data.images * data.validation) >= data.images:
        raise UserError(
            f"data.validation={data.validation} of data.images={data.images} leaves no image to train on; "
            "lower data.validation or raise data.images."
        )
    if method.name in TAKEN:
        raise UserError(f"mitigation.name={method.name} is taken by the report; choose another word.")
    found = method.calibration
    if method.strength == "auto" and not 0 < found.first <= found.largest:
        raise UserError(
            f"mitigation.calibration needs 0 < first ≤ largest, got first={found.first}, largest={found.largest}."
        )
    classes = classes_of(settings.attribute)
    read_strength(method.strength, classes)
    check_shares(method.target, classes)
    check_top(settings.attribution.top, classes)
    check_held(settings)
    check_prompts(settings)
    check_everyone(settings)


def classes_of(attribute: AnAttribute) -> tuple[str, ...]:
    """The classes of an attribute, or the combinations of its parts' classes."""
    parts = [part.classes for part in attribute.parts.values()] or [attribute.classes]
    return tuple("+".join(names) for names in itertools.product(*parts))


def read_strength(strength: Any, classes: tuple[str, ...]) -> list[float] | None:
    """A strength per class as the configuration gives it, None where it is to be calibrated.

    Raises:
        UserError: it is neither `auto`, nor a number, nor a number for each class.
    """
    if strength == "auto":
        return None
    if strength is None:
        raise UserError(
            "strength=published: no strength was published for this model and attribute; take strength=calibrated, or give "
            "mitigation.strength."
        )
    per_class = strength if isinstance(strength, Mapping) else dict.fromkeys(classes, strength)
    if set(per_class) != set(classes) or not all(
        _is_number(value) and abs(value) <= LARGEST for value in per_class.values()
    ):
        raise UserError(
            f"mitigation.strength must be auto, a number up to {LARGEST:g}, or such a number for each of {list(classes)}, "
            f"got {strength!r}.{_quote(per_class)}"
        )
    return [float(per_class[name]) for name in classes]


def check_shares(target: Any, classes: tuple[str, ...]) -> None:
    """Check that a target is a distribution of shares by class, by prompt and class, or by part and class; else UserError."""
    if target is not None and not _are_shares(target):
        raise UserError(
            "mitigation.target must give each class a share, such as {female: 0.75, male: 0.25}, or each prompt or part "
            f"such shares, or be null for equal shares; got {target!r}.{_quote(target)}"
        )
    # The commonest slips, told without torch; prompts and parts are looked up where they are known.
    shares = {name: share for name, share in (target or {}).items() if _is_number(share)}
    if unknown := [name for name in shares if name not in classes]:
        near = nearest(unknown[0], classes)
        raise UserError(f"mitigation.target: no class {unknown[0]!r}; the classes are {list(classes)}.{near}")
    left, others = 1 - sum(shares.values()), [name for name in classes if name not in shares]
    if shares and (min(shares.values()) < 0 or left < -1e-6 or (left > 1e-6) != bool(others)):
        rest = f", and leave something for {others}" if others else ""
        raise UserError(f"mitigation.target must be non-negative and sum to 1{rest}; got {shares}.")


def _are_shares(target: Any) -> bool:
    """Whether this is a mapping from texts to numbers, or to such mappings."""
    return isinstance(target, Mapping) and all(
        isinstance(name, str) and (_is_number(each) or _are_shares(each)) for name, each in target.items()
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _quote(named: Any) -> str:
    """What to do about names that YAML takes for something else."""
    strange = isinstance(named, Mapping) and any(not isinstance(name, str) for name in named)
    return " Put class names such as yes, no, on and off in quotes." if strange else ""


def check_top(top: Any, classes: tuple[str, ...]) -> None:
    """Check the number of latents per class; whether the SAE has as many is known later; else UserError."""
    counts = list(top.values()) if isinstance(top, Mapping) else [top]
    if not all(
        isinstance(count, int) and not isinstance(count, bool) and 0 <= count <= MOST for count in counts
    ) or not any(counts):
        raise UserError(f"attribution.top must be a whole number of at least 1, or one for each class, got {top!r}.")
    if isinstance(top, Mapping) and set(top) != set(classes):
        raise UserError(f"attribution.top must name each of {list(classes)}, got {list(top)}.{_quote(top)}")


def check_held(settings: Settings) -> None:
    """Check that attributes which are held are also measured; else UserError."""
    held, others = settings.mitigation.hold.attributes, settings.judge.others
    if unknown := [name for name in held if name not in (*others, *studied(settings))]:
        raise UserError(
            f"mitigation.hold.attributes names {unknown}, which judge.others does not list; hold some of {others}, or "
            "nothing: mitigation.hold.attributes=[]."
        )


def studied(settings: Settings) -> list[str]:
    """The names of the attribute under study, or of its parts."""
    attribute = settings.attribute
    return [part.name for part in attribute.parts.values()] or [attribute.name]


def check_prompts(settings: Settings) -> None:
    """Check what has a meaning with prompts alone, and what prompts must find; else UserError."""
    if settings.prompt is None:
        # Refused, not ignored: without prompts these would silently do nothing.
        needing = {
            "attribution.baseline=contrast": (settings.attribution.baseline == "contrast", "use zero"),
            "mitigation.calibration.per_prompt=true": (settings.mitigation.calibration.per_prompt, "set it to false"),
            f"data.site.branch={settings.data.site.branch}": (
                settings.data.site.branch not in (None, "none"),
                "use none",
            ),
        }
        for setting, (is_set, remedy) in needing.items():
            if is_set:
                raise UserError(
                    f"{setting} needs prompts, and there are none: {remedy}, or choose some (prompt=workplace) for a model "
                    "that takes them."
                )
        return
    for part in list(settings.attribute.parts.values()) or [settings.attribute]:
        if missing := [name for name in part.classes if not isinstance((part.words or {}).get(name), str)]:
            raise UserError(
                f"attribute.words gives no word that names {missing} of {part.name!r} in a prompt; add it to the "
                "attribute's file."
            )
        if strange := [name for name in part.synonyms if name not in (*part.classes, OTHER)]:
            raise UserError(
                f"attribute.synonyms has words for {strange}, which are no classes of {part.name!r}: it may have some for "
                f"each of {part.classes}, and for {OTHER!r}."
            )
    known = dict.fromkeys((*SUBJECTS, *settings.judge.others))
    if settings.prompt.subject not in (None, *known):
        raise UserError(
            f"prompt.subject must be null, or an attribute that a judge may know: one of {', '.join(known)}; got "
            f"{settings.prompt.subject!r}."
        )


SUBJECTS = ("profession",)
"""What shipped prompts are about, whether or not a judge reads it."""


def check_everyone(settings: Settings) -> None:
    """Check that the edits of all classes can act on one image where `assignment=everyone` asks for that; else UserError."""
    method = settings.mitigation
    if method.assignment != "everyone":
        return
    held = [name for name in method.hold.attributes if name not in studied(settings)]
    # Settings of one method: others have no such key, and nothing to be refused.
    extra = method.model_extra or {}
    needs = {
        "strength=auto": (method.strength == "auto", "give strengths, such as {female: 1, male: 1.43}"),
        f"mode={extra.get('mode')}": (extra.get("mode") in ("contrast", "margin"), "take scale, add or clamp"),
        f"suppress={extra.get('suppress')}": (extra.get("suppress") is not None, "set it to null"),
        f"hold.attributes={held}": (bool(held), "set it to []"),
    }
    for setting, (is_set, remedy) in needs.items():
        if is_set:
            raise UserError(
                f"mitigation.{setting} needs a target class for each image, and mitigation.assignment=everyone gives "
                f"none: {remedy}, or choose another assignment, such as oracle."
            )
