"""TopK codes, their decoding, and edits of whole maps."""

import pytest
import torch
from torch import Tensor

from difflens.sae.base import SparseAutoencoder
from difflens.sae.batch_topk import BatchTopKAutoencoder
from difflens.sae.codes import SparseCodes, decode_dense, decode_sparse
from difflens.sae.topk import TopKAutoencoder

KINDS = [TopKAutoencoder, BatchTopKAutoencoder]


def official_sae(official: dict[str, Tensor]) -> TopKAutoencoder:
    sae = TopKAutoencoder(24, expansion=4, k=5, centre=False)
    sae.load_state_dict({name: official[name] for name in ("w_enc", "b_enc", "w_dec", "b_dec")})
    return sae.eval().requires_grad_(False)


def random_sae(kind: type[SparseAutoencoder] = TopKAutoencoder, **settings: object) -> SparseAutoencoder:
    """An SAE all of whose tensors matter."""
    torch.manual_seed(0)
    sae = kind(8, **{"expansion": 4, "k": 3, **settings}).double()  # type: ignore[arg-type]
    for parameter in sae.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    for name, buffer in sae.named_buffers():
        if name == "threshold":
            buffer.fill_(0.4)
    return sae.eval().requires_grad_(False)


def test_birth_is_tied_and_unit_norm() -> None:
    sae = TopKAutoencoder(16, expansion=3, k=2)
    assert (sae.dim, sae.width) == (16, 48)
    assert torch.equal(sae.w_enc, sae.w_dec) and sae.w_enc.data_ptr() != sae.w_dec.data_ptr()
    torch.testing.assert_close(sae.decoder.norm(dim=1), torch.ones(48))
    assert not sae.b_enc.any() and not sae.b_dec.any()


def test_codes_are_those_of_the_released_code(official: dict[str, Tensor]) -> None:
    torch.testing.assert_close(official_sae(official).codes_of_map(official["h"]), official["codes"])


def test_edit_is_that_of_the_released_code_less_its_bias(official: dict[str, Tensor]) -> None:
    sae, latents = official_sae(official), official["edit_latents"]
    delta = (official["edit_ratio"] - 1) * official["codes"][:, latents]
    edited = sae.add_to_map(official["h"], delta, latents) + sae.b_dec[:, None, None]
    torch.testing.assert_close(edited, official["edit_official_p2"])


def test_centred_codes_against_a_token_by_token_reference() -> None:
    sae = random_sae()
    x = torch.randn(20, 8, dtype=torch.float64)
    for token, codes in zip(x, sae.encode_dense(x), strict=True):
        a = torch.stack([row @ (token - sae.b_dec) for row in sae.w_enc]) + sae.b_enc
        expected = torch.zeros_like(a)
        for latent in a.argsort(descending=True)[:3]:
            expected[latent] = max(float(a[latent]), 0.0)
        torch.testing.assert_close(codes, expected)
    torch.testing.assert_close(sae.reconstruct(x), sae.encode_dense(x) @ sae.w_dec + sae.b_dec)


def test_fewer_than_k_positive_activations_leave_the_rest_at_zero() -> None:
    sae = random_sae()
    sae.b_enc.fill_(-1e3)
    sae.b_enc[5] = 1e3
    codes = sae.encode_dense(torch.randn(4, 8, dtype=torch.float64))
    assert torch.equal((codes > 0).nonzero()[:, 1], torch.full((4,), 5))


@pytest.mark.parametrize("slots", [1, 3, 32])
def test_sparse_and_dense_decoding_agree_with_their_gradients(slots: int) -> None:
    torch.manual_seed(1)
    results = []
    a, decoder = torch.randn(16, 32, dtype=torch.float64), torch.randn(32, 6, dtype=torch.float64)
    for way in (decode_sparse, decode_dense):
        inputs = a.clone().requires_grad_(), decoder.clone().requires_grad_()
        values, indices = inputs[0].topk(slots, dim=1)
        out = way(SparseCodes(values.relu(), indices), inputs[1])
        results.append((out, *torch.autograd.grad(out.sin().sum(), inputs)))
    for sparse, dense in zip(*results, strict=True):
        torch.testing.assert_close(sparse, dense)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("token", ["position", "map"])
def test_codes_of_latents_are_channels_of_codes_of_map(kind: type[SparseAutoencoder], token: str) -> None:
    sae = random_sae(kind, token=token, positions=6)
    h, latents = torch.randn(3, 8, 2, 3, dtype=torch.float64), torch.tensor([7, 0, 31])
    codes = sae.codes_of_map(h)
    assert codes.shape == ((3, 32, 2, 3) if token == "position" else (3, 32, 1, 1))
    torch.testing.assert_close(sae.codes_of_latents(h, latents), codes[:, latents], rtol=0, atol=0)


