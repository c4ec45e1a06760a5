import pytest
import torch

from difflens.probes.base import balanced_split
from difflens.probes.linear import fit_linear_probe
from difflens.vocabulary import Attribute

AGE = Attribute("age", ("young", "adult", "old"))


def maps_and_labels(n: int = 300) -> tuple[torch.Tensor, torch.Tensor]:
    """Noise at step 0; at step 1 one direction per class added to it."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.multinomial(torch.tensor([0.5, 0.3, 0.2]), n, replacement=True, generator=generator)
    noise = torch.randn(2, n, 4, 3, 3, generator=generator)
    noise[1, :, :3, 0, 0] += 6 * torch.nn.functional.one_hot(labels, 3)
    return noise, labels


def test_the_probe_reads_what_is_there_and_chance_where_nothing_is() -> None:
    maps, labels = maps_and_labels()
    fitted = fit_linear_probe(lambda step: maps[step], labels, AGE, steps=2)
    assert fitted.accuracy[1] > 0.95
    assert fitted.accuracy[0] < 0.6
    assert fitted.images_per_class == round(0.8 * int(torch.bincount(labels).min()))


def test_logits_are_affine_in_the_raw_activations() -> None:
    maps, labels = maps_and_labels()
    probe = fit_linear_probe(lambda step: maps[step], labels, AGE, steps=2).probe
    a, b = maps[1][:5], maps[1][5:10]
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
