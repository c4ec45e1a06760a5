import itertools
import re
from pathlib import Path

import hydra
import pytest
from composed import GROUPS, composed
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import MissingConfigException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from difflens.cli.job import readable
from difflens.config import check_settings
from difflens.main import conf_folder
from difflens.store.exits import ending
from difflens.store.run import resolve
from difflens.store.targets import check_targets, find_targets
from difflens.study.values import class_words, read_attribute
from difflens.vocabulary import Attribute

CONF = conf_folder()
TOP = {group: names for group, names in GROUPS.items() if "/" not in group}


def resolved(overrides: list[str]) -> DictConfig:
    cfg = composed(*overrides)
    check_targets(OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True))
    return cfg


@pytest.mark.parametrize("choice", [f"{group}={name}" for group, names in TOP.items() for name in names])
def test_every_choice_composes_and_names_targets_that_exist(choice: str) -> None:
    cfg = resolved([choice])
    for where, target in find_targets(OmegaConf.to_container(cfg, resolve=True)):
        assert callable(hydra.utils.get_object(target)), where
    group, _, name = choice.partition("=")
    if group == "task":
        assert cfg.task.name == name and len(GROUPS["task"]) == 22
    if group == "attribution":
        assert callable(instantiate(cfg.attribution.scorer))


def jobs(overrides: list[str]) -> list[list[str]]:
    """The overrides of every job that a command starts: one, or as many as its experiment sweeps."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        params = compose("config", overrides=overrides, return_hydra_config=True).hydra.sweeper.params or {}
    parsed = OverridesParser.create().parse_overrides([f"{key}={values}" for key, values in params.items()])
    swept = [
        [f"{one.get_key_element()}={value}" for value in one.sweep_string_iterator()]
        if one.is_sweep_override()
        else [one.input_line]
        for one in parsed
    ]
    return [[*overrides, *job] for job in itertools.product(*swept)]


EXPERIMENTS = sorted(path for path in (CONF / "experiment").glob("*.yaml") if path.stem != "photographs")
"""But for the one that trains a model of another world."""


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_every_job_of_an_experiment_composes_on_the_miniature_that_its_file_names(path: Path) -> None:
    command = re.search(r"On the miniature: `difflens (.*)`", path.read_text())
    assert command
    made = jobs(command[1].split())
    several = {"ablation_width": 3, "fig_bias_level": 5, "fig_dose_response": 7, "rivals": 21, "rivals_sd": 36}
    assert len(made) == several.get(path.stem, 1)
    for job in made:
        cfg = resolved(job)
        check_settings(resolve(cfg))
        places = [cfg.model.get("folder") or cfg.model.source, cfg.judge.scores.folder, cfg.metric.extractor.folder]
        assert all(place.startswith("package:") for place in places)


@pytest.mark.parametrize("name", ["gender", "age", "race"])
def test_attributes_are_what_the_judges_read(name: str) -> None:
    cfg = resolved([f"attribute={name}"])
    attribute = Attribute(cfg.attribute.name, tuple(cfg.attribute.classes))
    for role in ("labels", "scores"):
        judge = instantiate(cfg.judge[role])
        assert set(attribute.classes) <= set(judge.classes[name])
    assert set(cfg.judge.others) <= set(judge.classes)


def test_several_attributes_are_composed_of_the_files_of_each() -> None:
    described = OmegaConf.to_container(resolved(["attribute=gender+age"]).attribute)
    both = read_attribute(described)
    assert (both.name, len(both.classes)) == ("gender+age", 6)
    words = dict(zip(both.classes, class_words(described), strict=True))
    assert words["female+old"] == "old female"


def test_another_reading_of_an_attribute_stands_in_its_place() -> None:
    both = read_attribute(OmegaConf.to_container(resolved(["attribute=gender+age_40"]).attribute))
    assert (both.name, both.classes[0]) == ("gender+age", "female+under_40")
    for choice in ("attribute=age+age_40", "experiment=table_p2_age_40"):
        with pytest.raises(MissingConfigException):
            composed(choice)


@pytest.mark.parametrize("width", [1, 6, 32])
def test_any_whole_width_can_be_asked_for(width: int) -> None:
    assert resolved([f"width=x{width}"]).sae.expansion == width


@pytest.mark.parametrize("name", ["x0", "x33", "x-4", "xx"])
def test_no_other_width_can(name: str) -> None:
    with pytest.raises(MissingConfigException) as refused:
        composed(f"width={name}")
    assert ending(refused.value).line.startswith(f"width={name}: no such width; available: x1, x2, x3, ")


def test_a_number_instead_of_a_word_is_told_where_it_belongs() -> None:
    with pytest.raises(MissingConfigException) as refused:
        composed(readable("strength=1.3", ["strength"]))
    line = ending(refused.value).line
    assert line.endswith("half, none, published; or the number itself: mitigation.strength=1.3.")
