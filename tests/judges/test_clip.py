"""CLIP comes from open_clip with trained weights or not at all, and judges without labels."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from open_clip import factory, pretrained
from open_clip.transformer import QuickGELU
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from difflens.judges import clip as module
from difflens.judges.clip import OpenClipModel, _plain, load_open_clip
from difflens.judges.faces import as_photographs
from difflens.judges.protocol import Clip, Judge
from difflens.judges.zero_shot import ZeroShotJudge
from difflens.miniature.clip import load_clip
from difflens.models.base import weights_fingerprint
from difflens.store.fingerprints import fingerprint

TINY = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A model of open_clip with a tag of its own, known for the length of a test."""
    configs = dict(factory._MODEL_CONFIGS)
    (tmp_path / "tiny-test.json").write_text(json.dumps(TINY))
    open_clip.add_model_config(tmp_path / "tiny-test.json")
    tag = {"hf_hub": "nobody/tiny/", "quick_gelu": True, "mean": (0.1, 0.2, 0.3), "interpolation": "bilinear"}
    monkeypatch.setitem(pretrained._PRETRAINED, "tiny-test", {"faces": tag})
    yield "tiny-test"
    factory._MODEL_CONFIGS.clear()
    factory._MODEL_CONFIGS.update(configs)


def random_weights(model: str, path: Path, *, half: bool = False) -> nn.Module:
    """An untrained network of the architecture, its weights also in a file."""
    torch.manual_seed(0)
    network = open_clip.create_model(model).eval()
    save_file({k: (v.half() if half else v).contiguous() for k, v in network.state_dict().items()}, path)
    return network


def test_a_tags_file_is_read_without_a_word_and_with_the_tags_activation_and_preparation(
    tiny: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, recwarn: pytest.WarningsRecorder
) -> None:
    network = random_weights(tiny, tmp_path / "tiny-test-faces.safetensors")
    caplog.clear()
    recwarn.clear()
    clip = load_open_clip(tiny, pretrained="faces", folder=str(tmp_path))
    assert not caplog.records and not recwarn.list
    assert clip.name == "tiny-test faces" and clip.network.visual.preprocess_cfg["mean"] == (0.1, 0.2, 0.3)
    assert isinstance(clip.network.visual.transformer.resblocks[0].mlp.gelu, QuickGELU)
    by_name = load_open_clip(tiny, pretrained=str(tmp_path / "tiny-test-faces.safetensors"), folder="unused")
    images = torch.rand(5, 3, 48, 40)
    own = open_clip.image_transform(32, is_train=False)
    pixels = [Image.fromarray((x.permute(1, 2, 0) * 255).round().byte().numpy()) for x in images]
    with torch.no_grad():
        expected = network.encode_image(torch.stack([own(p) for p in pixels]), normalize=True)
        texts = network.encode_text(open_clip.get_tokenizer(tiny)(["a man", "a woman"]), normalize=True)
    assert torch.allclose(by_name.embed_images(images), expected, atol=1e-6)
    assert not torch.allclose(clip.embed_images(images), expected, atol=1e-3)
    assert torch.allclose(by_name.embed_texts(["a man", "a woman"]), texts, atol=1e-6)
    assert clip.fingerprint != by_name.fingerprint
    judge = ZeroShotJudge(clip, prompts={"gender": {"female": ["a woman"], "male": ["a man"]}}, templates=["a {}"])
    assert judge(images)["gender"].shape == (5, 2)


def test_embeddings_do_not_depend_on_the_batches(tiny: str, tmp_path: Path) -> None:
    random_weights(tiny, tmp_path / "weights.safetensors")
    small, large = (
        load_open_clip(tiny, pretrained=str(tmp_path / "weights.safetensors"), folder="", batch=n) for n in (2, 64)
    )
    images = torch.rand(5, 3, 32, 32)
    assert torch.allclose(small.embed_images(images), large.embed_images(images), atol=1e-6)
    assert torch.allclose(small.embed_texts(["a", "b", "c"]), large.embed_texts(["a", "b", "c"]), atol=1e-6)


