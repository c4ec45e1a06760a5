import pytest
import torch

from difflens.attribution.statistics import CodeStatistics
from difflens.methods.difflens import FeatureEdit, SingleFeature, selected_latents
from difflens.models.model import DiffusionModel
from difflens.probes.linear import LinearProbe
from difflens.sae.topk import TopKAutoencoder
from difflens.vocabulary import EVERY_CLASS, UNTOUCHED, Attribute, FeatureSet, GenerationPlan, PerImage, Site

GENDER = Attribute("gender", ("female", "male"))
FEATURES = FeatureSet(GENDER, {"female": (3, 7), "male": (5,)})
TARGETS = PerImage(torch.tensor([0, 1, UNTOUCHED]))


def autoencoder(width: int, *, k: int) -> TopKAutoencoder:
    torch.manual_seed(0)
    made = TopKAutoencoder(width, expansion=2, k=k)
    with torch.no_grad():
        made.b_dec.normal_()
    return made.requires_grad_(False).eval()


@pytest.fixture
def sae() -> TopKAutoencoder:
    return autoencoder(6, k=8)


H = torch.randn(3, 6, 2, 2, generator=torch.Generator().manual_seed(3))


def mitigation(sae: TopKAutoencoder, strength: tuple[float, float], **settings: object) -> FeatureEdit:
    generator = torch.Generator().manual_seed(5)
    statistics = CodeStatistics(
        torch.tensor([3, 5, 7]),
        torch.rand(2, 4, 3, 2, 2, generator=generator),
        torch.rand(4, 3, generator=generator) + 0.5,
    )
    edit = FeatureEdit(sae, FEATURES, statistics, site=Site(), **{"mode": "scale", **settings})  # type: ignore[arg-type]
    return edit.with_strength(torch.tensor(strength))  # type: ignore[return-value]


@pytest.fixture
def codes(sae: TopKAutoencoder) -> torch.Tensor:
    return sae.codes_of_latents(H, selected_latents(FEATURES))


def change(edit: FeatureEdit) -> torch.Tensor:
    return edit.delta(edit.read(H), H, 1, TARGETS)


def moved_by(
    edit: FeatureEdit, codes: torch.Tensor, step: int, target: torch.Tensor, shown: torch.Tensor | None = None
):
    return edit.change(codes, step, target, edit.strength_of(PerImage(target)), shown)


@pytest.mark.parametrize(("mode", "neutral"), [("scale", 1.0), ("add", 0.0), ("contrast", 0.0)])
def test_a_neutral_edit_changes_no_bit(sae: TopKAutoencoder, mode: str, neutral: float) -> None:
    edit = mitigation(sae, (neutral, neutral), mode=mode)
    assert edit.neutral == neutral
    for h in (H, H.bfloat16()):
        assert torch.equal(edit(h, 1, TARGETS), h)


def test_scaling_touches_the_target_classes_latents_alone(sae: TopKAutoencoder, codes: torch.Tensor) -> None:
    delta = change(mitigation(sae, (3.0, 5.0)))
    torch.testing.assert_close(delta[0], torch.stack([2 * codes[0, 0], 0 * codes[0, 1], 2 * codes[0, 2]]))
    torch.testing.assert_close(delta[1], torch.stack([0 * codes[1, 0], 4 * codes[1, 1], 0 * codes[1, 2]]))
    assert not delta[2].any()


def test_the_edit_is_the_decoded_change_without_bias(sae: TopKAutoencoder) -> None:
    edit = mitigation(sae, (3.0, 5.0))
    delta = change(edit)
    expected = H + torch.einsum("nlhw,ld->ndhw", delta, sae.decoder[[3, 5, 7]])
    torch.testing.assert_close(edit(H, 1, TARGETS), expected)
    assert torch.equal(edit(H, 1, TARGETS)[2], H[2])


def test_adding_and_clamping_speak_in_usual_levels(sae: TopKAutoencoder, codes: torch.Tensor) -> None:
    added = mitigation(sae, (2.0, 2.0), mode="add")
    level = added.statistics.level[1]
    torch.testing.assert_close(change(added)[0, 0], (2 * level[0]).expand(2, 2))
    fired = change(mitigation(sae, (2.0, 2.0), mode="add", places="fired"))
    torch.testing.assert_close(fired[0, 0], 2 * level[0] * (codes[0, 0] > 0))
    clamped = change(mitigation(sae, (2.0, 2.0), mode="clamp"))
    torch.testing.assert_close(codes[0, 2] + clamped[0, 2], (2 * level[2]).expand(2, 2))


