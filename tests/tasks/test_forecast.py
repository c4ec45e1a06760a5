"""The forecast is proportional to what is asked for, and counts the published architectures right without their weights."""

from dataclasses import replace
from typing import Any

import pytest
from hydra import compose, initialize_config_dir

from difflens.main import conf_folder
from difflens.tasks.forecast import Floor, Work, describe_forecast, disk, read_shape, read_work, seconds

WORK = Work(
    images=128, evaluated=64, unseen=0, calibrated=64, doses=5, cards=32, reference=100, moved=0.25, edited=1.5, steps=20,
    micro_batch=16, held_out=8, attributes=3, located=100, iterations=30, tokens=10_000, per_image=64, values=8192, online=0,
)  # fmt: skip
FLOOR = Floor(step=1e-2, image=0.0, train=1e-4, encode=1e-5, value=1e-10, label=1e-3, score=1e-3, extract=1e-3)
COUNTS = ("images", "evaluated", "calibrated", "cards", "reference", "held_out", "located", "tokens")


def settings(*overrides: str) -> Any:
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        return compose("config", overrides=list(overrides))


def test_twice_the_images_take_twice_the_time() -> None:
    once = seconds(WORK, FLOOR)
    twice = seconds(replace(WORK, **{name: 2 * getattr(WORK, name) for name in COUNTS}), FLOOR)
    assert all(twice[stage] == pytest.approx(2 * spent) for stage, spent in once.items()) and min(once.values()) > 0


def test_time_follows_its_floors() -> None:
    once = seconds(WORK, FLOOR)
    assert once["activations"] == pytest.approx(128 * 20 * 1e-2)
    assert once["calibrate"] == pytest.approx(64 * 20 * 1e-2 + 64e-3 + 5 * (16 * 20 * 1.5e-2 + 16e-3)), (
        "images of its own, a quarter of which is pushed, five times"
    )
    slower = seconds(WORK, replace(FLOOR, step=2e-2))
    assert slower["originals"] == 2 * once["originals"] and slower["probe"] == once["probe"]
    longer = seconds(replace(WORK, steps=40), FLOOR)
    assert longer["activations"] == 2 * once["activations"] and longer["metrics"] == once["metrics"]
    padded = seconds(replace(WORK, images=113), FLOOR)
    assert padded["activations"] == once["activations"], "micro-batches are always full"
    without = seconds(replace(WORK, tokens=0, cards=0, doses=0), FLOOR)
    assert without["sae"] == without["attribution"] == without["cards"] == without["calibrate"] == 0


@pytest.mark.parametrize(
    ("model", "parameters", "gigaflop", "site"),
    [("sd15", 859.5, 803, (1280, 8, 8)), ("p2_celebahq", 93.6, 0, (512, 8, 8)), ("mini_ddpm", 2.5, 0, (128, 8, 8))],
)
def test_shapes_need_no_weights(model: str, parameters: float, gigaflop: float, site: tuple[int, ...]) -> None:
    cfg = settings(f"model={model}", "paths.weights=/nowhere")
    shape = read_shape(cfg)
    assert shape.site == site and shape.parameters / 1e6 == pytest.approx(parameters, rel=0.05)
    assert not gigaflop or shape.operations / 1e9 == pytest.approx(gigaflop, rel=0.02), "twice the published GMACs"
    assert 0.3 < shape.behind < 0.9 and shape.rows == (2 if model == "sd15" else 1)
    work, _ = read_work(cfg, shape)
    assert work.steps == cfg.model.steps and disk(work, shape) > work.images * work.steps * work.values * 2


def test_a_method_without_an_autoencoder_is_cheaper() -> None:
    cfg = settings("mitigation=h_direction")
    work, _ = read_work(cfg, read_shape(cfg))
    assert work.tokens == work.cards == 0
    assert seconds(work, FLOOR)["sae"] == seconds(work, FLOOR)["attribution"] == 0


def test_what_was_not_counted_is_said() -> None:
    found = {"seconds": {"activations": 7200.0, "probe": 0.1}, "memory": {"denoiser": 2.0**31}, "disk": 2.0**30}
    found |= {"seconds_per_image_and_step": 0.5, "floor": "measured, on cpu", "unread": ["score"]}
    lines = describe_forecast(found)
    assert lines[0] == "forecast: 2.0 h (activations 2.0 h)" and "500.0 ms" in lines[1] and "score" in lines[-1]
