"""The published settings are complete and mean what they say."""

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

CONF = Path(__file__).resolve().parents[2] / "conf"


def composed(*overrides: str) -> DictConfig:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("config", overrides=list(overrides))


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
    assert cfg.metric.images == 10_000
    # A preset cannot choose from a group, so it repeats what the group's file says.
    assert cfg.sae == composed("sae=paper").sae
    # The noisiest step is not edited, all the others are.
    window = cfg.mitigation.window
    assert [s for s in range(50) if window.start * 50 <= s < window.stop * 50] == list(range(1, 50))


@pytest.mark.parametrize("model", ["p2_celebahq", "ddpm_celebahq", "sd15", "sd21", "sdxl"])
def test_models_of_photographs_choose_judges_measures_and_prompts_which_the_user_overrides(model: str) -> None:
    cfg = composed(f"model={model}")
    assert cfg.judge.labels["_target_"] == "difflens.metrics.fairface.load_fairface"
    assert cfg.metric.extractor["_target_"] == "difflens.metrics.inception.PhotographFeatures"
    assert bool(cfg.get("prompt")) == model.startswith("sd")
    other = composed(f"model={model}", "judge=miniature", "metric=default")
    assert other.judge == composed().judge and other.metric.extractor == composed().metric.extractor
