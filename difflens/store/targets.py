"""What each slot of the configuration may be filled with, and how it is built.

A `_target_` can name anything that Python can import, and runs it. So every slot has an exact list of this package's classes
and factories, compared as text before anything is imported; a prefix would be no fence, since modules import modules
(`difflens.….shutil.copyfile`), nor is a class, whose methods run things too (`DiffusionPipeline.from_pretrained`).
"""

import inspect
import os
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from importlib import import_module
from typing import Any, NamedTuple, TypeVar

from difflens.store.errors import BuildError, UserError

EXTRA_VARIABLE = "DIFFLENS_ALLOW_TARGETS"
"""Environment variable with packages of one's own, comma-separated, whose classes are let into slots of their seam."""

Kind = TypeVar("Kind")


class Slot(NamedTuple):
    """What may stand in one place of the configuration: names of this package, and the seam of classes of one's own.

    An empty seam lets in any function or class of one's own package, None none of them.
    """

    allowed: tuple[str, ...]
    seam: str | None = None


def _all(module: str, *names: str) -> tuple[str, ...]:
    return tuple(f"difflens.{module}.{name}" for name in names)


FACES = Slot(
    _all("judges.faces", "DlibFaces", "FixedBox", "HaarFaces", "WholeImage", "YunetFaces"),
    "difflens.judges.faces.FaceCropper",
)
JUDGE = Slot(
    (
        *_all("judges", "fairface.load_fairface", "onnx.OnnxJudge", "together.Together", "zero_shot.ZeroShotJudge"),
        "difflens.miniature.judges.load_judge",
    ),
    "difflens.judges.protocol.Judge",
)
EXTRACTOR = Slot(
    (
        *_all("judges", "clip.load_open_clip", "inception.PhotographFeatures", "inception.load_inception"),
        "difflens.judges.onnx.OnnxFeatures",
        "difflens.miniature.clip.load_clip",
    ),
    "difflens.judges.protocol.FeatureExtractor",
)
ATTRIBUTE = Slot(_all("vocabulary", "Attribute"))
POPULATION = Slot(_all("miniature.population", "named_population"))

SLOTS: Mapping[str, Slot] = {
    "task": Slot(
        (
            "difflens.pipeline.pipeline",
            *_all("stages", "activations.activations", "sae.sae", "probe.probe", "attribution.attribution"),
            *_all("stages", "calibrate.calibrate", "generate.steer", "present.report"),
            *_all("tasks", "ablation.ablation", "aggregate.aggregate", "convert.convert", "dashboard.dashboard"),
            *_all("tasks", "audit.audit", "doctor.doctor", "dose.dose", "evaluate.evaluate", "evolution.evolution"),
            *_all("tasks", "explore.explore", "localise.localise", "miniature.miniature", "separation.separation_task"),
            *_all("tasks", "transfer.transfer"),
        ),
        "",
    ),
    "model": Slot(
        _all("models.load", "load_unconditional", "load_text_to_image"), "difflens.models.model.DiffusionModel"
    ),
    "attribute": ATTRIBUTE,
    "attribute.parts.*": ATTRIBUTE,
    "prompt": Slot(_all("data.prompts", "PromptSet", "crossed"), "difflens.data.prompts.PromptSet"),
    "data.site": Slot(_all("vocabulary", "Site")),
    "sae": Slot(
        (
            *_all("sae", "topk.TopKAutoencoder", "batch_topk.BatchTopKAutoencoder"),
            *_all("sae", "matryoshka.MatryoshkaAutoencoder", "jumprelu.JumpReLUAutoencoder", "neurons.Neurons"),
        ),
        "difflens.sae.base.SparseAutoencoder",
    ),
    "sae.training": Slot(_all("training.sae_module", "SaeModule"), "difflens.training.sae_module.SaeModule"),
    "probe": Slot(_all("probes", "linear.fit_linear_probe", "mlp.fit_mlp_probe"), ""),
    "attribution.scorer": Slot(
        (
            *_all("attribution.scorers", "MeanActivation", "RandomScores"),
            *_all("attribution.scorers", "IntegratedGradients", "GradientTimesActivation"),
            *_all("attribution.scorers", "OfficialIntegratedGradients", "GradientTimesDistance"),
        ),
        "difflens.attribution.scorers.Scorer",
    ),
    "mitigation": Slot(
        (
            *_all("methods", "difflens.DiffLens", "h_direction.HDirection", "h_distribution.HDistribution"),
            *_all("methods", "prompt.PromptIntervention", "attribute_switching.AttributeSwitching"),
            *_all("methods", "redraw.Redraw", "sega.SemanticGuidance", "uce.UnifiedConceptEditing"),
            *_all("methods", "icm.AttentionSteering", "equisteer.EquiSteer", "self_discovering.SelfDiscovering"),
            *_all("methods", "asyrp.Asyrp", "sliders.ConceptSliders", "debias_anything.DebiasAnything"),
        ),
        "difflens.methods.base.Method",
    ),
    "mitigation.window": Slot(_all("methods.base", "Window"), "difflens.methods.base.Window"),
    "judge.labels": JUDGE,
    "judge.labels.faces": FACES,
    "judge.labels.clip": EXTRACTOR,
    "judge.labels.judges.*": JUDGE,
    "judge.scores": JUDGE,
    "judge.scores.faces": FACES,
    "judge.scores.clip": EXTRACTOR,
    "judge.scores.judges.*": JUDGE,
    "metric.extractor": EXTRACTOR,
    "metric.extractor.faces": FACES,
    "metric.extractor.features": EXTRACTOR,
    "metric.extractor.embeddings": EXTRACTOR,
    "metric.measures.*": Slot(_all("metrics.pixels", "PixelChange"), "torchmetrics.Metric"),
    "metric.measures.*.where": Slot(_all("miniature.faces", "surroundings"), ""),
    "metric.reference": Slot(
        (
            "difflens.data.folder.scan_folder",
            *_all("miniature", "photographs.load_sheet", "reference.render_population"),
        ),
        "",
    ),
    "metric.reference.population": POPULATION,
    "logger": Slot(_all("training", "loggers.csv_tracker", "loggers.tensorboard_tracker", "loggers.wandb_tracker"), ""),
    "task.scheduler": Slot(("diffusers.DDIMScheduler",)),
    # Hydra's own objects, which it builds before any task begins.
    "hydra.callbacks.*": Slot(_all("cli.sweeps", "SweepCallback")),
    "hydra.launcher": Slot(
        (
            "hydra._internal.core_plugins.basic_launcher.BasicLauncher",
            "hydra_plugins.hydra_joblib_launcher.joblib_launcher.JoblibLauncher",
            "hydra_plugins.hydra_submitit_launcher.submitit_launcher.LocalLauncher",
            "hydra_plugins.hydra_submitit_launcher.submitit_launcher.SlurmLauncher",
        )
    ),
    "hydra.sweeper": Slot(("hydra._internal.core_plugins.basic_sweeper.BasicSweeper",)),
}
"""By dotted key, `*` for any one name: the only places where a `_target_` may stand."""

