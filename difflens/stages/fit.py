"""The fit: what the method under test learns from the model's own images, and the edits that it makes of it."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from difflens.methods.base import Given, LocatedFeatures, Method, Steering
from difflens.methods.holding import Holding
from difflens.stages import probe as probe_stage
from difflens.stages.activations import open_store
from difflens.stages.attribution import Located, locate_features, locate_held
from difflens.stages.plans import learning_labels
from difflens.store.artifacts import Artifact
from difflens.study.workbench import Workbench, plain
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
    located = locate_features(bench) if "attribution" in method.needs else None
    artifact, given, learnt = _learn(bench, bench.attribute, located, gated="probe" in method.needs)
    own = edit = method.edit(given, learnt)
    held: dict[str, str] = {}
    holders = []
    for attribute in bench.held():
        features = None
        if "attribution" in method.needs:
            features = locate_held(bench, attribute, top=getattr(method, "held_top", 24))
        other, others_given, others_learnt = _learn(bench, attribute, features, gated=True)
        holders.append(method.holder(others_given, others_learnt))
        held[attribute.name] = other.fingerprint
    if holders and isinstance(own, SiteEdit):
        edit = Holding(own, holders, ratio=settings.hold.ratio)
    goals = {prompt: q.tolist() for prompt, q in bench.goals.own.items()}
    spec: dict[str, Any] = {
        "fit": artifact.fingerprint,
        "assignment": settings.assignment,
        "target": bench.goals.shared.tolist(),
        **({"targets": goals} if goals else {}),
        **({"hold": {"ratio": settings.hold.ratio, "fit": held}} if held else {}),
    }
    return Fitted(edit, own, located, spec)


def _learn(
    bench: Workbench, attribute: Attribute, located: Located | None, *, gated: bool
) -> tuple[Artifact, Given, Mapping[str, Any]]:
    """What the method learns of an attribute, as an artifact, and what it was given for that."""
    activations, store = open_store(bench) if bench.method.needs else (None, None)
    probe_artifact, probe = (None, None) if not gated else probe_stage.fit(bench, attribute)[:2]
    found = None if located is None else LocatedFeatures(located.autoencoder, located.features, located.statistics)
    given = Given(
        attribute,
        bench.site,
        bench.model.steps,
        maps=None if store is None else store.at_step,
        labels=None if store is None else partial(learning_labels, bench, store, attribute),
        probe=probe,
        located=found,
        model=bench.model,
        prompts=() if bench.prompts is None else (*bench.prompts.studied, *bench.prompts.unseen),
        words=bench.words if attribute == bench.attribute else (),
        classify=lambda images: bench.labels(images, attribute)[0],
    )
    spec = {
        "method": described(bench.method, plain(bench.method_settings)),
        **bench.attribute_spec(attribute),
        **bench.label_spec(),
        **({} if activations is None else {"activations": activations.fingerprint}),
        "probe": None if probe_artifact is None else probe_artifact.fingerprint,
        "statistics": None if located is None else located.artifact.fingerprint,
        "latents": None if located is None else {name: list(group) for name, group in located.features.latents.items()},
    }

    def make(folder: Path) -> None:
        save_file(
            {name: value.contiguous() for name, value in bench.method.learn(given).items()}, folder / "fit.safetensors"
        )

    with bench.run.stage("fit"):
        artifact = bench.run.artifact("fit", spec, make)
    return artifact, given, load_file(artifact.folder / "fit.safetensors")


def described(method: Method, settings: Mapping[str, Any]) -> dict[str, Any]:
    """A method's class and its settings, from which an equal one can be built."""
    return {"class": f"{type(method).__module__}.{type(method).__qualname__}", "settings": dict(settings)}