def test_position_codes_stay_where_they_are() -> None:
    sae = random_sae()
    h = torch.randn(2, 8, 3, 4, dtype=torch.float64)
    torch.testing.assert_close(sae.codes_of_map(h)[1, :, 2, 1], sae.encode_dense(h[1, :, 2, 1][None])[0])
    torch.testing.assert_close(sae.reconstruct_map(h)[1, :, 2, 1], sae.reconstruct(h[1, :, 2, 1][None])[0])


@pytest.mark.parametrize("token", ["position", "map"])
def test_writing_the_change_of_codes_moves_the_map_by_the_change_of_reconstruction(token: str) -> None:
    sae = random_sae(token=token, positions=4)
    h, other = torch.randn(2, 3, 8, 2, 2, dtype=torch.float64).unbind(0)
    delta = sae.codes_of_map(other) - sae.codes_of_map(h)
    torch.testing.assert_close(sae.add_to_map(h, delta) - h, sae.reconstruct_map(other) - sae.reconstruct_map(h))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_neutral_edit_is_bit_exact_image_by_image(dtype: torch.dtype) -> None:
    sae = random_sae().float()
    h = torch.randn(3, 8, 2, 2).to(dtype)
    h[:, 0] = -0.0
    delta = torch.zeros(3, 2, 2, 2)
    delta[1] = 0.5
    edited = sae.add_to_map(h, delta, torch.tensor([4, 9]))
    assert edited.dtype == dtype
    for image in (0, 2):
        assert edited[image].numpy().tobytes() == h[image].numpy().tobytes()
    assert not torch.equal(edited[1], h[1])


def test_whole_map_is_one_token_of_the_paper_preset() -> None:
    sae = random_sae(token="map", positions=6)
    assert (sae.width, sae.dim) == (32, 48)
    h = torch.randn(2, 8, 2, 3, dtype=torch.float64)
    kernel = sae.w_enc.reshape(32, 8, 2, 3)
    a = torch.nn.functional.conv2d(h - sae.b_dec.reshape(8, 2, 3), kernel, sae.b_enc)
    torch.testing.assert_close(sae.pre_activations(sae.tokens_of_map(h)), a[:, :, 0, 0])
    assert torch.equal(sae.map_of_tokens(sae.tokens_of_map(h), h), h)


@pytest.mark.parametrize("kind", KINDS)
def test_folded_scale_gives_the_same_sae_of_raw_activations(kind: type[SparseAutoencoder]) -> None:
    sae, scale = random_sae(kind), 0.037
    x = torch.randn(50, 8, dtype=torch.float64) / scale
    codes, x_hat = sae.encode_dense(x * scale), sae.reconstruct(x * scale)
    sae.fold_input_scale(scale)
    assert codes.any()
    torch.testing.assert_close(sae.encode_dense(x), codes / scale)
    torch.testing.assert_close(sae.reconstruct(x), x_hat / scale)


def test_parallel_gradient_is_removed_and_nothing_else() -> None:
    sae = TopKAutoencoder(8, expansion=2, k=2)
    gradient = torch.randn(16, 8)
    sae.w_dec.grad = gradient.clone()
    sae.remove_parallel_gradient()
    removed = gradient - sae.w_dec.grad
    torch.testing.assert_close((sae.w_dec.grad * sae.w_dec).sum(1), torch.zeros(16), rtol=0, atol=1e-6)
    torch.testing.assert_close(removed, (removed * sae.w_dec).sum(1, keepdim=True) * sae.w_dec, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"k": 33}, "k=33 must lie in 1..32"),
        ({"k": 0}, "k=0 must lie"),
        ({"expansion": 0.0}, "leaves no latent"),
        ({"token": "patch"}, "'patch' is unknown"),
        ({"token": "map"}, "positions"),
    ],
)
def test_bad_settings_are_refused_in_one_line(settings: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words) as error:
        TopKAutoencoder(8, **{"expansion": 4, "k": 3, **settings})  # type: ignore[arg-type]
    assert "\n" not in str(error.value)


def test_a_map_of_another_site_is_refused() -> None:
    with pytest.raises(ValueError, match="reads 8 channels"):
        random_sae().codes_of_map(torch.zeros(1, 9, 2, 2))
