from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler, UNet2DModel
from torch import Tensor

from difflens.models.load import load_unconditional
from difflens.models.model import DiffusionModel, UnconditionalPipeline
from difflens.models.sampling import image_generator
from difflens.vocabulary import UNTOUCHED, GenerationPlan, Site


class Add:
    """Adds a constant to the activations of touched rows."""

    site = Site()

    def __init__(self, update: str, amount: float = 0.5) -> None:
        self.update, self.amount, self.steps = update, amount, []

    def active(self, step: int, steps: int) -> bool:
        return step > 0

    def __call__(self, h: Tensor, step: int, images: PerImage) -> Tensor:
        self.steps.append(step)
        return torch.where((images.target >= 0)[:, None, None, None], h + self.amount, h)


def images(model: DiffusionModel, ids: list[int], **settings: object) -> dict[int, Tensor]:
    plan = GenerationPlan(3, torch.tensor(ids), settings.pop("targets", None))  # type: ignore[arg-type]
    made = {}
    for batch in model.sample(plan, **settings):  # type: ignore[arg-type]
        made |= dict(zip(batch.image_ids.tolist(), batch.images, strict=True))
    return made


def test_an_image_depends_on_its_id_alone(model: DiffusionModel) -> None:
    several = images(model, [5, 1, 9, 4, 7, 2])
    for ids in ([9], [2, 9, 1], [7, 7 + 1, 1, 5]):
        for image_id, image in images(model, ids).items():
            if image_id in several:
                assert torch.equal(image, several[image_id])


def test_streams_of_neighbouring_seeds_and_ids_differ() -> None:
    draws = [
        torch.randn(4, generator=image_generator(seed, i)) for seed, i in ((0, 1), (1, 0), (1, 1), (10, 1), (1, 1))
    ]
    assert len({tuple(draw.tolist()) for draw in draws}) == 4


def test_recorded_activations_are_those_of_every_step(model: DiffusionModel) -> None:
    (batch, last) = list(model.sample(GenerationPlan(0, torch.arange(6)), record=Site()))
    assert batch.activations is not None and last.activations is not None
    assert batch.activations.shape == (4, 5, *model.site_shape(Site()))
    assert last.activations.shape[0] == 2
    assert not torch.equal(batch.activations[:, 0], batch.activations[:, 4])


@pytest.mark.parametrize("update", ["symmetric", "asymmetric"])
def test_touched_images_change_and_untouched_ones_do_not(model: DiffusionModel, update: str) -> None:
    plain = images(model, [0, 1, 2, 3])
    edit = Add(update)
    made = images(model, [0, 1, 2, 3], method=edit, targets=torch.tensor([UNTOUCHED, 0, 1, UNTOUCHED]))
    assert edit.steps == [1, 2, 3, 4]
    for i in (0, 3):
        torch.testing.assert_close(made[i], plain[i], rtol=0, atol=1e-5)
    for i in (1, 2):
        assert (made[i] - plain[i]).abs().max() > 1e-3


@pytest.mark.parametrize("update", ["symmetric", "asymmetric"])
@pytest.mark.parametrize(("amount", "target"), [(0.0, 0), (0.5, UNTOUCHED)])
def test_a_neutral_edit_and_untouched_images_change_no_bit_and_pay_nothing(
    model: DiffusionModel, update: str, amount: float, target: int
) -> None:
    plain, rows = images(model, [0, 1, 2, 3]), []
    model.unet.conv_out.register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
    made = images(model, [0, 1, 2, 3], method=Add(update, amount), targets=torch.full((4,), target))
    assert rows == [model.micro_batch] * 5
    for i, image in plain.items():
        assert torch.equal(made[i], image)
    rows.clear()
    images(model, [0, 1, 2, 3], method=Add(update), targets=torch.tensor([UNTOUCHED, 0, 1, UNTOUCHED]))
    assert rows == [4, *([8] * 4 if update == "asymmetric" else [4] * 4)]  # the first step lies outside the window


def test_the_updates_differ(model: DiffusionModel) -> None:
    targets = torch.zeros(4, dtype=torch.int64)
    one, other = (images(model, [0, 1, 2, 3], method=Add(u), targets=targets) for u in ("symmetric", "asymmetric"))
    assert (one[0] - other[0]).abs().max() > 1e-3


def test_eta_draws_from_the_images_own_stream(unet: UNet2DModel) -> None:
    model = DiffusionModel(UnconditionalPipeline(unet, DDIMScheduler()), name="tiny", steps=4, micro_batch=2, eta=1.0)
    assert torch.equal(images(model, [3, 1])[3], images(model, [2, 8, 3])[3])
    assert not torch.equal(images(model, [3])[3], images(model, [4])[4])


def test_denoising_loss_grows_when_the_site_is_ablated(model: DiffusionModel) -> None:
    pictures = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    plain = model.denoising_loss(pictures, 2, site=Site())
    assert model.denoising_loss(pictures, 2, site=Site(), change=lambda h: h) == plain
    assert model.denoising_loss(pictures, 2, site=Site(), change=lambda h: h * 0) != plain


def test_a_saved_model_loads_with_the_same_fingerprint(model: DiffusionModel, tmp_path: Path) -> None:
    model.unet.save_pretrained(tmp_path / "unet")
    model.pipeline.scheduler.save_pretrained(tmp_path / "scheduler")
    loaded = load_unconditional(str(tmp_path), name="tiny", steps=5, micro_batch=4)
    assert loaded.spec() == model.spec()
    with torch.no_grad():
        next(loaded.unet.parameters()).add_(1e-3)
    assert DiffusionModel(UnconditionalPipeline(loaded.unet, loaded.scheduler), name="tiny", steps=5, micro_batch=4).spec() != model.spec()


@pytest.mark.parametrize(("settings", "message"), [({"steps": 0}, "model.steps"), ({"micro_batch": 0}, "micro_batch")])
def test_settings_out_of_range_are_refused(unet: UNet2DModel, settings: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DiffusionModel(UnconditionalPipeline(unet, DDIMScheduler()), **{"name": "tiny", "steps": 5, "micro_batch": 4, **settings})


def test_a_folder_without_a_model_says_so(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no unet/"):
        load_unconditional(str(tmp_path), name="x", steps=5, micro_batch=4)
    with pytest.raises(ValueError, match="nothing at"):
        load_unconditional(str(tmp_path / "absent"), name="x", steps=5, micro_batch=4)
