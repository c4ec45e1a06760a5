"""What the configuration may hold: the keys, types, ranges and words of every group, and which values fit each other.

Imports no torch, so that a mistake is told within a second. What a `_target_` names takes further settings, which its
constructor checks when it is built.
"""

import ast
import itertools
import math
import os
from collections.abc import Iterator, Mapping
from functools import cache
from inspect import isclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails, PydanticCustomError

from difflens.data.naming import OTHER
from difflens.store.errors import UserError
from difflens.store.exits import nearest

MOST = 10**7
"""A larger count of anything is a slip of the keyboard: it would run out of disk, memory or years."""

LARGEST = 1e6
"""The same of a number, such as a strength in whatever unit."""

TAKEN = ("original", "features")
"""Names of the report's own folders of pictures, and of the row of unmitigated images."""


def whole(least: int = 1, most: int = MOST, **more: Any) -> Any:
    """A whole number in a range."""
    words = f"a whole number of at least {least}" + (f" and at most {most}" if most != MOST else "")
    return Field(ge=least, le=most, description=words, **more)


def number(words: str, **bounds: Any) -> Any:
    """A finite number, described for the message."""
    return Field(description=words, **{"le": LARGEST, **bounds})


def seed() -> Any:
    """Torch's generator on a processor keeps 32 bits: two larger seeds could be one."""
    return whole(0, 2**32 - 1)


def positive(**more: Any) -> Any:
    """A number above 0."""
    return number("a number above 0", gt=0, **more)


def not_negative(**more: Any) -> Any:
    """A number of at least 0."""
    return number("a number of at least 0", ge=0, **more)


def folder() -> Any:
    """The name of a folder, or none."""
    return Field(None, description="one folder (measure several one after the other with -m images=<folder>,<folder>)")


def share() -> Any:
    """A part of a whole, neither nothing nor all of it."""
    return number("a number above 0 and below 1", gt=0, lt=1)


def part() -> Any:
    """A part of a whole, or nothing, or all of it."""
    return number("a number from 0 to 1", ge=0, le=1)


def _distinct(values: list[Any]) -> list[Any]:
    if len(set(map(str, values))) < len(values):
        raise PydanticCustomError("repeats", "a list without repeats")
    return values


def words(*, least: int = 0) -> Any:
    """A list of distinct names."""
    return Field(min_length=least, description="a list without repeats" + (" that names at least one" if least else ""))


ABSENT: Any = Field(default=None)
"""A group that the configuration of a task of one's own may lack; none may be null."""

GROUP: Any = Field(min_length=1, description="a group of settings; leave it as the configuration has it")
Distinct = Annotated[list[Any], AfterValidator(_distinct)]


class Group(BaseModel):
    """A group whose keys are all listed."""

    # Strict: pydantic would take `true` for a count of 1, and the word `off` for a switch.
    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)


class Open(BaseModel):
    """A group with a `_target_`: keys that all its classes share, or that many have, and others."""

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)


class Localise(Group):
    """`task=localise`."""

    images: int = whole(8)
    base_seed: int = seed()
    pool: int = whole(1, 64)
    sites: int = whole()
    tried: int = whole(2)
    windows: list[Annotated[list[Annotated[float, part()]], Field(min_length=2, max_length=2)]] = Field(
        min_length=1, description="a list of pairs of shares of the steps: start and stop"
    )


class Paths(Group):
    """Where things lie."""

    outputs: str
    artifacts: str
    weights: str


class Judge(Group):
    """Who labels, and who scores."""

    labels: dict[str, Any] = Field(default_factory=dict, description=GROUP.description)
    """Not needed where images are only scored."""
    scores: dict[str, Any] = GROUP
    others: Distinct = words()
    recalls: dict[str, dict[str, float]] = Field(
        default_factory=dict, description="attribute → class → a number above 0 and not above 1"
    )
    """Of the scoring judge, where they are known."""


class Unless(Group):
    """Where an attribute's words name nobody's class."""

    phrases: list[str] = Field(default_factory=list, description="a list of texts")
    followed_by: list[str] = Field(default_factory=list, description="a list of texts")


class AnAttribute(Open):
    """The bias under study, or the product of `parts`."""

    name: str
    classes: list[str] = Field(
        default_factory=list, description="a list of words; put words such as yes and no in quotes"
    )
    words: dict[str, Any] | None = None
    synonyms: dict[str, list[str]] = Field(
        default_factory=dict, description="a list of words for each class, or for other"
    )
    unless: Unless = Unless()
    parts: dict[str, "AnAttribute"] = Field(default_factory=dict)


