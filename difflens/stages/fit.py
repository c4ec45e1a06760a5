"""The fit: what the method under test learns from the model's own images, and the edits that it makes of it."""

from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from difflens.data.prompts import fill
from difflens.methods.base import Given, LocatedFeatures, SiteEdit, Steering, Window
from difflens.methods.holding import Holding, NullSpace
from difflens.stages import probe as probe_stage
from difflens.stages.activations import collect
from difflens.stages.attribution import Located, locate_features, locate_held
from difflens.stages.plans import learning_labels
from difflens.store.artifacts import Artifact
from difflens.study.workbench import Workbench
from difflens.vocabulary import Attribute


@dataclass(frozen=True)
class Fitted:
    """The method, fitted: the edit it makes, of no strength yet.

    Attributes:
        edit: under test, with what it holds beside it.
        own: the edit of the attribute under study alone.
        located: what the attribution stage found, None where the method did not ask for it.
        spec: what decides the edit apart from its strength, for artifact specs.
    """

    edit: Steering
    own: Steering
    located: Located | None
    spec: dict[str, Any]


def fit(bench: Workbench) -> Fitted:
    """Fit the method on the attribute under study, and on each attribute that it is to hold."""
    return bench.once("fit", lambda: _fit(bench))


def _fit(bench: Workbench) -> Fitted:
    method, settings = bench.method, bench.cfg.mitigation
    early = settings.assignment == "early"
    located = locate_features(bench) if "attribution" in method.needs else None
    artifact, given, learnt = _learn(bench, bench.attribute, located, gated="probe" in method.needs)
    own = method.edit(given, learnt)
    # The classes read must be those of an unedited trajectory, so no edit may begin before the read step.
    if early:
        own = beginning_at(own, settings.read)
    edit = own
    held: dict[str, str] = {}
    holders = []
    if settings.hold.by == "null_space":
        edit, held = _in_null_space(bench, own)
    for attribute in bench.held() if settings.hold.by == "contrast" else ():
        features = None
        if "attribution" in method.needs:
            features = locate_held(bench, attribute, top=getattr(method, "held_top", 24))
        # Gated whatever the method's own edit is: a holder is to act only while its attribute drifts.
        other, others_given, others_learnt = _learn(bench, attribute, features, gated=True)
        holders.append(method.holder(others_given, others_learnt))
        held[attribute.name] = other.fingerprint
    if holders and isinstance(own, SiteEdit):
        edit = Holding(own, holders, ratio=settings.hold.ratio)
    # What is asked for decides who is moved, and where a calibration ends.
    target = bench.goals.shared.tolist()
    spec: dict[str, Any] = {"fit": artifact.fingerprint, "assignment": settings.assignment, "target": target}
    # Who is moved is read by the probe, also for a method that itself asks for none.
    if early:
        spec |= {"read": settings.read, "reader": probe_stage.fit(bench)[0].fingerprint}
    if bench.goals.own:
        spec["targets"] = {prompt: q.tolist() for prompt, q in bench.goals.own.items()}
    if held:
        spec["hold"] = {"by": settings.hold.by, "ratio": settings.hold.ratio, "fit": held}
    return Fitted(edit, own, located, spec)


def beginning_at(edit: Steering, share: float) -> Steering:
    """The edit, of which nothing is made before this share of the steps.

    Raises:
        ValueError: it is no edit of activations, or its window ends before.
    """
    if not isinstance(edit, SiteEdit):
        raise ValueError(
            f"mitigation.assignment=early begins in the middle of the steps, which {type(edit).__name__} cannot; use exact."
        )
    if edit.window.stop <= share:
        raise ValueError(
            f"mitigation.window ends at {edit.window.stop:g}, before classes are read (mitigation.read={share:g})."
        )
    other = copy(edit)
    other.window = Window(max(edit.window.start, share), edit.window.stop)
    return other


def _in_null_space(bench: Workbench, own: Steering) -> tuple[Steering, dict[str, str]]:
    """The edit without what the held attributes' probes see of it, and the fingerprint of each probe.

    Raises:
        ValueError: the method edits no activations.
    """
    fitted = {attribute.name: probe_stage.fit(bench, attribute)[:2] for attribute in bench.held()}
    if not fitted:
        return own, {}
    if not isinstance(own, SiteEdit):
        raise ValueError(
            f"{type(bench.method).__name__} edits no activations and holds nothing; set mitigation.hold.attributes=[]."
        )
    edit = NullSpace(own, [probe for _, probe in fitted.values()])
    return edit, {name: artifact.fingerprint for name, (artifact, _) in fitted.items()}


def _asked(bench: Workbench) -> Tensor:
    """The shares asked for [C], or [P, C] where studied prompts have shares of their own."""
    if bench.prompts is None or not bench.goals.own:
        return bench.goals.shared
    return torch.stack([bench.goals.of(fill(text)) for text in bench.prompts.studied])


def _learn(
    bench: Workbench, attribute: Attribute, located: Located | None, *, gated: bool
) -> tuple[Artifact, Given, Mapping[str, Any]]:
    """What the method learns of an attribute, as an artifact, and what it was given for that."""
    activations, store = collect(bench) if bench.method.needs else (None, None)
    probe_artifact, probe = probe_stage.fit(bench, attribute)[:2] if gated else (None, None)
    found = None if located is None else LocatedFeatures(located.autoencoder, located.features, located.statistics)
    given = Given(
        attribute,
        bench.site,
        bench.model.steps,
        # Functions: one step's maps are in memory at a time, and the judge labels only for a method that asks.
        maps=None if store is None else store.at_step,
        labels=None if store is None else partial(learning_labels, bench, store, attribute),
        probe=probe,
        located=found,
        model=bench.model,
        prompts=() if bench.prompts is None else tuple(bench.prompts.studied),
        unseen=() if bench.prompts is None else tuple(bench.prompts.unseen),
        naming=() if bench.prompts is None else tuple(bench.prompts.naming),
        worded=() if bench.prompts is None else bench.prompts.sentences(attribute.name),
        # Target and words are those of the attribute under study; one that is held has neither.
        target=_asked(bench) if attribute == bench.attribute else None,
        words=bench.words if attribute == bench.attribute else (),
        classify=lambda images: bench.labels(images, attribute)[0],
        clip=lambda: bench.clip,
        embeddings=None if store is None else lambda: bench.embedded(store.images),
    )
    kind = type(bench.method)
    spec = {
        "method": {"class": f"{kind.__module__}.{kind.__qualname__}", "settings": bench.method_settings},
        # A method may learn from the model itself, with no activations between.
        "model": bench.model.spec(),
        "site": bench.site_spec,
        "prompts": [list(given.prompts), list(given.unseen)],
        "target": None if given.target is None else given.target.tolist(),
        "words": list(given.words),
        **bench.attribute_spec(attribute),
        **bench.label_spec(),
        **({"clip": bench.clip.fingerprint} if bench.method.reads_clip else {}),
        **({} if activations is None else {"activations": activations.fingerprint}),
        "probe": None if probe_artifact is None else probe_artifact.fingerprint,
        "statistics": None if located is None else located.artifact.fingerprint,
        "latents": None if located is None else {name: list(group) for name, group in located.features.latents.items()},
    }

    def make(folder: Path) -> None:
        learnt = {name: value.contiguous() for name, value in bench.method.learn(given).items()}
        save_file(learnt, folder / "fit.safetensors")

    with bench.run.stage("fit"):
        artifact = bench.run.artifact("fit", spec, make)
    return artifact, given, load_file(artifact.folder / "fit.safetensors")