own_packages: tuple[str, ...] = ()
"""Packages of one's own, as the environment named them when the process began."""


def read_environment() -> None:
    """Take the packages of one's own from the environment; called once, before a configuration could change it."""
    global own_packages
    parts = os.environ.get(EXTRA_VARIABLE, "").split(",")
    own_packages = tuple(part.strip().rstrip(".") for part in parts if part.strip())


# Before anything is composed: Hydra can set variables of the environment from a configuration.
read_environment()


def saved_class(dotted: str, kind: type[Kind]) -> type[Kind]:
    """The class that a saved object names: one of a kind, of this package or of one's own; else UserError."""
    module, _, name = dotted.rpartition(".")
    # The name comes out of a file, and importing a module already runs it: its package is checked first.
    known = dotted.startswith(("difflens.", *(f"{package}." for package in own_packages)))
    found = getattr(import_module(module), name, None) if known else None
    if not (isinstance(found, type) and issubclass(found, kind)):
        raise UserError(
            f"the saved class {dotted!r} is no {kind.__name__} of difflens; to load one of your own package, set "
            f"{EXTRA_VARIABLE}=<package>."
        )
    return found


def slot_of(key: str) -> Slot | None:
    """The slot at a dotted key, None where no object may stand."""
    parts = key.split(".")
    for pattern, slot in SLOTS.items():
        wanted = pattern.split(".")
        if len(wanted) == len(parts) and all(one in ("*", part) for one, part in zip(wanted, parts, strict=True)):
            return slot
    return None


def entries(node: Any, where: str = "") -> Iterator[tuple[str, Any]]:
    """Every group, list and value inside a resolved configuration with its dotted key, what holds it first."""
    inside = node.items() if isinstance(node, Mapping) else enumerate(node) if isinstance(node, list | tuple) else ()
    for name, value in inside:
        key = f"{where}.{name}".lstrip(".")
        yield key, value
        yield from entries(value, key)


def find_targets(config: Any) -> Iterator[tuple[str, Any]]:
    """Every `_target_` of a resolved configuration with the dotted key of the group that holds it."""
    for key, value in (("", config), *entries(config)):
        if isinstance(value, Mapping) and "_target_" in value:
            yield key, value["_target_"]


