import lightning
import pytest
import torch

from difflens.attribution.scorers import IntegratedGradients
from difflens.probes.base import Probe
from difflens.probes.linear import LinearProbe
from difflens.probes.mlp import MlpProbe
from difflens.sae.topk import TopKAutoencoder
from difflens.training.attribution_module import AttributionModule, AttributionResult, LabelledMaps
from difflens.vocabulary import Attribute

GENDER = Attribute("gender", ("female", "male"))
MAPS = torch.randn(12, 6, 2, 2, generator=torch.Generator().manual_seed(1))
LABELS = torch.tensor([0, 1, 1] * 4)


@pytest.fixture
def parts() -> tuple[TopKAutoencoder, LinearProbe]:
    torch.manual_seed(0)
    sae = TopKAutoencoder(6, expansion=2, k=4).eval()
    probe = LinearProbe(2, 2, 24)
    probe.weight.normal_()
    probe.bias.normal_()
    return sae, probe


def sweep(parts: tuple[TopKAutoencoder, Probe], batch: int) -> AttributionResult:
    module = AttributionModule(*parts, GENDER, IntegratedGradients())
    loader = [
        [LabelledMaps(MAPS[i : i + batch], LABELS[i : i + batch], step) for i in range(0, 12, batch)]
        for step in range(2)
    ]
    trainer = lightning.Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False, inference_mode=False
    )
    trainer.predict(module, torch.utils.data.DataLoader(loader, batch_size=None), return_predictions=False)  # type: ignore[arg-type]
    return module.result()


def test_scores_do_not_depend_on_the_batches(parts: tuple[TopKAutoencoder, LinearProbe]) -> None:
    whole, split = sweep(parts, 12), sweep(parts, 5)
    torch.testing.assert_close(whole.scores.scores, split.scores.scores, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(whole.activation, split.activation)


def test_scores_are_the_class_means_of_the_scorer_and_complete(parts: tuple[TopKAutoencoder, LinearProbe]) -> None:
    result = sweep(parts, 12)
    sae, probe = parts
    module = AttributionModule(sae, probe, GENDER, IntegratedGradients())
    codes = sae.codes_of_map(MAPS)
    direct = IntegratedGradients()(module.head(1, MAPS.shape[2:]), codes, LABELS)
    torch.testing.assert_close(result.scores.scores[0, 1], direct[LABELS == 0].mean(0).detach(), rtol=1e-5, atol=1e-7)
    assert result.completeness_gap < 1e-5


def test_where_the_whole_map_is_one_token_scores_are_complete_too(parts: tuple[TopKAutoencoder, LinearProbe]) -> None:
    sae = TopKAutoencoder(6, expansion=2, k=4, token="map", positions=4).eval()
    result = sweep((sae, parts[1]), 5)
    codes, head = sae.codes_of_map(MAPS), parts[1](sae.reconstruct_map(MAPS), 1).softmax(-1)[LABELS == 0, 0]
    zero = parts[1](sae.map_of_tokens(sae.b_dec.expand(1, -1), MAPS[:1]), 1).softmax(-1)[0, 0]
    assert codes.shape == (12, 12, 1, 1) and result.completeness_gap < 1e-5
    torch.testing.assert_close(result.scores.scores[0, 1].sum(), (head - zero).mean().detach(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("token", ["position", "map"])
def test_through_a_probe_that_is_not_affine_scores_are_complete_too(token: str) -> None:
    torch.manual_seed(0)
    sae, probe = TopKAutoencoder(6, expansion=2, k=4, token=token, positions=4).eval(), MlpProbe(2, 2, 24, 5)
    for values in probe.buffers():
        values.normal_().mul_(0.3)
    whole, split = sweep((sae, probe), 12), sweep((sae, probe), 5)
    torch.testing.assert_close(whole.scores.scores, split.scores.scores, rtol=1e-4, atol=1e-6)
    read = [
        probe(h, 1).softmax(-1)[LABELS == 0, 0]
        for h in (
            sae.reconstruct_map(MAPS),
            sae.map_of_tokens(sae.b_dec.expand(len(MAPS) * (1 if token == "map" else 4), -1), MAPS),
        )
    ]
    torch.testing.assert_close(whole.scores.scores[0, 1].sum(), (read[0] - read[1]).mean().detach(), rtol=0, atol=1e-5)
    assert whole.completeness_gap < 1e-4


def test_a_class_without_images_is_named(parts: tuple[TopKAutoencoder, LinearProbe]) -> None:
    module = AttributionModule(*parts, GENDER, IntegratedGradients())
    module.predict_step([LabelledMaps(MAPS, torch.ones(12, dtype=torch.int64), 0)], 0)
    with pytest.raises(ValueError, match=r"no image is judged \['female'"):
        module.result()


def test_a_baseline_is_where_the_scores_start_and_they_stay_complete(
    parts: tuple[TopKAutoencoder, LinearProbe],
) -> None:
    sae, probe = parts
    module = AttributionModule(sae, probe, GENDER, IntegratedGradients())
    start = MAPS.flip(0)
    for step in range(2):
        module.predict_step([LabelledMaps(MAPS, LABELS, step, start)], step)
    result = module.result()
    head = module.head(0, MAPS.shape[2:])
    p = [head.logits(sae.codes_of_map(maps)).softmax(-1)[LABELS == 0, 0].mean() for maps in (MAPS, start)]
    torch.testing.assert_close(result.scores.scores[0, 0].sum(), (p[0] - p[1]).detach(), rtol=0, atol=1e-5)
    assert result.completeness_gap < 1e-5
