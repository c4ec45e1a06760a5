"""The edit that the configuration describes, built from what the attribution stage located."""

from collections.abc import Sequence
from typing import Any

import torch
from hydra.utils import instantiate

from difflens.methods.base import Mitigation
from difflens.methods.everyone import EveryClassMitigation
from difflens.methods.holding import HoldingMitigation
from difflens.methods.sae_features import SaeFeatureMitigation
from difflens.stages import probe as probe_task
from difflens.stages.attribution import Located
from difflens.study.workbench import Workbench, plain


def build_mitigation(bench: Workbench, located: Located, held: Sequence[Located]) -> Mitigation:
    """The mitigation the configuration describes, of no strength yet."""
    edit = feature_edit(bench, located)
    if bench.cfg.mitigation.assignment == "everyone":
        return EveryClassMitigation(edit)
    if not held:
        return edit
    holders = [_holder(bench, other) for other in held]
    return HoldingMitigation(edit, holders, ratio=bench.cfg.mitigation.hold.ratio)


def feature_edit(bench: Workbench, located: Located) -> SaeFeatureMitigation:
    """The edit of the attribute under study alone, of no strength yet."""
    settings, statistics = bench.cfg.mitigation, located.statistics
    if settings.unit == "code":
        statistics = statistics._replace(level=torch.ones_like(statistics.level))
    return SaeFeatureMitigation(
        located.autoencoder,
        located.features,
        statistics,
        site=bench.site,
        mode=settings.mode,
        strength=torch.zeros(len(bench.attribute.classes)),
        places=settings.places,
        suppress=settings.suppress,
        update=settings["update"],
        window=instantiate(settings.window),
        gate=probe_task.fit(bench)[1] if settings.gate else None,
        protocol=settings.protocol,
    )


def _holder(bench: Workbench, located: Located) -> SaeFeatureMitigation:
    """The edit that moves an image back to its class of an attribute that is held."""
    attribute = located.features.attribute
    return SaeFeatureMitigation(
        located.autoencoder,
        located.features,
        located.statistics,
        site=bench.site,
        mode="contrast",
        strength=torch.ones(len(attribute.classes)),
        gate=probe_task.fit(bench, attribute)[1],
    )


def mitigation_spec(bench: Workbench, located: Located, held: Sequence[Located]) -> dict[str, Any]:
    """What decides the edit apart from its strength, for artifact specs."""
    settings = plain(bench.cfg.mitigation)
    kept = {
        key: settings[key]
        for key in ("mode", "places", "suppress", "update", "window", "assignment", "gate", "protocol")
    }
    if settings["unit"] != "level":
        kept["unit"] = settings["unit"]
    latents = {name: list(group) for name, group in located.features.latents.items()}
    attribution = located.artifact.fingerprint
    own = {prompt: q.tolist() for prompt, q in bench.goals.own.items()}
    goals = {"target": bench.goals.shared.tolist(), **({"targets": own} if own else {})}
    spec = {"mitigation": kept, **goals, "attribution": attribution, "latents": latents}
    holding = {other.features.attribute.name: other.artifact.fingerprint for other in held}
    return {**spec, "hold": {"ratio": settings["hold"]["ratio"], "attribution": holding}} if held else spec
