"""The attribution sweep: complete scores, whatever the probe, the tokens, the batches and where they start."""

import pytest
import torch
from torch import Tensor

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


def parts(kind: str = "linear", token: str = "position") -> tuple[TopKAutoencoder, Probe]:
    torch.manual_seed(0)
    sae = TopKAutoencoder(6, expansion=2, k=4, token=token, positions=4).eval()
    probe = LinearProbe(2, 2, 24) if kind == "linear" else MlpProbe(2, 2, 24, 5)
    for values in probe.buffers():
        values.normal_().mul_(0.3)
    return sae, probe


@torch.no_grad()
def sweep(sae: TopKAutoencoder, probe: Probe, batch: int = 12, start: Tensor | None = None) -> AttributionResult:
    module = AttributionModule(sae, probe, GENDER, IntegratedGradients())
    for step in range(2):
        pieces = [None] * 12 if start is None else start.split(batch)
        items = zip(MAPS.split(batch), LABELS.split(batch), pieces, strict=False)
        module.predict_step([LabelledMaps(maps, labels, step, before) for maps, labels, before in items], step)
    return module.result()


@pytest.mark.parametrize("token", ["position", "map"])
@pytest.mark.parametrize(("kind", "rounding"), [("linear", 1e-5), ("mlp", 1e-4)])
def test_scores_are_complete_and_do_not_depend_on_the_batches(kind: str, rounding: float, token: str) -> None:
    sae, probe = parts(kind, token)
    whole, split = sweep(sae, probe), sweep(sae, probe, batch=5)
    torch.testing.assert_close(whole.scores.scores, split.scores.scores, rtol=rounding, atol=rounding / 100)
    torch.testing.assert_close(whole.activation, split.activation)
    zero = sae.map_of_tokens(sae.b_dec.expand(len(MAPS) * (1 if token == "map" else 4), -1), MAPS)
    p, p_zero = (probe(h, 1).softmax(-1)[LABELS == 0, 0].mean() for h in (sae.reconstruct_map(MAPS), zero))
    assert sae.codes_of_map(MAPS).shape[2:] == ((1, 1) if token == "map" else (2, 2))
    torch.testing.assert_close(whole.scores.scores[0, 1].sum(), (p - p_zero).detach(), rtol=0, atol=1e-5)
    assert whole.completeness_gap < rounding and (p - p_zero).abs() > 1e-3


def test_scores_are_the_class_means_of_the_scorer() -> None:
    sae, probe = parts()
    head = AttributionModule(sae, probe, GENDER, IntegratedGradients()).head(1, MAPS.shape[2:])
    direct = IntegratedGradients()(head, sae.codes_of_map(MAPS), LABELS)
    found = sweep(sae, probe).scores.scores
    torch.testing.assert_close(found[0, 1], direct[LABELS == 0].mean(0).detach(), rtol=1e-5, atol=1e-7)


def test_a_baseline_is_where_the_scores_start_and_they_stay_complete() -> None:
    sae, probe = parts()
    start = MAPS.flip(0)
    result = sweep(sae, probe, start=start)
    p = [probe(sae.reconstruct_map(maps), 0).softmax(-1)[LABELS == 0, 0].mean() for maps in (MAPS, start)]
    torch.testing.assert_close(result.scores.scores[0, 0].sum(), (p[0] - p[1]).detach(), rtol=0, atol=1e-5)
    assert result.completeness_gap < 1e-5


def test_a_class_without_images_is_named() -> None:
    module = AttributionModule(*parts(), GENDER, IntegratedGradients())
    module.predict_step([LabelledMaps(MAPS, torch.ones(12, dtype=torch.int64), 0)], 0)
    with pytest.raises(ValueError, match=r"no image is judged \['female'"):
        module.result()