class Site(Open):
    """Where activations are read and edited."""

    module: str
    tensor: Literal["output", "input", "update"]
    branch: Literal["none", "cond", "uncond", "both"] | None


class Data(Group):
    """The model's own images."""

    source: Literal["shards", "online"]
    site: Site = Field(description="auto, or a group of settings such as data.site.module=mid_block")
    images: int = whole(2)
    base_seed: int = seed()
    validation: float = share()
    buffer: int = whole(most=10**9)


class Training(Open):
    """How an SAE is trained."""

    tokens: int = whole(most=10**12, default=1)
    batch: int = whole(default=1)
    lr: float | None = positive(default=None)
    warmup: int = whole(0, default=0)
    decay: float = number("a number from 0 to 1", ge=0, le=1, default=0)
    aux_coefficient: float = not_negative(default=0)
    k_aux: int | None = whole(default=None)


class Sae(Open):
    """The sparse autoencoder."""

    expansion: float = positive(default=1)
    k: int = whole(default=1)
    centre: bool = True
    saved: str | None = None
    training: Training


class Probe(Open):
    """The classifier of activations."""

    l2: float = not_negative(default=0)
    iterations: int = whole(default=1)
    hidden: int = whole(default=1)
    held_out: float = number("a number above 0 and below 1", gt=0, lt=1, default=0.2)


class Attribution(Group):
    """Which latents drive the probe."""

    scorer: dict[str, Any] = GROUP
    baseline: Literal["zero", "contrast"]
    top: Any
    rank: Literal["contrast", "plain"]
    temperature: float = positive()
    specificity: float = not_negative()
    within_window: bool
    images_per_class: int = whole()
    statistics_images: int = whole()


class Hold(Group):
    """Edits that keep other attributes."""

    attributes: Distinct = words()
    by: Literal["null_space", "contrast"]
    ratio: float = not_negative()


class Calibration(Group):
    """How the strength is found."""

    per_prompt: bool
    images: int = whole()
    base_seed: int = seed()
    first: float = number("a number")
    largest: float = number("a number")
    tolerance: float = not_negative()
    refinements: int = whole(0, 100)
    margin: float = number("a number of at least 1", ge=1)


class Mitigation(Open):
    """What every method shares: who is moved, how strongly, and what is held."""

    # It names a folder of the run's pictures.
    name: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$", description=f"a word of letters, digits, '_' and '-' other than {TAKEN}"
    )
    # Any, as targets and latents per class are: a word, a number or a mapping. Functions below say in a sentence
    # what is wrong with it, where a union would list all that it is not.
    strength: Any
    times: float = not_negative()
    # Repeated here, since the code that owns these words imports torch; a test compares the two.
    assignment: Literal["exact", "early", "oracle", "iid", "batch", "everyone"]
    read: float = share()
    target: Any
    hold: Hold
    calibration: Calibration
    # Of methods that have one; its own class checks what stands in it.
    window: dict[str, Any] | None = Field(
        None, description="auto, or a group of settings such as mitigation.window.start=0.2"
    )


class MethodHere(Open):
    """What the methods of this package share."""

    gate: bool
    update: Literal["asymmetric", "symmetric"]
    focus: float = Field(0.0, ge=0, lt=1, description="a number of at least 0 and below 1")
    release: float = Field(1.0, ge=0, le=1, description="a number from 0 to 1")


class FeatureMethod(MethodHere):
    """`mitigation=difflens`."""

    mode: Literal["contrast", "margin", "scale", "add", "clamp"]
    unit: Literal["level", "code"]
    places: Literal["everywhere", "fired"]
    protocol: Literal["difflens", "official"]
    suppress: float | None = number("a number", default=None)
    held_top: int = whole()


class Metric(Group):
    """What is measured, and on what."""

    images: int = whole(2)
    base_seed: int = seed()
    named: int = whole()
    extractor: dict[str, Any] = GROUP
    reference_name: str
    reference: dict[str, Any] = GROUP
    kid_subset: int = whole(2, 10**6)
    cards: int = whole(1, 1000)
    measures: dict[str, Any] = Field(default_factory=dict)


class Model(Open):
    """The model under study."""

    name: str
    steps: int = whole(1, 10**4, default=1)
    micro_batch: int = whole(1, 4096, default=1)
    eta: float = number("a number from 0 to 1", ge=0, le=1, default=0)
    guidance: float = not_negative(default=0)
    negative_prompt: str | None = None
    device: str | None = None


