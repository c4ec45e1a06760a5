"""Raw neurons as a dictionary: nothing is lost, nothing is trained."""

from pathlib import Path

import pytest
import torch

from difflens.sae.base import load_sae, save_sae
from difflens.sae.neurons import Neurons


def test_the_codes_are_what_lies_above_and_below_the_mean_and_give_the_activations_back(tmp_path: Path) -> None:
    neurons = Neurons(3)
    neurons.b_dec.data = torch.tensor([1.0, -1.0, 0.0])
    x = torch.tensor([[2.0, -3.0, 0.0]])
    assert neurons.encode_dense(x).tolist() == [[1, 0, 0, 0, 2, 0]]
    many = torch.randn(50, 3)
    assert torch.allclose(neurons.reconstruct(many), many, atol=1e-6)
    save_sae(neurons, tmp_path / "sae", spec={})
    assert torch.equal(load_sae(tmp_path / "sae").reconstruct(many), neurons.reconstruct(many))


def test_a_whole_map_is_no_token() -> None:
    assert Neurons(3, expansion=8, k=1).width == 6
    with pytest.raises(ValueError, match=r"leave sae\.token=position"):
        Neurons(3, token="map", positions=4)
