"""A saved SAE, or the raw neurons in its place, comes back bit by bit, or not at all."""

import json
from pathlib import Path

import pytest
import torch

from difflens.sae.base import SparseAutoencoder, load_sae, save_sae
from difflens.sae.batch_topk import BatchTopKAutoencoder
from difflens.sae.jumprelu import JumpReLUAutoencoder
from difflens.sae.matryoshka import MatryoshkaAutoencoder
from difflens.sae.neurons import Neurons
from difflens.sae.topk import TopKAutoencoder


def trained(kind: type[SparseAutoencoder]) -> SparseAutoencoder:
    sae = kind(6, expansion=3, k=2, centre=False, token="map", positions=4)  # type: ignore[call-arg]
    for parameter in sae.parameters():
        parameter.data.normal_()
    sae.update_statistics(sae.encode(torch.randn(32, 24)))
    return sae.eval()


@pytest.mark.parametrize("kind", [TopKAutoencoder, BatchTopKAutoencoder, MatryoshkaAutoencoder, JumpReLUAutoencoder])
def test_loading_is_bit_identical_and_draws_no_random_number(kind: type[SparseAutoencoder], tmp_path: Path) -> None:
    sae = trained(kind)
    save_sae(sae, tmp_path / "sae", spec={"site": "mid_block"})
    generator = torch.get_rng_state()
    loaded = load_sae(tmp_path / "sae")
    assert torch.equal(torch.get_rng_state(), generator)
    assert type(loaded) is kind and not loaded.training and loaded.settings() == sae.settings()
    for name, tensor in sae.state_dict().items():
        assert loaded.state_dict()[name].numpy().tobytes() == tensor.numpy().tobytes()
    h = torch.randn(5, 6, 2, 2)
    assert torch.equal(loaded.codes_of_map(h), sae.codes_of_map(h))
    assert torch.equal(loaded.reconstruct_map(h), sae.reconstruct_map(h))
    assert all(isinstance(parameter, torch.nn.Parameter) for parameter in (loaded.w_enc, loaded.b_dec))
    assert json.loads((tmp_path / "sae" / "spec.json").read_text())["site"] == "mid_block"


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    save_sae(trained(TopKAutoencoder), tmp_path, spec={})
    with pytest.raises(ValueError, match="already holds an SAE"):
        save_sae(trained(TopKAutoencoder), tmp_path, spec={})


def test_a_flipped_bit_is_noticed(tmp_path: Path) -> None:
    save_sae(trained(TopKAutoencoder), tmp_path, spec={})
    content = bytearray((tmp_path / "sae.safetensors").read_bytes())
    content[-3] ^= 1
    (tmp_path / "sae.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match="differs from what was written"):
        load_sae(tmp_path)


def test_a_foreign_class_is_not_imported(tmp_path: Path) -> None:
    save_sae(trained(TopKAutoencoder), tmp_path, spec={})
    spec = json.loads((tmp_path / "spec.json").read_text())
    spec["autoencoder"]["class"] = "antigravity.Sae"
    (tmp_path / "spec.json").write_text(json.dumps(spec))
    with pytest.raises(ValueError, match=r"no SparseAutoencoder of difflens; .* set DIFFLENS_ALLOW_TARGETS"):
        load_sae(tmp_path)


def test_weights_that_are_not_finite_are_refused_by_name(tmp_path: Path) -> None:
    sae = trained(TopKAutoencoder)
    sae.b_enc.data[3] = torch.nan
    save_sae(sae, tmp_path, spec={})
    with pytest.raises(ValueError, match="NaN or infinity in b_enc"):
        load_sae(tmp_path)


def test_an_empty_folder_holds_no_sae(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no SAE"):
        load_sae(tmp_path)


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