def check_targets(config: Any) -> None:
    """Check every `_target_` of a resolved configuration, else UserError; nothing is imported."""
    for key, target in find_targets(config):
        check_target(target, key)


def check_target(target: Any, key: str) -> None:
    """Check that the slot at a dotted key may be filled with a `_target_`, as far as its name tells; else UserError."""
    slot = slot_of(key)
    if slot is None:
        raise UserError(f"_target_ of {key or 'the top level'} is {target!r}; no object may stand there: take it away.")
    if target not in slot.allowed and not (slot.seam is not None and _is_own(target)):
        own = f"to use a class of your own, set {EXTRA_VARIABLE}=<package>; else " if slot.seam is not None else ""
        # The list comes last: it may be longer than a line that is shown.
        raise UserError(
            f"_target_ of {key} is {target!r}; {own}it must be one of {', '.join(slot.allowed) or 'yours'}."
        )


def _is_own(target: Any) -> bool:
    # No private parts: what a package hides behind an underscore is not offered by it.
    named = isinstance(target, str) and all(part.isidentifier() and part[0] != "_" for part in target.split("."))
    return named and target.startswith(tuple(f"{package}." for package in own_packages))


def resolve_target(target: Any, key: str) -> Callable[..., Any]:
    """The class or function that fills a slot, which must itself come from the package that was let in; else UserError."""
    check_target(target, key)
    module, _, name = target.rpartition(".")
    try:
        found = getattr(import_module(module), name, None)
    except ModuleNotFoundError as error:
        # A missing module that the named one imports is another fault, and keeps its own message.
        if not f"{target}.".startswith(f"{error.name}."):
            raise
        found = None
    # Builtins such as `os.system` are neither, under whatever name a package has imported them.
    if not (inspect.isclass(found) or inspect.isfunction(found)):
        raise UserError(f"_target_ of {key} is {target!r}, but there is no class or function {name!r} in {module!r}.")
    home = f"{found.__module__}."
    if _is_own(target) and not home.startswith(tuple(f"{package}." for package in own_packages)):
        raise UserError(
            f"_target_ of {key} is {target!r}, which comes from {found.__module__!r}, not from your package."
        )
    if inspect.isclass(found) and _is_own(target):
        _check_seam(found, key, target)
    return found


def _check_seam(made: Any, key: str, target: str) -> None:
    slot = slot_of(key)
    if slot is None or not slot.seam:
        return
    module, _, name = slot.seam.rpartition(".")
    seam = getattr(import_module(module), name)
    # Of a protocol with attributes only objects can be told, not their classes.
    unknowable = inspect.isclass(made) and getattr(seam, "_is_protocol", False)
    fits = unknowable or (issubclass(made, seam) if inspect.isclass(made) else isinstance(made, seam))
    if not fits:
        raise UserError(f"{key}._target_={target!r} is no {slot.seam}; name a class of it.")


def build(described: Mapping[str, Any], key: str, *args: Any, **more: Any) -> Any:
    """The object that a part of the configuration describes, built after the objects inside it.

    Its dotted key decides what may stand there. With `_partial_: true` a call makes the object, which is given what the
    configuration does not know. Further keyword arguments win over those described.

    Raises:
        BuildError: its class does not take what is described, or cannot be had.
        UserError: the slot may not be filled with it.
    """
    target = described["_target_"]
    make = resolve_target(target, key)
    settings = {name: _inside(value, f"{key}.{name}") for name, value in described.items() if name[:1] != "_"}

    def made(*late: Any, **later: Any) -> Any:
        # Its class may have been let in unseen, by a function or as a protocol; the object shows what it is.
        found = make(*late, **{**settings, **later})
        if _is_own(target):
            _check_seam(found, key, target)
        return found

    with_more = partial(made, *args, **more)
    if described.get("_partial_"):
        # Looked for now: the call that would complain may come hours later, inside a stage.
        unknown = _refused(make, {**settings, **more})
        if unknown:
            raise BuildError(key, target) from TypeError(f"{make.__name__} takes no {unknown!r}")
        return with_more
    try:
        return with_more()
    except (BuildError, UserError):
        raise
    except Exception as error:
        raise BuildError(key, target) from error


def _inside(value: Any, key: str) -> Any:
    if isinstance(value, Mapping):
        if "_target_" in value:
            return build(value, key)
        return {name: _inside(each, f"{key}.{name}") for name, each in value.items()}
    return [_inside(each, f"{key}.{i}") for i, each in enumerate(value)] if isinstance(value, list) else value


def _refused(make: Callable[..., Any], settings: Mapping[str, Any]) -> str | None:
    """The first setting that a class or function does not take, None where it takes all of them."""
    parameters = inspect.signature(make).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return None
    return next((name for name in settings if name not in parameters), None)
