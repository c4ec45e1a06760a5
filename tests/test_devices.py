"""What a model samples, and what judges read, is computed on its device; what comes back lies on the CPU."""

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import DDIMPipeline, DDIMScheduler, UNet2DModel
from second_device import SECOND, second_device
from tiny_pipeline import MIDDLE, plan, tiny_pipeline, tiny_text_to_image
from torch import Tensor, nn

from difflens.attribution.scorers import GradientTimesActivation, IntegratedGradients, MeanActivation, Scorer
from difflens.attribution.statistics import CodeStatistics
from difflens.data.activations import ActivationStore
from difflens.data.sampled import Shards
from difflens.judges.clip import ClipWeights, OpenClipModel
from difflens.judges.fairface import FairFaceJudge
from difflens.judges.inception import InceptionFeatures, load_inception
from difflens.judges.weights import OnDemand
from difflens.judges.zero_shot import ZeroShotJudge
from difflens.methods.base import SiteEdit
from difflens.methods.difflens import FeatureEdit, SingleFeature, selected_latents
from difflens.methods.holding import Holding
from difflens.miniature.clip import ClipModel, load_clip
from difflens.models.devices import placed
from difflens.models.load import load_text_to_image
from difflens.models.model import DiffusionModel, UnconditionalPipeline
from difflens.models.sampling import image_generator
from difflens.models.steered import edited_pipeline
from difflens.probes.linear import LinearProbe
from difflens.sae.base import SparseAutoencoder
from difflens.sae.batch_topk import BatchTopKAutoencoder
from difflens.sae.topk import TopKAutoencoder
from difflens.stages.sae import loss_recovered
from difflens.study.workbench import Workbench
from difflens.tasks.separation import summed_codes
from difflens.training.attribution_module import AttributionModule, LabelledMaps
from difflens.training.callbacks import HealthOverTraining
from difflens.training.loggers import Tracker
from difflens.training.sae_module import SaeModule
from difflens.vocabulary import NO_FACE, UNTOUCHED, Attribute, FeatureSet, GenerationPlan, Site

GENDER, AGE = Attribute("gender", ("female", "male")), Attribute("age", ("young", "old"))
STEPS, CHANNELS, POSITIONS = 5, 16, 16
TARGETS = torch.tensor([0, 1, UNTOUCHED, 1])
SHOWN = {"age": torch.tensor([1, 0, 1, NO_FACE])}


def autoencoder(**settings: Any) -> TopKAutoencoder:
    torch.manual_seed(0)
    return TopKAutoencoder(CHANNELS, expansion=2, k=16, **settings).requires_grad_(False).eval()


def edit(sae: TopKAutoencoder, attribute: Attribute = GENDER, **settings: Any) -> FeatureEdit:
    """A gated edit by 8 latents."""
    generator = torch.Generator().manual_seed(1)
    features = FeatureSet(attribute, dict(zip(attribute.classes, ((1, 3, 5, 7), (2, 4, 6, 8)), strict=True)))
    side = 1 if sae.token == "map" else 4
    usual = CodeStatistics(
        selected_latents(features),
        torch.rand(2, STEPS, 8, side, side, generator=generator),
        torch.rand(STEPS, 8, generator=generator),
    )
    gate = LinearProbe(STEPS, 2, CHANNELS * POSITIONS)
    gate.weight.normal_(generator=generator).mul_(0.1)
    described = {"site": Site(), "mode": "contrast", "gate": gate}
    made = FeatureEdit(sae, features, usual, **{**described, **settings})
    return made.with_strength(torch.tensor([3.0, 2.0]))  # type: ignore[return-value]


def holding(sae: TopKAutoencoder, **settings: Any) -> Holding:
    return Holding(edit(sae, **settings), [edit(sae, AGE)], ratio=1.5)


