"""One step at a time: noise of its own for each image, the DDIM update, and the precision it is made in."""

import pytest
import torch
from diffusers import DDIMScheduler

from difflens.models import devices
from difflens.models.devices import choose_precision, fast_autocast
from difflens.models.sampling import coinciding, ddim_step, estimate, image_generator, largest

STEPS = 10


def scheduler(prediction: str, clip: bool, spacing: str = "trailing") -> DDIMScheduler:
    made = DDIMScheduler(prediction_type=prediction, clip_sample=clip, timestep_spacing=spacing)
    made.set_timesteps(STEPS)
    return made


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize(("clip", "rederive"), [(True, False), (True, True), (False, False)])
def test_equal_estimates_reproduce_the_diffusers_step(prediction: str, eta: float, clip: bool, rederive: bool) -> None:
    ddim = scheduler(prediction, clip)
    x, output, noise = torch.randn(3, 2, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    for t in ddim.timesteps.tolist():
        expected = ddim.step(
            output, t, x, eta=eta, variance_noise=noise if eta else None, use_clipped_model_output=rederive
        ).prev_sample
        made = ddim_step(
            ddim,
            output,
            timestep=t,
            x=x,
            edited_output=output,
            eta=eta,
            variance_noise=noise,
            rederive_direction=rederive,
        )
        torch.testing.assert_close(made, expected, rtol=0, atol=1e-5 if t > 900 else 2e-6)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_the_edited_estimate_moves_the_clean_image_alone(prediction: str) -> None:
    ddim = scheduler(prediction, clip=False)
    x, output, edited = torch.randn(3, 2, 3, 4, 4, generator=torch.Generator().manual_seed(2))
    t = 500 - 1
    ddim.timesteps = torch.tensor([t])
    alpha_previous = ddim.alphas_cumprod[t - 100].item()
    change = estimate(ddim, edited, t, x).clean - estimate(ddim, output, t, x).clean
    moved = ddim_step(ddim, output, timestep=t, x=x, edited_output=edited) - ddim_step(ddim, output, timestep=t, x=x)
    torch.testing.assert_close(moved, alpha_previous**0.5 * change, rtol=1e-4, atol=1e-5)


def test_sampling_with_the_exact_score_of_a_gaussian_gives_that_gaussian() -> None:
    ddim = scheduler("epsilon", clip=False)
    ddim.set_timesteps(200)
    mean, sd = 0.7, 0.3
    x = torch.randn(20_000, 1, 1, 1, generator=torch.Generator().manual_seed(3))
    for t in ddim.timesteps.tolist():
        alpha = ddim.alphas_cumprod[t].item()
        variance = alpha * sd**2 + 1 - alpha
        output = (1 - alpha) ** 0.5 * (x - alpha**0.5 * mean) / variance
        x = ddim_step(ddim, output, timestep=t, x=x)
    assert abs(float(x.mean()) - mean) < 0.01
    assert abs(float(x.std()) - sd) < 0.01


def test_noise_is_required_where_eta_asks_for_it() -> None:
    ddim = scheduler("epsilon", clip=False)
    with pytest.raises(ValueError, match="variance_noise"):
        ddim_step(ddim, torch.zeros(1, 3, 4, 4), timestep=499, x=torch.ones(1, 3, 4, 4), eta=1.0)


def test_images_that_begin_with_the_same_noise_are_found() -> None:
    first, second = 62_504, 70_046  # the first two images of base seed 0 whose seeds share the lowest 32 bits
    noises = [torch.randn(8, generator=image_generator(0, image_id)) for image_id in (first, second)]
    assert torch.equal(*noises), "torch keeps 32 bits"
    assert coinciding((0, image_id) for image_id in (5, first, second, 5)) == ((0, first), (0, second))
    assert coinciding((seed, image_id) for seed in (1001, 2002, 4004) for image_id in range(1500)) is None


def test_the_largest_places_are_those_of_each_image() -> None:
    size = torch.tensor([[[1.0, 4.0], [2.0, 3.0]], [[0.0, 0.0], [0.0, 0.0]]])
    assert largest(size, 0.5).tolist() == [[[[False, True], [False, True]]], [[[True, True], [True, True]]]]
    assert bool(largest(size, 1.0).all())


@pytest.mark.parametrize(
    ("instructions", "chosen"),
    [({"avx512_bf16": True}, "bf16"), ({"bf16": True}, "bf16"), ({"avx2": True, "avx512_bf16": False}, "fp32")],
)
def test_auto_follows_the_processors_instructions(
    instructions: dict[str, bool], chosen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: instructions)
    assert choose_precision("auto", "cpu") == chosen
    with fast_autocast():
        assert torch.is_autocast_enabled("cpu") == (chosen == "bf16")
    assert choose_precision("fp32", "cpu") == "fp32"


def test_emulated_bf16_is_obeyed_and_warned_of_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True})
    devices._warn_once.cache_clear()
    assert [choose_precision("bf16", "cpu") for _ in range(2)] == ["bf16", "bf16"]
    assert [record.getMessage() for record in caplog.records] == [
        "cpu has no bf16 instructions and emulates them slowly; model.precision=auto is faster"
    ]
