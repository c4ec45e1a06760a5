"""Probes read what is there, chance where nothing is, and come back from disk as what they were."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from difflens.probes.base import FILE, ProbeFit, balanced_split, load_probe, save_probe
from difflens.probes.linear import LinearProbe, fit_linear_probe
from difflens.probes.mlp import MlpProbe, fit_mlp_probe
from difflens.vocabulary import Attribute

GENDER, AGE = Attribute("gender", ("female", "male")), Attribute("age", ("young", "adult", "old"))


def exclusive_or(n: int = 400) -> tuple[torch.Tensor, torch.Tensor]:
    """The class is the sign of a product of two channels: nothing that a linear probe reads."""
    generator = torch.Generator().manual_seed(0)
    maps = 3 + 0.2 * torch.randn(n, 3, 2, 2, generator=generator)
    signs = torch.randint(2, (n, 2), generator=generator) * 2 - 1
    maps[:, :2, 0, 0] += signs
    return maps, (signs.prod(1) > 0).long()


def test_a_hidden_layer_reads_what_no_linear_probe_does() -> None:
    maps, labels = exclusive_or()
    linear = fit_linear_probe(lambda _: maps, labels, GENDER, steps=1)
    hidden = fit_mlp_probe(lambda _: maps, labels, GENDER, steps=1, hidden=16, l2=1e-3, iterations=100)
    assert linear.accuracy[0] < 0.7 and hidden.accuracy[0] > 0.95
    assert linear.probe.affine_layer(0) is not None and hidden.probe.affine_layer(0) is None


@pytest.mark.parametrize("fit", [fit_linear_probe, fit_mlp_probe])
def test_a_probe_is_fitted_alike_twice_and_comes_back_from_disk_as_what_it_was(fit, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    maps, labels = exclusive_or(60)
    fitted, again = (fit(lambda _: maps, labels, GENDER, steps=2, iterations=3) for _ in range(2))
    assert torch.equal(fitted.probe(maps, 0), again.probe(maps, 0))
    save_probe(fitted, tmp_path)
    probe, accuracy = load_probe(tmp_path)
    assert type(probe) is type(fitted.probe) and probe.steps == 2
    assert torch.equal(probe(maps, 1), fitted.probe(maps, 1)) and torch.equal(accuracy, fitted.accuracy)


def test_a_foreign_class_is_refused(tmp_path: Path) -> None:
    save_probe(ProbeFit(LinearProbe(2, 2, 12), torch.zeros(2, dtype=torch.float64), 5), tmp_path)
    tensors = load_file(tmp_path / FILE)
    for name in ("os.path", "difflens.vocabulary.Attribute"):
        save_file(tensors, tmp_path / FILE, metadata={"probe": json.dumps({"class": name, "settings": {}})})
        with pytest.raises(ValueError, match="is no Probe"):
            load_probe(tmp_path)


def test_a_hidden_layer_needs_units() -> None:
    with pytest.raises(ValueError, match=r"probe\.hidden must be a whole number of at least 1, got 0"):
        MlpProbe(1, 2, 12, 0)


def maps_and_labels(n: int = 300) -> tuple[torch.Tensor, torch.Tensor]:
    """Noise at step 0; at step 1 one direction per class added to it."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.multinomial(torch.tensor([0.5, 0.3, 0.2]), n, replacement=True, generator=generator)
    noise = torch.randn(2, n, 4, 3, 3, generator=generator)
    noise[1, :, :3, 0, 0] += 6 * torch.nn.functional.one_hot(labels, 3)
    return noise, labels


def test_logits_are_affine_in_raw_activations_and_read_what_is_there_and_chance_where_nothing_is() -> None:
    maps, labels = maps_and_labels()
    fitted = fit_linear_probe(lambda step: maps[step], labels, AGE, steps=2)
    assert fitted.accuracy[1] > 0.95 and fitted.accuracy[0] < 0.6
    assert fitted.images_per_class == round(0.8 * int(torch.bincount(labels).min()))
    probe, a, b = fitted.probe, maps[1][:5], maps[1][5:10]
    middle = probe(0.5 * a + 0.5 * b, 1)
    torch.testing.assert_close(middle, 0.5 * probe(a, 1) + 0.5 * probe(b, 1), rtol=1e-4, atol=1e-4)
    assert (probe(maps[1], 1).argmax(-1) == labels).double().mean() > 0.95


def test_the_split_is_balanced_disjoint_and_seeded() -> None:
    labels = torch.tensor([0] * 50 + [1] * 20 + [2] * 10)
    train, test = balanced_split(labels, AGE, held_out=0.2, seed=1)
    assert torch.bincount(labels[train]).tolist() == [8, 8, 8]
    assert torch.bincount(labels[test]).tolist() == [2, 2, 2]
    assert not set(train.tolist()) & set(test.tolist())


def test_a_class_without_images_is_named() -> None:
    with pytest.raises(ValueError, match="'old'"):
        balanced_split(torch.tensor([0, 1] * 20), AGE, held_out=0.2, seed=0)
