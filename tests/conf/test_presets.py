"""The published settings are complete and mean what they say."""

import pytest
from composed import GROUPS, composed
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.utils import instantiate
from omegaconf import OmegaConf

from difflens.config import check_settings
from difflens.data.mixing import buffer_sizes
from difflens.judges.faces import WholeImage
from difflens.judges.fairface import FairFaceJudge
from difflens.judges.inception import InceptionFeatures
from difflens.main import conf_folder
from difflens.store.run import resolve
from difflens.study.checks import check_buffer

CONF = conf_folder()


@pytest.mark.parametrize(
    ("attribute", "top", "strength"),
    [
        ("gender", [30, 30], {"male": 1.43}),
        ("age", [30, 30, 30], {"old": 3.0}),
        ("race", [30, 100, 30, 30], {"Black": 5.0, "Asian": 1.5, "Indian": 1.5}),
    ],
)
def test_p2_is_set_as_published(attribute: str, top: list[int], strength: dict[str, float]) -> None:
    cfg = composed("model=p2_celebahq", f"attribute={attribute}")
    assert cfg.attribution.temperature == (8 if attribute == "gender" else 1)
    classes = list(cfg.attribute.classes)
    chosen = cfg.attribution.top
    assert [chosen if isinstance(chosen, int) else chosen[name] for name in classes] == top
    assert dict(cfg.mitigation.strength) == {name: strength.get(name, 1.0) for name in classes}
    assert (cfg.mitigation.mode, cfg.mitigation["update"], cfg.mitigation.protocol) == (
        "scale",
        "asymmetric",
        "official",
    )
    assert (cfg.model.steps, cfg.model.eta, cfg.model.rederive_direction) == (50, 1.0, True)
    # For gender the released code draws no classes and scales in every image; else it draws one for each batch of 16.
    assert cfg.mitigation.assignment == ("everyone" if attribute == "gender" else "batch")
    assert (cfg.attribution.rank, cfg.model.micro_batch) == ("plain", 16)
    assert cfg.metric.images == 10_000
    # A preset cannot choose from a group, so it repeats what the group's file says.
    assert cfg.sae == composed("sae=paper").sae
    # The noisiest step is not edited, all the others are.
    window = cfg.mitigation.window
    assert [s for s in range(50) if window.start * 50 <= s < window.stop * 50] == list(range(1, 50))


@pytest.mark.parametrize("model", ["p2_celebahq", "ddpm_celebahq", "ldm_celebahq", "sd15", "sd21", "sdxl"])
def test_models_of_photographs_choose_judges_measures_and_prompts_which_the_user_overrides(model: str) -> None:
    cfg = composed(f"model={model}")
    judges = {cfg.judge[role]["_target_"].rsplit(".", 1)[1] for role in ("labels", "scores")}
    assert judges == {"load_fairface", "ZeroShotJudge"}
    assert cfg.metric.extractor["_target_"] == "difflens.judges.inception.PhotographFeatures"
    assert bool(cfg.get("prompt")) == model.startswith("sd")
    other = composed(f"model={model}", "judge=miniature", "metric=default")
    assert other.judge == composed().judge and other.metric.extractor == composed().metric.extractor


def test_sd15_is_set_as_published() -> None:
    cfg = composed("model=sd15", "attribute=age")
    assert cfg.attribution.top == {"young": 10, "adult": 0, "old": 30}
    assert cfg.mitigation.strength == {"young": 30, "adult": 0, "old": 50}
    assert (cfg.mitigation.mode, cfg.mitigation.unit, cfg.attribution.baseline) == ("add", "code", "contrast")
    window = instantiate(cfg.mitigation.window)
    assert [step for step in range(50) if window.holds(step, 50)] == [*range(1, 49)] and cfg.attribution.within_window
    assert composed("model=sd15", "attribute=race").attribution.top == {
        "White": 30,
        "Black": 100,
        "Asian": 30,
        "Indian": 30,
    }
    for attribute in ("gender", "age", "race"):
        cfg = composed("model=sd15", f"attribute={attribute}")
        assert (cfg.model.steps, cfg.model.guidance, cfg.metric.images, cfg.attribution.temperature) == (
            50,
            7.5,
            500,
            1000,
        )
        assert cfg.attribution.rank == "plain"
        assert cfg.sae == composed("sae=paper_map").sae
        assert len(cfg.prompt.studied) == 4


def test_sd15_takes_tokens_of_a_whole_map_in_numbers_that_fit() -> None:
    cfg = composed("model=sd15", "attribute=gender")
    training = round(cfg.data.images * (1 - cfg.data.validation)) * cfg.model.steps
    assert cfg.sae.token == "map" and training == 90_000
    sizes = buffer_sizes(cfg.data.buffer, batch=cfg.sae.training.batch, dim=1280 * 8 * 8)
    assert sizes.refilling < 4e9 and sizes.sample_bytes <= 2**29
    check_buffer(sizes, dim=81_920, memory=16 * 2**30)
    usual = composed().data.buffer
    with pytest.raises(
        ValueError, match=r"262144 tokens of 81920 values.* 40\.0 GiB, and 100\.0 GiB.*data\.buffer to \d+"
    ):
        check_buffer(buffer_sizes(usual, batch=512, dim=81_920), dim=81_920, memory=64 * 2**30)


MODELS = sorted(path.stem for path in (CONF / "model").glob("*.yaml"))


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("attribute", ["gender", "race"])
def test_any_level_of_bias_can_be_asked_of_every_model(model: str, attribute: str) -> None:
    cfg = composed("experiment=fig_bias_level", f"model={model}", f"attribute={attribute}")
    assert (cfg.mitigation.strength, cfg.mitigation.assignment) == ("auto", "oracle")
    check_settings(resolve(cfg))