def test_suppression_scales_the_other_classes_latents(sae: TopKAutoencoder, codes: torch.Tensor) -> None:
    delta = change(mitigation(sae, (1.0, 1.0), suppress=0.25))
    torch.testing.assert_close(delta[0, 1], -0.75 * codes[0, 1])
    torch.testing.assert_close(delta[1, 0], -0.75 * codes[1, 0])
    assert not delta[2].any()


def test_contrast_moves_by_the_classes_difference_and_never_below_zero(
    sae: TopKAutoencoder, codes: torch.Tensor
) -> None:
    edit = mitigation(sae, (2.0, 1.0), mode="contrast")
    mean = edit.statistics.mean[:, 1]
    expected = torch.maximum(2 * (mean[0] - mean[1]), -codes[0])
    torch.testing.assert_close(change(edit)[0], expected)
    assert (codes + change(edit))[:2].min() >= 0


def test_a_gate_spares_what_is_there_already(sae: TopKAutoencoder, codes: torch.Tensor) -> None:
    gate = LinearProbe(4, 2, H[0].numel())
    gate.bias[1] = torch.tensor([0.0, 2.0])
    there = torch.sigmoid(torch.tensor(2.0))
    edit = mitigation(sae, (3.0, 5.0), gate=gate)
    shown = gate(H, 1).softmax(-1)
    moved = moved_by(edit, codes, 1, torch.tensor([0, 1, 1]), shown)
    torch.testing.assert_close(moved[0, 0], 2 * there * codes[0, 0])
    torch.testing.assert_close(moved[1, 1], 4 * (1 - there) * codes[1, 1])
    assert torch.equal(mitigation(sae, (1.0, 1.0), gate=gate)(H, 1, TARGETS), H)


def test_contrast_starts_from_the_classes_the_gate_reads(sae: TopKAutoencoder) -> None:
    race = Attribute("race", ("a", "b", "c"))
    mean = torch.rand(3, 1, 2, 2, 2, generator=torch.Generator().manual_seed(7))
    usual = CodeStatistics(torch.tensor([3, 5]), mean, torch.ones(1, 2))
    features = FeatureSet(race, {"a": (3,), "b": (5,), "c": ()})
    edit = FeatureEdit(sae, features, usual, site=Site(), mode="contrast")
    edit = edit.with_strength(torch.tensor([1.0, 1.0, 2.0]))
    codes, targets = torch.full((2, 2, 2, 2), 100.0), torch.tensor([0, 2])
    surely = moved_by(edit, codes, 0, targets, torch.eye(3)[[1, 2]])
    torch.testing.assert_close(surely[0], mean[0, 0] - mean[1, 0])
    assert not surely[1].any()
    unsure = moved_by(edit, codes, 0, targets, torch.tensor([[0.5, 0.5, 0.0], [0.2, 0.3, 0.5]]))
    torch.testing.assert_close(unsure[1], 2 * (0.5 * mean[2, 0] - 0.2 * mean[0, 0] - 0.3 * mean[1, 0]))
    ungated = moved_by(edit, codes, 0, targets)
    torch.testing.assert_close(ungated[0], mean[0, 0] - mean[1:, 0].mean(0))


def test_the_official_protocol_gives_the_released_codes_edit(official: dict[str, torch.Tensor]) -> None:
    sae = TopKAutoencoder(24, expansion=4, k=5, centre=False)
    weights = {"w_enc": "w_enc", "b_enc": "b_enc", "w_dec": "w_dec", "b_dec": "b_dec"}
    sae.load_state_dict({name: official[key] for name, key in weights.items()})
    latents = tuple(official["edit_latents"].tolist())
    features = FeatureSet(GENDER, {"female": latents, "male": ()})
    nothing = CodeStatistics(torch.tensor(sorted(latents)), torch.zeros(2, 1, 3, 3, 3), torch.zeros(1, 3))
    ratio = official["edit_ratio"].expand(2)
    edit = FeatureEdit(sae.requires_grad_(False), features, nothing, site=Site(), mode="scale", protocol="official")
    edited = edit.with_strength(ratio)(official["h"], 0, PerImage(torch.zeros(6, dtype=torch.int64)))
    torch.testing.assert_close(edited, official["edit_official_p2"], rtol=0, atol=1e-5)


