"""What the configuration may hold: the keys, types, ranges and words of every group, and how a mistake is told."""

from collections.abc import Mapping
from inspect import isclass
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails, PydanticCustomError

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


# Torch's generator on a processor keeps 32 bits: two larger seeds could be one.
Seed = Annotated[int, whole(0, 2**32 - 1)]
Positive = Annotated[float, number("a number above 0", gt=0)]
NotNegative = Annotated[float, number("a number of at least 0", ge=0)]
Share = Annotated[float, number("a number above 0 and below 1", gt=0, lt=1)]
Part = Annotated[float, number("a number from 0 to 1", ge=0, le=1)]


def folder() -> Any:
    """The name of a folder, or none."""
    return Field(None, description="one folder (measure several one after the other with -m images=<folder>,<folder>)")


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
    base_seed: Seed
    pool: int = whole(1, 64)
    sites: int = whole()
    tried: int = whole(2)
    windows: list[Annotated[list[Part], Field(min_length=2, max_length=2)]] = Field(
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
    base_seed: Seed
    validation: Share
    buffer: int = whole(most=10**9)


class Training(Open):
    """How an SAE is trained."""

    tokens: int = whole(most=10**12, default=1)
    batch: int = whole(default=1)
    lr: float | None = number("a number above 0", gt=0, default=None)
    warmup: int = whole(0, default=0)
    decay: Part = 0
    aux_coefficient: NotNegative = 0
    k_aux: int | None = whole(default=None)


class Sae(Open):
    """The sparse autoencoder."""

    expansion: Positive = 1
    k: int = whole(default=1)
    centre: bool = True
    saved: str | None = None
    training: Training


class Probe(Open):
    """The classifier of activations."""

    l2: NotNegative = 0
    iterations: int = whole(default=1)
    hidden: int = whole(default=1)
    held_out: Share = 0.2


class Attribution(Group):
    """Which latents drive the probe."""

    scorer: dict[str, Any] = GROUP
    baseline: Literal["zero", "contrast"]
    top: Any
    rank: Literal["contrast", "plain"]
    temperature: Positive
    specificity: NotNegative
    within_window: bool
    images_per_class: int = whole()
    statistics_images: int = whole()


class Hold(Group):
    """Edits that keep other attributes."""

    attributes: Distinct = words()
    by: Literal["null_space", "contrast"]
    ratio: NotNegative


class Calibration(Group):
    """How the strength is found."""

    per_prompt: bool
    images: int = whole()
    base_seed: Seed
    first: float = number("a number")
    largest: float = number("a number")
    tolerance: NotNegative
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
    times: NotNegative
    # Repeated here, since the code that owns these words imports torch; a test compares the two.
    assignment: Literal["exact", "early", "oracle", "iid", "batch", "everyone"]
    read: Share
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
    base_seed: Seed
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
    eta: Part = 0
    guidance: NotNegative = 0
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
    base_seed: Seed


class Audit(Open):
    """`task=audit`."""

    images: int = whole(2)
    per_prompt: int = whole(2)
    base_seed: Seed


class Dose(Open):
    """`task=dose`."""

    doses: Annotated[list[NotNegative], AfterValidator(_distinct)] = words(least=1)


class Evolution(Open):
    """`task=evolution`."""

    images: int = whole()


class Explore(Open):
    """`task=explore`."""

    host: str
    port: int = whole(0, 65535)
    images: int = whole(1, 4096)
    largest: Positive


class Miniature(Open):
    """`task=miniature`."""

    models: Distinct = words(least=1)
    export_to: str
    workspace: str
    recipes: dict[str, Any] = GROUP


class Separation(Open):
    """`task=separation`."""

    pairs: int = whole()
    steps: Annotated[list[Part], AfterValidator(_distinct)] = words(least=1)


class Vary(Group):
    """What `task=transfer` varies: values of settings of the model."""

    steps: list[Annotated[int, whole(1, 10**4)]]
    guidance: list[NotNegative]
    eta: list[Part]
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
    seed: Seed
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


def validated(model: type[Any], values: Mapping[str, Any], where: str) -> Any:
    """The values as a model of the configuration; else UserError with the key, what must stand there, and the value."""
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