class Prompt(Open):
    """The prompts of a study."""

    subject: str | None = None
    gate: bool = True


class Trainer(Group):
    """Where Lightning computes; what would change numbers is in no fingerprint, and refused."""

    accelerator: str | None = None
    devices: Any = 1
    num_nodes: int = whole(1, 1000, default=1)
    strategy: str = "auto"


class Ablation(Open):
    """`task=ablation`."""

    size: int = whole()
    images: int = whole()
    base_seed: int = seed()


class Audit(Open):
    """`task=audit`."""

    images: int = whole(2)
    per_prompt: int = whole(2)
    base_seed: int = seed()


class Dose(Open):
    """`task=dose`."""

    doses: Annotated[list[Annotated[float, not_negative()]], AfterValidator(_distinct)] = words(least=1)


class Evolution(Open):
    """`task=evolution`."""

    images: int = whole()


class Explore(Open):
    """`task=explore`."""

    host: str
    port: int = whole(0, 65535)
    images: int = whole(1, 4096)
    largest: float = positive()


class Miniature(Open):
    """`task=miniature`."""

    models: Distinct = words(least=1)
    export_to: str
    workspace: str
    recipes: dict[str, Any] = GROUP


class Separation(Open):
    """`task=separation`."""

    pairs: int = whole()
    steps: Annotated[list[Annotated[float, part()]], AfterValidator(_distinct)] = words(least=1)


class Vary(Group):
    """What `task=transfer` varies: values of settings of the model."""

    steps: list[Annotated[int, whole(1, 10**4)]]
    guidance: list[Annotated[float, not_negative()]]
    eta: list[Annotated[float, part()]]
    scheduler: list[str]


class Transfer(Open):
    """`task=transfer`."""

    vary: Vary


class Convert(Open):
    """`task=convert`."""

    checkpoint: str
    weights: str | None
    export_to: str
    image_size: int = whole(1, 10**5)
    head_channels: int | None = whole()
    num_heads: int | None = whole()
    new_attention_order: bool


class Dashboard(Open):
    """`task=dashboard`."""

    project: str
    entity: str | None
    online: bool


class Settings(Group):
    """The whole configuration; a task of one's own may do without most of it."""

    name: str
    seed: int = seed()
    published: dict[str, Any] | None = None
    published_strength: dict[str, float] | None = None
    missing_faces: Literal["count", "error"] = "count"
    paths: Paths
    localise: Localise = ABSENT
    task: dict[str, Any] = GROUP
    attribute: AnAttribute = ABSENT
    judge: Judge = ABSENT
    prompt: Prompt | None = None
    data: Data = ABSENT
    sae: Sae = ABSENT
    probe: Probe = ABSENT
    attribution: Attribution = ABSENT
    mitigation: Mitigation = ABSENT
    metric: Metric = ABSENT
    model: Model = ABSENT
    trainer: Trainer = Field(default_factory=Trainer)
    logger: dict[str, Any] | None = None
    # Of task=evaluate and task=audit, and of task=aggregate and task=dashboard.
    images: str | None = folder()
    reference: str | None = folder()
    originals: str | None = folder()
    pairs: Literal["all", "intersect"] = "all"
    sweep: str | None = None


OURS: Mapping[str, type[Open]] = {
    "difflens.methods.difflens.DiffLens": FeatureMethod,
    "difflens.methods.h_direction.HDirection": MethodHere,
    "difflens.tasks.ablation.ablation": Ablation,
    "difflens.tasks.audit.audit": Audit,
    "difflens.tasks.convert.convert": Convert,
    "difflens.tasks.dashboard.dashboard": Dashboard,
    "difflens.tasks.dose.dose": Dose,
    "difflens.tasks.evolution.evolution": Evolution,
    "difflens.tasks.explore.explore": Explore,
    "difflens.tasks.miniature.miniature": Miniature,
    "difflens.tasks.separation.separation_task": Separation,
    "difflens.tasks.transfer.transfer": Transfer,
}
"""By what a `_target_` names, what its settings must be beyond those of its group."""


def check_settings(config: Mapping[str, Any]) -> Settings:
    """Check a resolved configuration (UserError: with the key, what its value must be, and the value)."""
    settings = _validated(Settings, config, "")
    for where, node in _objects(config):
        if node["_target_"] in OURS:
            _validated(OURS[node["_target_"]], node, where)
        check_arguments(node, where)
    check_trainer(settings)
    if settings.mitigation is not None and settings.attribute is not None:
        check_study(settings)
    return settings