@pytest.mark.parametrize(
    ("table", "attribute", "rows"),
    [
        ("p2", "gender", [0.226, 0.002]),
        ("p2", "race", []),
        ("sd", "age", [0.752, 0.049]),
        ("sd", "race", [0.558, 0.401]),
    ],
)
def test_a_table_holds_what_was_published_of_its_attribute(table: str, attribute: str, rows: list[float]) -> None:
    for asked in ([f"experiment=table_{table}_{attribute}"], [f"experiment=table_{table}", f"attribute={attribute}"]):
        cfg = composed(*asked)
        assert cfg.attribute.name == attribute
        assert [row.get("fd_official", row.get("fd_official_prompt_mean")) for row in cfg.published.rows] == rows


def test_doses_start_without_any_edit() -> None:
    params = OmegaConf.load(CONF / "experiment" / "fig_dose_response.yaml").hydra.sweeper.params
    assert str(params["mitigation.times"]).split(",")[0] == "0"


@pytest.mark.parametrize("table", ["p2_gender", "p2_age", "p2_race", "sd_gender", "sd_age", "sd_race"])
def test_a_table_is_measured_as_published_but_for_its_reference(table: str) -> None:
    cfg = composed(f"experiment=table_{table}")
    scores, clip = cfg.judge.scores, cfg.metric.extractor.embeddings
    faces = {"DlibFaces": "dlib mmod, 5 landmarks, {size} px, padding {padding:g}, longest side {longest_side}"}
    named = faces.get(scores.faces["_target_"].rsplit(".", 1)[1], WholeImage.name)
    here = {
        "model": cfg.model.name,
        "n": cfg.metric.images * len(cfg.prompt.studied if cfg.get("prompt") else [""]),
        "steps": cfg.model.steps,
        "assignment": cfg.mitigation.assignment,
        "judge": FairFaceJudge.name,
        "judge_protocol": scores.protocol,
        "faces": named.format(**{key: value for key, value in scores.faces.items() if key != "_target_"}),
        "extractor": InceptionFeatures.name,
        "resize": InceptionFeatures.resize,
        "clip": f"{clip.model} {clip.pretrained}",
    }
    assert scores["_target_"].endswith("load_fairface")
    published = {key: value for key, value in cfg.published.protocol.items() if key != "reference"}
    # No strength was released for two of the tables: they are calibrated, which needs exact quotas.
    calibrated = {"assignment": "exact"} if cfg.mitigation.strength == "auto" else {}
    assert here == {**published, **calibrated}


@pytest.mark.parametrize("experiment", GROUPS["experiment"])
def test_every_experiment_is_a_table_of_a_published_model_or_a_sweep(experiment: str) -> None:
    small, large = (
        ("mini_sd", "sd15") if experiment.endswith("_sd") or "table_sd" in experiment else ("mini_ddpm", "p2_celebahq")
    )
    path = CONF / "experiment" / f"{experiment}.yaml"
    sweep = OmegaConf.select(OmegaConf.load(path), "hydra.sweeper.params", default={}) if path.is_file() else {}
    if experiment.startswith("table"):
        assert not sweep
        for given, model in (([], large), ([f"model={small}"], small)):
            cfg = composed(f"experiment={experiment}", *given)
            assert cfg.model.name == model and cfg.published.protocol.model == large
            assert ("miniature" in cfg.judge.labels["_target_"]) == (model == small)
            assert experiment.split("_")[2:] in ([], [cfg.attribute.name])
        return
    if experiment in ("transfer", "photographs"):
        cfg = composed(f"experiment={experiment}")
        if experiment == "transfer":
            # A task of its own, which varies one thing after the other within one run.
            assert not sweep and cfg.task.name == "transfer" and cfg.model.name == "mini_sd"
        else:
            # Training, of models that are judged by judges of photographs.
            assert not sweep and cfg.task.name == "miniature" and {*cfg.task.models} <= {*cfg.task.recipes}
            assert cfg.judge.labels.name == "faceapi"
        return
    swept = OverridesParser.create().parse_overrides([f"{key}={values}" for key, values in sweep.items()])
    jobs = [f"{each.key_or_group}={value}" for each in swept for value in each.sweep_string_iterator()]
    assert len(jobs) > 1
    # Each job on the miniature, which is what methods are compared on, is composed in test_compose.py.
    for job in [] if experiment.startswith("rivals") else jobs:
        assert composed(f"experiment={experiment}", job).model.name == large


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["width=x16"], (16, "auto", 1)),
        (["width=x16", "sae.expansion=2"], (2, "auto", 1)),
        (["strength=half"], (8, "auto", 0.5)),
        (["strength=none"], (8, "auto", 0)),
        (["strength=double", "mitigation.strength=1.5"], (8, 1.5, 2)),
        (["model=p2_celebahq"], (8, {"female": 1.0, "male": 1.43}, 1)),
        (["model=p2_celebahq", "strength=calibrated", "width=x4"], (4, "auto", 1)),
        (["model=p2_celebahq", "strength=published", "mitigation.times=0.5"], (8, {"female": 1.0, "male": 1.43}, 0.5)),
        (["strength=published"], (8, None, 1)),
    ],
)
def test_width_and_strength_are_chosen_by_word_and_values_still_win(overrides: list[str], expected: tuple) -> None:
    cfg = OmegaConf.create(OmegaConf.to_container(composed(*overrides), resolve=True))
    assert (cfg.sae.expansion, cfg.mitigation.strength, cfg.mitigation.times) == expected
