"""Leakage against planted flips, shifts and logit changes."""

import math

import pytest
import torch
from torch import Tensor

from difflens.metrics.functional import editing_precision, flip_rate, share_shift
from difflens.metrics.leakage import Leakage

CLASSES = {"gender": ("f", "m"), "age": ("young", "adult", "old"), "hair": ("dark", "light")}
IDS = torch.tensor([11, 4, 8, 2, 30, 7])
EDITED = torch.tensor([True, True, True, True, False, False])


def before() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(6, len(names), generator=generator).double() for name, names in CLASSES.items()}


def after() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {name: x + EDITED[:, None] * torch.randn(x.shape, generator=generator) for name, x in before().items()}


def measure(new: dict[str, Tensor], *, order: Tensor, batch: int = 6, **options: str) -> Leakage:
    metric = Leakage("gender", before(), IDS, classes=CLASSES, **options)  # type: ignore[arg-type]
    for rows in order.split(batch):
        metric.update({name: x[rows] for name, x in new.items()}, IDS[rows], edited=EDITED[rows])
    return metric


def test_planted_changes_are_reported_exactly() -> None:
    old = {"gender": torch.tensor([[1.0, 0.0]] * 6), "age": torch.tensor([[1.0, 0.0, 0.0]] * 6)}
    new = {name: x.clone() for name, x in old.items()}
    new["gender"][:4] = torch.tensor([-3.0, 4.0])
    new["age"][0] = torch.tensor([0.0, 0.0, 2.0])
    metric = Leakage("gender", old, IDS, classes={name: CLASSES[name] for name in old})
    metric.update(new, IDS, edited=EDITED)
    result = metric.compute()
    age = result.attributes["age"]
    assert list(result.attributes) == ["age"] and (result.n, result.edited, result.missing) == (6, 4, 0)
    assert age.flip_rate == pytest.approx(1 / 6) and age.flip_rate_edited == pytest.approx(1 / 4)
    assert age.shift == pytest.approx({"young": -1 / 6, "adult": 0, "old": 1 / 6})
    # Mean |Δ| of the target's logits is 4·8/12, of the other's 3/18.
    assert age.editing_precision == pytest.approx(16) == result.editing_precision


def test_metric_equals_the_pure_functions_for_any_order_and_batches() -> None:
    old, new = before(), after()
    order = torch.tensor([5, 0, 3, 2, 4, 1])
    result = measure(new, order=order, batch=2).compute()
    change = {name: new[name] - old[name] for name in CLASSES}
    others = torch.cat([change["age"], change["hair"]], dim=1)
    assert result.editing_precision == pytest.approx(float(editing_precision(change["gender"], others)), rel=1e-12)
    for name in ("age", "hair"):
        a, b = old[name].argmax(-1), new[name].argmax(-1)
        found = result.attributes[name]
        assert found.flip_rate == pytest.approx(float(flip_rate(a, b)))
        assert found.flip_rate_edited == pytest.approx(float(flip_rate(a[EDITED], b[EDITED])))
        assert [*found.shift.values()] == pytest.approx(share_shift(a, b, classes=len(CLASSES[name])).tolist())
        assert found.editing_precision == pytest.approx(
            float(editing_precision(change["gender"], change[name])), rel=1e-12
        )
    assert any(found.flip_rate > 0 for found in result.attributes.values())


def test_untouched_images_leave_the_precision_as_it_is() -> None:
    rows = EDITED.nonzero()[:, 0]
    old, new = before(), after()
    metric = Leakage("gender", {name: x[rows] for name, x in old.items()}, IDS[rows], classes=CLASSES)
    metric.update({name: x[rows] for name, x in new.items()}, IDS[rows], edited=EDITED[rows])
    assert metric.compute().editing_precision == pytest.approx(
        measure(new, order=torch.arange(6)).compute().editing_precision
    )


def test_an_identity_edit_leaks_nothing() -> None:
    result = measure(before(), order=torch.arange(6)).compute()
    assert all(found.flip_rate == found.flip_rate_edited == 0 for found in result.attributes.values())
    assert math.isnan(result.editing_precision)


def test_merged_ranks_equal_one_process() -> None:
    new, ranks = after(), [measure(after(), order=rows) for rows in (torch.tensor([0, 4, 2]), torch.tensor([1, 3, 5]))]
    ranks[0].merge_state(ranks[1])
    merged, whole = ranks[0].compute(), measure(new, order=torch.arange(6)).compute()
    assert merged.attributes["age"][:3] == whole.attributes["age"][:3]
    assert merged.editing_precision == pytest.approx(whole.editing_precision, rel=1e-13)


def test_pairs_without_a_face_are_counted_or_refused() -> None:
    new = {name: x.clone() for name, x in after().items()}
    for x in new.values():
        x[1] = math.nan
    with pytest.raises(ValueError, match="no face in 1 of 6"):
        measure(new, order=torch.arange(6))
    result = measure(new, order=torch.arange(6), missing="count").compute()
    assert (result.n, result.edited, result.missing) == (5, 3, 1)
    assert math.isfinite(result.editing_precision)


def test_incomplete_input_is_refused() -> None:
    with pytest.raises(ValueError, match="'race'"):
        Leakage("race", before(), IDS, classes=CLASSES)
    with pytest.raises(ValueError, match="'hair'"):
        measure({name: x for name, x in after().items() if name != "hair"}, order=torch.arange(6))
    with pytest.raises(ValueError, match="no counterpart"):
        measure(after(), order=torch.arange(6)).update(after(), IDS + 1, edited=EDITED)
    with pytest.raises(ValueError, match="never given"):
        measure(after(), order=torch.arange(3)).compute()