def _validated(model: type[Any], values: Mapping[str, Any], where: str) -> Any:
    try:
        return model.model_validate(values)
    except ValidationError as error:
        # The first mistake alone: a run ends with one line.
        raise UserError(_line(model, error.errors(include_url=False)[0], where)) from None


def _line(model: type[BaseModel], error: ErrorDetails, where: str) -> str:
    """What is wrong, in one sentence."""
    # pydantic adds `[key]` where a mapping's key is at fault, not its value.
    path, value = [str(part) for part in error["loc"] if part != "[key]"], error["input"]
    key = ".".join([where, *path]).lstrip(".")
    group, field = _field(model, path)
    if error["type"] == "missing":
        return f"{key} is missing; leave its group as the configuration has it."
    if error["type"] == "extra_forbidden":
        if key.startswith("trainer."):
            return f"{key}={value!r} would change numbers that no fingerprint knows of; leave it out."
        above = key.rpartition(".")[0]
        known = [f"{above}.{name}".lstrip(".") for name in group.model_fields]
        return f"nothing reads {key!r}; take it away.{nearest(key, known)}"
    # What is said of a list is not said of its entries.
    told = field.description if field and not path[-1].isdigit() else None
    # Few descriptions name the bound beyond which a number is a slip; of a number that is too large, it is what matters.
    if error["type"] == "less_than_equal" and (limit := f"{error['ctx']['le']:.15g}") not in (told or ""):
        return f"{key} must be at most {limit}, got {value!r}."
    wanted = PLAIN.get(error["type"], error["msg"].removeprefix("Input should be "))
    return f"{key} must be {told or wanted}, got {value!r}."


PLAIN = {
    "bool_type": "true or false",
    "string_type": "a text (in quotes, where it may be taken for something else)",
    "list_type": "a list",
    "dict_type": "a group of settings",
    "model_type": "a group of settings; leave it as the configuration has it",
}
"""Better words than pydantic's."""


def _field(model: type[BaseModel], path: list[str]) -> tuple[type[BaseModel], FieldInfo | None]:
    """The innermost group on a path, and the field that it leads to there."""
    field = None
    for name in path:
        if field is not None:
            # Of `Prompt | None`, or of a mapping to groups, the group is one of the arguments.
            inner = [kind for kind in (field.annotation, *get_args(field.annotation)) if isclass(kind)]
            model = next((kind for kind in inner if issubclass(kind, BaseModel)), model)
        field = model.model_fields.get(name, field)
    return model, field


def _objects(node: Any, where: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every group with a `_target_` and its dotted key."""
    if isinstance(node, Mapping):
        if isinstance(node.get("_target_"), str):
            yield where, node
        for key, value in node.items():
            yield from _objects(value, f"{where}.{key}".lstrip("."))


BESIDE: Mapping[str, frozenset[str]] = {
    "mitigation": frozenset(("name", "strength", "times", "assignment", "read", "target", "hold", "calibration")),
    "sae": frozenset(("training", "saved")),
    "attribute": frozenset(("words", "synonyms", "unless", "place", "parts")),
    "task": frozenset(("name",)),
    "metric.measures": frozenset(("label", "unit", "digits", "better", "meaning")),
}
"""Settings beside a `_target_` that are not its constructor's."""


def check_arguments(node: Mapping[str, Any], where: str) -> None:
    """Check that a class of this package takes the settings beside its `_target_`, as its source says; nothing is imported.

    Raises:
        UserError: it takes no setting of that name.
    """
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
    """Check that as many processes are asked for as this machine has cores for, where they compute on its processor.

    Raises:
        UserError: they are more, or no number at all.
    """
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
    """Check that a target distribution is written as shares by class, by prompt and class, or by part and class.

    Raises:
        UserError: it is not, or shares of classes are none of a distribution.
    """
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
    """Check the number of latents per class; whether the SAE has as many is known later.

    Raises:
        UserError: it is no number, selects nothing, or names other classes than the attribute's.
    """
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
    """Check what has a meaning with prompts alone, and what prompts must find.

    Raises:
        UserError: a setting needs prompts and there are none, or a class has no word for them.
    """
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
    """Check that the edits of all classes can act on one image, where `mitigation.assignment=everyone` asks for that.

    Raises:
        UserError: the strength is to be calibrated, or something else needs a target class for each image.
    """
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