@pytest.mark.parametrize("kind", ["in full", "in half", "miniature"])
def test_pixels_are_embedded_as_photographs_are_and_with_gradients(tiny: str, tmp_path: Path, kind: str) -> None:
    if kind == "miniature":
        clip: Clip = load_clip("package:miniature/weights/clip")
    else:
        random_weights(tiny, tmp_path / "weights.safetensors", half=kind == "in half")
        clip = load_open_clip(tiny, pretrained=str(tmp_path / "weights.safetensors"), folder="")
    # Of 8 bits, as photographs are.
    images = (torch.rand(3, 3, 32, 32) * 255).round() / 255
    expected, pixels = clip.embed_images(images), images.clone().requires_grad_()
    found = clip.embed_pixels(pixels)
    assert torch.allclose(found, expected, atol=1e-5)
    direction = torch.randn_like(expected[0])
    (found @ direction).sum().backward()
    assert pixels.grad is not None
    # Along its gradient a score rises by the gradient's own length.
    step = 1e-2 * pixels.grad / pixels.grad.norm()
    with torch.no_grad():
        rise = ((clip.embed_pixels(images + step) - clip.embed_pixels(images - step)) @ direction).sum() / 2e-2
    assert float(rise) == pytest.approx(float(pixels.grad.norm()), rel=0.05)
    assert torch.allclose(clip.embed_images(images), expected, atol=1e-6)


def halved(model: str, path: Path) -> None:
    """Weights of half precision in a file of full precision, as the hub has OpenAI's."""
    network = random_weights(model, path)
    save_file({k: v.half().float().contiguous() for k, v in network.state_dict().items()}, path)


@pytest.mark.parametrize("loses", [False, True])
def test_one_tower_is_held_narrowly_where_that_loses_nothing_and_gives_the_same_bits(
    tiny: str, tmp_path: Path, loses: bool
) -> None:
    path = tmp_path / "weights.safetensors"
    (random_weights if loses else halved)(tiny, path)
    clip = load_open_clip(tiny, pretrained=str(path), folder="")
    whole = open_clip.create_model(tiny, pretrained=str(path)).eval()
    assert clip.fingerprint == fingerprint(
        {"weights": weights_fingerprint(whole), "preparation": _plain(whole.visual.preprocess_cfg), "name": clip.name}
    )
    photographs = as_photographs(torch.rand(3, 3, 48, 40))
    with torch.no_grad():
        pixels = torch.stack([clip._prepare(photograph) for photograph in photographs])
        expected = whole.encode_image(pixels, normalize=True)
        texts = whole.encode_text(clip.tokenizer(["a man"]), normalize=True)
    kept = clip.network.visual.transformer.resblocks[0].mlp.c_fc.weight
    for _ in range(2):
        assert torch.equal(clip.embed_photographs(photographs), expected)
        assert kept.dtype == (torch.float32 if loses else torch.float16)
    assert clip.network.token_embedding.weight.numel() == 0
    assert torch.equal(clip.embed_texts(["a man"]), texts) and clip.text_network.visual.proj.numel() == 0
    assert clip.scale == whole.logit_scale.exp().item()
    clip.free()
    assert torch.equal(clip.embed_photographs(photographs), expected)


@pytest.mark.filterwarnings("ignore")
def test_openais_archives_and_plain_checkpoints_are_read(tiny: str, tmp_path: Path) -> None:
    network = random_weights(tiny, tmp_path / "weights.safetensors").half()
    network.register_buffer("attn_mask", None)  # no tensor of its own in OpenAI's
    scripted = torch.jit.trace_module(
        network.float(), {"encode_image": torch.zeros(1, 3, 32, 32)}, check_trace=False
    ).half()
    scripted.save(str(tmp_path / "openai.pt"))
    torch.save({"state_dict": network.state_dict()}, tmp_path / "plain.pt")
    images = torch.rand(2, 3, 32, 32)
    found = [
        load_open_clip(tiny, pretrained=str(tmp_path / name), folder="").embed_images(images)
        for name in ("openai.pt", "plain.pt")
    ]
    assert found[0].std() > 0 and torch.equal(*found)