def test_modes_that_are_unknown_or_lack_a_gate_are_refused(sae: TopKAutoencoder) -> None:
    for mode, message in (("multiply", r"mitigation\.mode"), ("margin", r"mitigation\.gate=true")):
        with pytest.raises(ValueError, match=message):
            mitigation(sae, (1.0, 1.0), mode=mode)


CHOSEN = torch.tensor([3, 5, 7])
OWNER = torch.tensor([0, 1, 0])
SLOTS = PerImage(torch.tensor([0, 1, 2, UNTOUCHED]))
H4 = torch.randn(4, 6, 2, 2, generator=torch.Generator().manual_seed(3))


def single(strength: float) -> SingleFeature:
    torch.manual_seed(0)
    sae = TopKAutoencoder(6, expansion=2, k=8).requires_grad_(False).eval()
    return SingleFeature(mitigation(sae, (0.0, 0.0), mode="contrast"), OWNER, strength=strength)


def written(edit: SingleFeature, delta: torch.Tensor) -> torch.Tensor:
    return edit.whole.sae.add_to_map(H4, delta, CHOSEN)


def by_the_map(edit: SingleFeature) -> torch.Tensor:
    """Δz by the map of each latent's owner at step 1, unlimited."""
    delta = torch.zeros(4, 3, 2, 2)
    for image, slot in enumerate((0, 1, 2)):
        delta[image, slot] = edit.multiple * edit.whole.statistics.mean[OWNER[slot], 1, slot]
    return delta


def test_a_latent_is_raised_by_the_map_of_its_class() -> None:
    edit = single(6.0)
    made = edit(H4, 1, SLOTS)
    torch.testing.assert_close(made, written(edit, by_the_map(edit)))
    assert torch.equal(made[3], H4[3])


def test_a_latent_is_lowered_to_zero_and_no_further() -> None:
    edit = single(-6.0)
    codes = edit.whole.sae.codes_of_latents(H4, CHOSEN)
    limited = torch.maximum(by_the_map(edit), -codes)
    assert (limited != by_the_map(edit)).any() and (codes + limited).min() >= 0 and (limited < 0).any()
    torch.testing.assert_close(edit(H4, 1, SLOTS), written(edit, limited))


def test_an_image_in_which_the_latent_is_silent_is_not_lowered_at_all() -> None:
    edit = single(-6.0)
    silent = -10 * edit.whole.sae.decoder[CHOSEN].sum(0)[None, :, None, None].expand(1, 6, 2, 2)
    assert not edit.whole.sae.codes_of_latents(silent, CHOSEN).any()
    assert torch.equal(edit(silent, 1, PerImage(torch.tensor([1]))), silent)


def test_a_margin_is_reached_and_images_that_have_it_are_left() -> None:
    torch.manual_seed(0)
    wide = TopKAutoencoder(6, expansion=2, k=12).requires_grad_(False).eval()
    probe = LinearProbe(4, 2, 24)
    edit = mitigation(wide, (3.0, 3.0), mode="margin", gate=probe)
    # A probe that reads what the latents of the first class write less what those of the second do.
    rows = torch.einsum("lhw,ld->dhw", edit.statistics.mean[0, 1] - edit.statistics.mean[1, 1], wide.decoder[[3, 5, 7]])
    probe.weight[1] = torch.stack([rows.flatten(), -rows.flatten()])
    codes = 5.0 + torch.rand(3, 12, 2, 2)
    h = torch.einsum("nlhw,ld->ndhw", codes, wide.decoder) + wide.b_dec[:, None, None]
    before, edited = probe(h, 1), edit(h, 1, TARGETS)
    after, wanted = probe(edited, 1), float(torch.log(torch.tensor(3.0).expm1()))
    for row, target in enumerate((0, 1)):
        had, has = ((logits[row, target] - logits[row, 1 - target]) for logits in (before, after))
        assert float(has) == pytest.approx(max(float(had), wanted), abs=1e-3)
    assert torch.equal(edited[2], h[2])
    assert torch.equal(edit(edited, 1, TARGETS), edited) or bool((edit(edited, 1, TARGETS) - edited).abs().max() < 1e-3)


# The strengths of all classes act on every image at once.
EVERY_LATENT = torch.tensor([3, 5, 7, 11])
WIDE = torch.randn(3, 16, 4, 4, generator=torch.Generator().manual_seed(3))
ALL = PerImage(torch.full((3,), EVERY_CLASS))