EDITS = {
    "contrast": lambda: edit(autoencoder()),
    "symmetric": lambda: edit(autoencoder(), update="symmetric"),
    "scale": lambda: edit(autoencoder(), mode="scale", suppress=0.5, protocol="official"),
    "add": lambda: edit(autoencoder(), mode="add", places="fired"),
    "clamp": lambda: edit(autoencoder(), mode="clamp", gate=None),
    "whole map": lambda: edit(autoencoder(token="map", positions=POSITIONS)),
    "holding": lambda: holding(autoencoder()),
    "single": lambda: SingleFeature(edit(autoencoder()), torch.zeros(8, dtype=torch.int64), strength=-2.0),
}


def tiny(unet: UNet2DModel, device: torch.device | str) -> DiffusionModel:
    scheduler = DDIMScheduler(prediction_type="v_prediction", timestep_spacing="trailing")
    pipeline = UnconditionalPipeline(deepcopy(unet).to(device), scheduler)
    return DiffusionModel(pipeline, name="tiny", steps=STEPS, micro_batch=4, eta=1.0)


def sampled(model: DiffusionModel, wanted: GenerationPlan, made_by: SiteEdit) -> tuple[Tensor, Tensor]:
    (made,) = model.sample(wanted, record=made_by.site, method=made_by)
    assert made.activations is not None
    assert made.images.device.type == made.activations.device.type == "cpu"
    return made.images, made.activations


def test_the_second_device_tells_a_mixture() -> None:
    with second_device() as device:
        x = torch.ones(3, device=device)
        assert x.device == SECOND and (x + torch.tensor(1.0)).tolist() == [2, 2, 2]
        assert x[torch.tensor([0, 2])].cpu().tolist() == [1, 1]
        with pytest.raises(RuntimeError, match="both devices"):
            x + torch.ones(3)
        with pytest.raises(RuntimeError, match="indexed by"):
            torch.ones(3)[torch.zeros(2, dtype=torch.int64, device=device)]
        with pytest.raises(RuntimeError, match="both devices"):
            nn.Linear(3, 3)(x)


@pytest.mark.parametrize("name", EDITS)
def test_an_edited_sample_is_the_same_on_another_device(unet: UNet2DModel, name: str) -> None:
    made_by = EDITS[name]()
    wanted = GenerationPlan(3, torch.arange(4)).towards(TARGETS, SHOWN)
    expected = sampled(tiny(unet, "cpu"), wanted, made_by)
    (plain,) = tiny(unet, "cpu").sample(GenerationPlan(3, torch.arange(4)))
    assert (expected[0] - plain.images)[0].abs().max() > 1e-3
    with second_device() as device:
        found = sampled(tiny(unet, device), wanted, made_by)
    for mine, reference in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, reference, rtol=0, atol=1e-3)


@pytest.mark.parametrize("update", ["asymmetric", "symmetric"])
def test_an_edited_text_to_image_sample_is_the_same_on_another_device(update: str) -> None:
    kind = holding(autoencoder(), site=MIDDLE, update=update)
    made_by = kind.for_prompts(["a face of a doctor"]).with_strength(torch.tensor([3.0, 2.0]))
    wanted = plan([0, 1])
    wanted = wanted.towards(TARGETS[:2], {"age": SHOWN["age"][:2]})
    expected = sampled(tiny_text_to_image(), wanted, made_by)
    (plain,) = tiny_text_to_image().sample(plan([0, 1]))
    assert (expected[0] - plain.images).abs().amax((1, 2, 3)).min() > 1e-3
    with second_device() as device:
        found = sampled(tiny_text_to_image(tiny_pipeline().to(device)), wanted, made_by)
    for mine, reference in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, reference, rtol=0, atol=2e-3)


def test_a_users_own_pipeline_is_edited_on_its_device(unet: UNet2DModel) -> None:
    made_by = edit(autoencoder())

    def call(pipe: Any) -> Tensor:
        pipe.set_progress_bar_config(disable=True)
        timesteps = [int(t) for t in tiny(unet, pipe.device).timesteps]
        generators = [image_generator(3, image_id) for image_id in range(4)]
        with edited_pipeline(pipe, made_by, timesteps=timesteps, assign=lambda _: TARGETS):
            made = pipe(4, generators, num_inference_steps=STEPS, output_type="np").images
        return torch.from_numpy(made)

    scheduler = DDIMScheduler(prediction_type="v_prediction", timestep_spacing="trailing")
    expected = call(DDIMPipeline(unet, scheduler))
    with second_device() as device:
        torch.testing.assert_close(call(DDIMPipeline(unet, scheduler).to(device)), expected, rtol=0, atol=1e-3)