class Harm:
    """Leaves a file behind where it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.trace,)


@pytest.mark.parametrize("key", ["state_dict", "optimizer"])
def test_a_pt_file_runs_nothing(tiny: str, tmp_path: Path, key: str) -> None:
    network = random_weights(tiny, tmp_path / "weights.safetensors")
    trace, path = tmp_path / "was here", tmp_path / "weights.pt"
    torch.save({"state_dict": network.state_dict()} | {key: Harm(trace)}, path)
    with pytest.raises(ValueError, match=r"holds no weights of open_clip's tiny-test.*[Ww]eights.only") as caught:
        load_open_clip(tiny, pretrained=str(path), folder="")
    assert not trace.exists() and "\n" not in str(caught.value)


def test_weights_that_are_absent_are_never_made_up(tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    for model, tag in (("ViT-L-14", "openai"), (tiny, "faces")):
        with pytest.raises(
            ValueError, match=rf"{model}-{tag}\.safetensors' or in the hub.*hf download .*download=true"
        ):
            load_open_clip(model, pretrained=tag, folder=str(tmp_path))
    with pytest.raises(ValueError, match=r"no file at 'nowhere'.*openai"):
        load_open_clip("ViT-L-14", pretrained="nowhere", folder=str(tmp_path))
    with pytest.raises(ValueError, match="no model 'ViT-Z'"):
        load_open_clip("ViT-Z", pretrained="openai", folder=str(tmp_path))
    with pytest.raises(ValueError, match=r"files of the hub; set download=true"):
        load_open_clip("ViT-B-16-SigLIP", pretrained="webli", folder=str(tmp_path))


def test_the_hubs_cache_is_looked_into(tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    random_weights(tiny, tmp_path / "cached.safetensors")
    cached = {("nobody/tiny", "open_clip_model.safetensors"): str(tmp_path / "cached.safetensors")}
    monkeypatch.setattr(module, "try_to_load_from_cache", lambda *key: cached.get(key))
    assert load_open_clip(tiny, pretrained="faces", folder=str(tmp_path)).name == "tiny-test faces"


def test_files_that_are_not_the_models_are_refused_on_one_line(tiny: str, tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    network = random_weights(tiny, path)
    with pytest.raises(ValueError, match="SHA-256"):
        load_open_clip(tiny, pretrained=str(path), folder="", sha256="0" * 64)
    state = {key: value.contiguous() for key, value in network.state_dict().items() if key != "visual.proj"}
    save_file(state, path)
    for content in (None, b"no tensors at all"):
        if content:
            path.write_bytes(content)
        with pytest.raises(ValueError, match="holds no weights of open_clip's tiny-test") as caught:
            load_open_clip(tiny, pretrained=str(path), folder="")
        assert "\n" not in str(caught.value)


class Planted(OpenClipModel):
    """Embeds an image as its mean colour and a text as what it is told."""

    texts: dict[str, Tensor]

    def __init__(self, texts: dict[str, list[float]]) -> None:
        self.texts = {text: torch.tensor(values).float() for text, values in texts.items()}
        self.name, self.fingerprint, self.batch = "planted", "0", 2

    @property
    def scale(self) -> float:
        return 10.0

    def embed_texts(self, texts: list[str]) -> Tensor:
        return torch.stack([self.texts[text] for text in texts])

    def embed_photographs(self, photographs: list[Image.Image]) -> Tensor:
        colours = torch.tensor([photograph.getpixel((0, 0)) for photograph in photographs]).float()
        return colours / colours.norm(dim=1, keepdim=True)


class NotBlue:
    """Finds no face in blue images."""

    name = "not blue"

    def __call__(self, image: Image.Image) -> Image.Image | None:
        return None if image.getpixel((0, 0)) == (0, 0, 255) else image


def test_a_class_is_the_mean_of_its_prompts_in_every_template() -> None:
    clip = Planted({"a man": [1, 0, 0], "one man": [1, 0, 0], "a boy": [0, 1, 0], "one boy": [0, 1, 0],
                    "a girl": [0, 0, 1], "one girl": [0, 0.6, 0.8]})  # fmt: skip
    prompts = {"gender": {"male": ["man", "boy"], "female": ["girl"]}}
    judge = ZeroShotJudge(clip, prompts=prompts, templates=["a {}", "one {}"], faces=NotBlue())
    assert isinstance(judge, Judge) and judge.classes == {"gender": ("male", "female")}
    images = torch.eye(3)[[0, 1, 2], :, None, None].expand(-1, -1, 2, 2)
    logits = judge(images)["gender"]
    female = torch.tensor([0, 0.3, 0.9]) / torch.tensor([0, 0.3, 0.9]).norm()
    expected = 10 * torch.stack([torch.tensor([0.5**0.5, 0]), torch.tensor([0.5**0.5, female[1]])])
    assert torch.allclose(logits[:2], expected, atol=1e-6) and logits[2].isnan().all()
    other = ZeroShotJudge(clip, prompts=prompts, templates=["a {}"], faces=NotBlue())
    assert other.fingerprint != judge.fingerprint


def test_prompts_that_describe_nothing_are_refused() -> None:
    clip = Planted({"a man": [1, 0, 0]})
    wrong = [({"gender": {"male": ["man"]}}, ["a {}"]), ({"gender": {"male": ["man"], "female": []}}, ["a {}"]),
             ({"gender": {"male": ["man"], "female": ["man"]}}, ["a man"]), ({}, [])]  # fmt: skip
    for prompts, templates in wrong:
        with pytest.raises(ValueError, match="two classes with phrases"):
            ZeroShotJudge(clip, prompts=prompts, templates=templates)