@pytest.fixture
def wide() -> TopKAutoencoder:
    return autoencoder(16, k=16)


def everyone(wide: TopKAutoencoder, female: float, male: float, *, shared: bool = False, **settings: str):
    """`shared`: latent 5 belongs to both classes."""
    features = FeatureSet(GENDER, {"female": (3, 7, 5) if shared else (3, 7), "male": (5, 11)})
    nothing = CodeStatistics(EVERY_LATENT, torch.zeros(2, 5, 4, 4, 4), torch.full((5, 4), 2.0))
    strength = torch.tensor([female, male])
    edit = FeatureEdit(wide, features, nothing, site=Site(), **{"mode": "scale", "update": "symmetric", **settings})
    return edit.with_strength(strength)


class ScaledAtOnce:
    """The reference: every selected code times its factor, decoded and added."""

    site, update = Site(), "symmetric"

    def __init__(self, sae: TopKAutoencoder, factors: torch.Tensor) -> None:
        self.sae, self.factors = sae, factors

    def active(self, step: int, steps: int) -> bool:
        return True

    def __call__(self, h: torch.Tensor, step: int, images: PerImage) -> torch.Tensor:
        codes = self.sae.codes_of_latents(h.float(), EVERY_LATENT)
        return self.sae.add_to_map(h, (self.factors[:, None, None] - 1) * codes, EVERY_LATENT)


@pytest.mark.parametrize(("female", "male"), [(1.0, 1.43), (0.5, 3.0)])
def test_the_edit_scales_the_features_of_all_classes_at_once_bit_by_bit(
    wide: TopKAutoencoder, female: float, male: float
) -> None:
    factors = torch.tensor([female, male, female, male])
    expected = ScaledAtOnce(wide, factors)(WIDE, 1, ALL)
    assert torch.equal(everyone(wide, female, male)(WIDE, 1, ALL), expected)
    assert not torch.equal(expected, WIDE)


def test_images_are_those_of_all_features_scaled_bit_by_bit(model: DiffusionModel, wide: TopKAutoencoder) -> None:
    edit = everyone(wide, 1.0, 4.0)
    ids = torch.arange(6)
    plan = GenerationPlan(7, ids, torch.full((6,), EVERY_CLASS))

    def images(change: object) -> torch.Tensor:
        return torch.cat([batch.images for batch in model.sample(plan, method=change)])  # type: ignore[arg-type]

    made = images(edit)
    assert torch.equal(made, images(ScaledAtOnce(wide, torch.tensor([1.0, 4.0, 1.0, 4.0]))))
    assert not torch.equal(made, images(None))


def test_a_latent_of_two_classes_is_scaled_by_both_and_raised_by_both(wide: TopKAutoencoder) -> None:
    factors = torch.tensor([2.0, 6.0, 2.0, 3.0])
    scaled = ScaledAtOnce(wide, factors)(WIDE, 1, ALL)
    torch.testing.assert_close(everyone(wide, 2.0, 3.0, shared=True)(WIDE, 1, ALL), scaled)
    raised = everyone(wide, 2.0, 3.0, shared=True, mode="add")(WIDE, 1, ALL)
    delta = 2 * torch.tensor([2.0, 5.0, 2.0, 3.0])[None, :, None, None].expand(3, 4, 4, 4)
    torch.testing.assert_close(raised, wide.add_to_map(WIDE, delta, EVERY_LATENT))


def test_neutral_strengths_and_untouched_images_change_no_bit(wide: TopKAutoencoder) -> None:
    assert torch.equal(everyone(wide, 1.0, 1.0)(WIDE, 1, ALL), WIDE)
    targets = PerImage(torch.tensor([EVERY_CLASS, UNTOUCHED, EVERY_CLASS]))
    assert torch.equal(everyone(wide, 1.0, 9.0)(WIDE, 1, targets)[1], WIDE[1])
    assert everyone(wide, 1.0, 9.0).with_strength(torch.ones(2)).neutral == 1
    assert torch.equal(everyone(wide, 1.0, 9.0).with_strength(torch.ones(2))(WIDE, 1, ALL), WIDE)


def test_under_the_official_protocol_every_image_gets_the_bias_once(wide: TopKAutoencoder) -> None:
    plain, official = (everyone(wide, 1.0, 1.43, protocol=name)(WIDE, 1, ALL) for name in ("difflens", "official"))
    torch.testing.assert_close(official - plain, wide.b_dec[None, :, None, None].expand_as(WIDE))