def bench(model: DiffusionModel) -> Workbench:
    made = Workbench.__new__(Workbench)
    task, data = SimpleNamespace(steps=[0.2, 0.6]), SimpleNamespace(base_seed=0, images=4)
    made.__dict__.update(model=model, site=Site(), prompts=None, cfg=SimpleNamespace(seed=0, task=task, data=data))
    return made


def test_an_sae_on_the_cpu_is_measured_inside_a_model_on_another_device(unet: UNet2DModel, tmp_path: Path) -> None:
    shards = Shards(tmp_path, Site())
    for number, batch in enumerate(tiny(unet, "cpu").sample(GenerationPlan(0, torch.arange(4)), record=Site())):
        shards.keep(number, batch)
    store, sae = ActivationStore(tmp_path), autoencoder()

    def measured(model: DiffusionModel) -> tuple[dict[str, list[float]], Tensor]:
        return loss_recovered(bench(model), sae, store, range(4)), summed_codes(bench(model), sae, store.images / 255)

    expected = measured(tiny(unet, "cpu"))
    with second_device() as device:
        recovered, codes = measured(tiny(unet, device))
    for name, values in recovered.items():
        assert values == pytest.approx(expected[0][name], rel=1e-3, nan_ok=True)
    torch.testing.assert_close(codes, expected[1], rtol=1e-4, atol=1e-3)


SCORERS = [IntegratedGradients(), GradientTimesActivation(), MeanActivation()]


