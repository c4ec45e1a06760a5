"""Settings that no stage could use are refused by name before the first stage."""

from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from difflens.main import conf_folder
from difflens.study.settings import NUMBERS, check_settings, check_target, check_top


@pytest.fixture(scope="module")
def composed() -> DictConfig:
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        return compose("config")


ELSEWHERE = (
    "model.guidance",
    "probe.hidden",
    *(f"task.{name}" for name in ("port", "largest", "images", "pairs", "size")),
)
"""Numbers of other models, probes and tasks."""


def test_the_default_configuration_holds_every_number_that_is_checked(composed: DictConfig) -> None:
    check_settings(composed)
    absent = [key for key in NUMBERS if OmegaConf.select(composed, key, default=...) is ...]
    assert set(absent) == set(ELSEWHERE)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("data.images", 1, "at least 2, got 1"),
        ("data.images", "many", "a whole number of at least 2, got 'many'"),
        ("sae.training.tokens", 2e6, "a whole number of at least 1, got 2000000.0"),
        ("sae.k", True, "sae.k must be a whole number"),
        ("sae.training.lr", 0, "a number above 0, got 0"),
        ("data.validation", 2, "above 0 and below 1, got 2"),
        ("data.validation", 0.9999, "leaves no image to train on"),
        ("probe.held_out", float("nan"), "probe.held_out must be a number above 0 and below 1, got nan"),
        ("probe.l2", None, "probe.l2 must be a number of at least 0, got None"),
        ("data.site.tensor", "outptu", "one of output, input, update, got 'outptu'"),
        ("metric.base_seed", 1001, "different seeds"),
        ("mitigation.calibration.first", 0.0, "needs 0 < first ≤ largest"),
        ("mitigation.name", "../../elsewhere", "mitigation.name must be a word"),
        ("mitigation.name", "original", "other than original"),
    ],
)
def test_a_value_no_stage_could_use_is_refused_by_name(composed: DictConfig, key: str, value: Any, words: str) -> None:
    changed = composed.copy()
    OmegaConf.update(changed, key, value)
    with pytest.raises(ValueError, match=key.split(".")[0]) as error:
        check_settings(changed)
    assert words in str(error.value)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, "strength=auto"),
        ({"strength": 2.0}, "mode=contrast"),
        ({"strength": 2.0, "mode": "scale", "suppress": 0.5}, "suppress=0.5"),
        ({"strength": 2.0, "mode": "scale"}, "hold.attributes=['age', 'race']"),
    ],
)
def test_where_all_strengths_act_on_every_image_nothing_may_need_a_target_class(
    composed: DictConfig, settings: dict[str, Any], words: str
) -> None:
    changed = composed.copy()
    OmegaConf.update(changed, "mitigation", {"assignment": "everyone", **settings})
    with pytest.raises(ValueError, match=r"needs a target class for each image.*choose another assignment") as error:
        check_settings(changed)
    assert f"mitigation.{words} needs" in str(error.value)
    OmegaConf.update(changed, "mitigation", {"strength": 2.0, "mode": "scale", "suppress": None})
    changed.mitigation.hold.attributes = []
    check_settings(changed)


def test_targets_and_feature_counts_have_a_shape() -> None:
    check_top({"female": 12, "male": 0}, classes=("female", "male"), width=12)
    for top in (0, -1, 13, "all", {"female": 3}, {"female": 0, "male": 0}):
        with pytest.raises(ValueError, match=r"attribution\.top must"):
            check_top(top, classes=("female", "male"), width=12)
    for target in ("uniform", 0.5, {"female": "half"}, {"female": float("nan")}):
        with pytest.raises(ValueError, match=r"mitigation\.target must give each class a share"):
            check_target(target)