@pytest.mark.parametrize("scorer", SCORERS, ids=lambda scorer: scorer.name)
@pytest.mark.parametrize("contrast", [True, False])
def test_attribution_computes_where_lightning_puts_it(scorer: Scorer, contrast: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    maps, start = (torch.randn(4, CHANNELS, 4, 4, generator=generator) for _ in range(2))

    def scored(device: torch.device) -> Tensor:
        found_by = edit(autoencoder())
        assert found_by.gate is not None
        module = AttributionModule(found_by.sae, found_by.gate, GENDER, scorer).to(device)
        labels = torch.tensor([0, 1, 0, 1], device=device)
        baseline = start.half().to(device) if contrast else None
        with torch.no_grad():
            for step in range(STEPS):
                module.predict_step([LabelledMaps(maps.half().to(device), labels, step, baseline)], 0)
        return module.cpu().result().scores.scores

    expected = scored(torch.device("cpu"))
    with second_device() as device:
        torch.testing.assert_close(scored(device), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", [TopKAutoencoder, BatchTopKAutoencoder])
@pytest.mark.parametrize("variance", ["dataset", "batch", "step"])
@pytest.mark.filterwarnings("ignore:You are trying to `self.log")
def test_an_sae_trains_where_lightning_puts_it(kind: type[SparseAutoencoder], variance: str) -> None:
    generator = torch.Generator().manual_seed(0)
    tokens, steps = torch.randn(64, 8, generator=generator), torch.randint(STEPS, (64,), generator=generator)

    def trained(device: torch.device) -> tuple[Tensor, ...]:
        torch.manual_seed(0)
        # A latent counts as dead after 3 tokens, so that the auxiliary loss takes part.
        module = SaeModule(kind(8, expansion=4, k=2), steps=STEPS, tokens=64, batch=32, variance=variance)
        module.calibrate_input(tokens, steps)
        module = module.to(device)
        batch = [tokens.to(device), steps.to(device)]
        with torch.no_grad():
            losses = [module.training_step(batch, index).cpu() for index in range(3)]
        module.sae.normalise_decoder()
        module.sae.eval()
        HealthOverTraining(tokens, steps, Tracker())._measure(module, 3)
        return (*losses, module.health.squared_error.cpu(), module.cpu().fold_scale().w_dec.detach())

    expected = trained(torch.device("cpu"))
    with second_device() as device:
        torch.testing.assert_close(trained(device), expected, rtol=1e-4, atol=1e-4)


def test_a_copy_is_made_once_and_serves_outside_of_inference_mode() -> None:
    sae = BatchTopKAutoencoder(4, expansion=2, k=2)
    assert placed(sae, torch.device("cpu")) is sae
    with torch.inference_mode():
        there = placed(sae, SECOND)
    assert placed(sae, SECOND) is there and there is not sae
    assert {tensor.device for tensor in there.state_dict().values()} == {SECOND}
    assert not any(tensor.is_inference() for tensor in there.state_dict(keep_vars=True).values())
    assert [name for name, _ in there.named_buffers()] == ["threshold", "batches_seen"]
    assert {tensor.device.type for tensor in sae.state_dict().values()} == {
        "cpu"
    } and there.settings() == sae.settings()


def inception(device: str) -> object:
    return load_inception(__file__, obtain="", sha256=None, device=device)


def stable_diffusion(device: str) -> object:
    return load_text_to_image("", precision="bf16", device=device, name="sd", steps=1, micro_batch=1)


BUILT: dict[str, Callable[[str], object]] = {
    "judge": lambda device: FairFaceJudge(nn.Linear(1, 1), device=device),
    "embeddings": lambda device: OpenClipModel(ClipWeights.__new__(ClipWeights), None, name="clip", device=device),
    "extractor": inception,
    "miniature": lambda device: load_clip("package:miniature/weights/clip", device=device),
    "pipeline": stable_diffusion,
}


@pytest.mark.parametrize("built", BUILT)
@pytest.mark.parametrize("device", ["warp", "xpu:77"])
def test_a_device_that_is_not_there_is_a_mistake_of_the_configuration(built: str, device: str) -> None:
    with pytest.raises(ValueError, match=rf"device={device} cannot be used here \(.*\); use cpu") as caught:
        BUILT[built](device)
    assert "\n" not in str(caught.value)


IMAGES = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
CLASSES = {"gender": {"female": ["a woman"], "male": ["a man"]}}


class SmallClip(nn.Module):
    """Mean colours and mean tokens as embeddings."""

    def __init__(self) -> None:
        super().__init__()
        self.logit_scale = nn.Parameter(torch.tensor(2.0))

    def encode_image(self, images: Tensor, normalize: bool) -> Tensor:
        return images.mean((2, 3)) * self.logit_scale

    def encode_text(self, tokens: Tensor, normalize: bool) -> Tensor:
        return tokens.float() * self.logit_scale


class SmallWeights(ClipWeights):
    """Of a `SmallClip`, in no file."""

    def __init__(self) -> None:
        self.preparation, self.fingerprint = {"size": 8, "mean": [0.5] * 3, "std": [0.5] * 3}, "small"

    def read(self, tower: str, *, device: torch.device) -> nn.Module:
        return SmallClip().to(device)


def answers(device: str) -> dict[str, Any]:
    """What every judge and extractor gives for images and texts on the CPU."""
    torch.manual_seed(0)
    fairface = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 18))
    layers = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2048)).to(device)
    small = OpenClipModel(SmallWeights(), lambda texts: torch.ones(len(texts), 3).long(), name="small", device=device)
    shipped = load_clip("package:miniature/weights/clip")
    miniature = ClipModel(lambda: deepcopy(shipped.network).to(device), shipped.tokenizer)
    return {
        "fairface": FairFaceJudge(fairface, device=device)(IMAGES),
        "zero shot": ZeroShotJudge(small, prompts=CLASSES, templates=["{}"])(IMAGES),
        "inception": InceptionFeatures(OnDemand(lambda: layers), fingerprint="", device=device)(IMAGES),
        "small clip": [small.embed_images(IMAGES), small.embed_texts(["a face"])],
        "miniature clip": [miniature(IMAGES), miniature.embed_images(IMAGES), miniature.embed_texts(["a face"])],
    }


def test_judges_and_extractors_on_another_device_answer_on_the_cpu() -> None:
    expected = answers("cpu")
    with second_device() as device:
        found = answers(str(device))
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
