from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler, StableDiffusionPipeline
from huggingface_hub.errors import GatedRepoError
from tiny_pipeline import Shift, images, plan, tiny_pipeline, tiny_text_to_image
from torch import nn

from difflens.models import pipelines
from difflens.models.load import choose_scheduler, load_text_to_image
from difflens.models.model import DiffusionModel
from difflens.models.random_pipeline import build_random_pipeline, byte_tokenizer
from difflens.vocabulary import Site

USUAL: dict[str, Any] = {"name": "tiny", "steps": 4, "micro_batch": 2, "guidance": 3.0}
PUBLISHED = {
    "sd15": {"unet": 859_520_964, "text_encoder": 123_060_480, "vae": 83_653_863},
    "sd21": {"unet": 865_910_724, "text_encoder": 340_387_840, "vae": 83_653_863},
    "sdxl": {
        "unet": 2_567_463_684,
        "text_encoder": 123_060_480,
        "text_encoder_2": 694_659_840,
        "vae": 83_653_863,
    },
}


@pytest.mark.parametrize("architecture", PUBLISHED)
def test_random_architectures_have_the_published_sizes(architecture: str) -> None:
    pipeline = build_random_pipeline(architecture, dtype=torch.bfloat16, device="meta")
    networks = {name: part for name, part in pipeline.components.items() if isinstance(part, nn.Module)}
    sizes = {name: sum(weight.numel() for weight in network.parameters()) for name, network in networks.items()}
    assert sizes == PUBLISHED[architecture]
    assert {weight.dtype for network in networks.values() for weight in network.parameters()} == {torch.bfloat16}
    assert torch.get_default_dtype() == torch.float32


def narrow(architecture: str, **settings: Any) -> DiffusionModel:
    usual = {"steps": 3, "micro_batch": 1, "name": architecture, "height": 64, "width": 64, "divide_widths": 8}
    return load_text_to_image("", weights="random", architecture=architecture, **{**usual, **settings})


@pytest.mark.parametrize(("architecture", "shape"), [("sd15", (160, 1, 1)), ("sdxl", (160, 2, 2))])
def test_the_real_structure_at_small_width_steers_one_image(architecture: str, shape: tuple[int, ...]) -> None:
    model = narrow(architecture)
    plain = images(model, plan([1]))[1]
    assert plain.shape == (3, 64, 64) and plain.std() > 0.01
    for module, branch in (("mid_block", "cond"), ("up_blocks.1.attentions.1", "both")):
        site = Site(module, branch=branch)
        if module == "mid_block":
            assert model.site_shape(site) == shape
        neutral, edit = Shift(0.0, site=site), Shift(5.0, site=site)
        assert torch.equal(images(model, plan([1], [0]), method=neutral)[1], plain)
        assert not torch.equal(images(model, plan([1], [0]), method=edit)[1], plain)
        assert neutral.steps == edit.steps == [1, 2]


def test_random_weights_come_in_the_dtype_asked_for_and_by_seed() -> None:
    half, again = (narrow("sd15", precision="bf16") for _ in range(2))
    assert half.unet.dtype == torch.bfloat16 and half.spec() == again.spec()
    assert torch.equal(images(half, plan([1], [0]), method=Shift(0.0))[1], images(again, plan([1]))[1])
    with pytest.raises(ValueError, match="must be one of sd15, sd21, sdxl, got 'sd3'"):
        narrow("sd3")
    with pytest.raises(ValueError, match="divide_widths"):
        narrow("sd15", divide_widths=3)


def test_a_saved_pipeline_loads_as_the_same_model(tmp_path: Path) -> None:
    tiny_pipeline().save_pretrained(tmp_path)
    loaded = load_text_to_image(str(tmp_path), **USUAL)
    assert loaded.spec() == tiny_text_to_image().spec()
    assert torch.equal(images(loaded, plan([4]))[4], images(tiny_text_to_image(), plan([4]))[4])
    assert load_text_to_image(str(tmp_path), precision="bf16", **USUAL).unet.dtype == torch.float32


def test_a_hub_id_is_found_in_the_cache_without_a_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / "models--someone--faces"
    tiny_pipeline().save_pretrained(repository / "snapshots" / "0123abcd")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0123abcd")
    capfd.readouterr()
    assert load_text_to_image("someone/faces", **USUAL).spec() == tiny_text_to_image().spec()
    assert capfd.readouterr() == ("", "")


def test_schedulers_keep_the_models_noise_schedule_and_do_not_clip_latents() -> None:
    own = EulerDiscreteScheduler(beta_start=0.001, beta_end=0.013, prediction_type="v_prediction", steps_offset=1)
    ddim = choose_scheduler(own, "ddim")
    assert isinstance(ddim, DDIMScheduler) and not ddim.config.clip_sample
    torch.testing.assert_close(ddim.alphas_cumprod, own.alphas_cumprod)
    assert (ddim.config.prediction_type, ddim.config.steps_offset) == ("v_prediction", 1)
    assert choose_scheduler(own, "own") is own is choose_scheduler(own, "euler")
    with pytest.raises(ValueError, match=r"model\.scheduler must be own or one of ddim, .*'pndm'"):
        choose_scheduler(own, "pndm")


def test_a_safety_checker_is_neither_loaded_nor_run(tmp_path: Path) -> None:
    pipeline = tiny_pipeline()
    pipeline.save_pretrained(tmp_path)
    # A folder whose index names a checker that is not even there, as slim copies of published models have it.
    index = (tmp_path / "model_index.json").read_text()
    named = '"safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"]'
    (tmp_path / "model_index.json").write_text(
        index.replace('"safety_checker": [\n    null,\n    null\n  ]', named).replace("false", "true")
    )
    assert named in (tmp_path / "model_index.json").read_text()
    model = load_text_to_image(str(tmp_path), **USUAL)
    assert model.pipeline.safety_checker is None and model.safety_checker == "switched off"

    class Blackener(nn.Module):
        def forward(self, **_: Any) -> None:
            raise AssertionError

    assert tiny_text_to_image(pipeline).safety_checker is None
    pipeline.safety_checker = Blackener()
    model = tiny_text_to_image(pipeline)
    assert model.safety_checker == "switched off" and images(model, plan([4]))[4].std() > 0


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("nobody/no-such-model", r"not on this machine.*`hf download nobody/no-such-model`.*model\.source"),
        ("/no/such/folder", "nothing at '/no/such/folder'"),
        ("package:miniature/weights", r"no model_index\.json"),
    ],
)
def test_a_model_that_is_not_there_is_one_line(source: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        load_text_to_image(source, **USUAL)
    assert "\n" not in str(caught.value)


def test_a_gated_model_says_where_to_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        # As diffusers reports it: an error about an unknown name, raised while handling the hub's.
        error = OSError("not a valid model identifier")
        error.__context__ = GatedRepoError.__new__(GatedRepoError)
        raise error

    monkeypatch.setattr(pipelines.DiffusionPipeline, "load_config", refuse)
    with pytest.raises(ValueError, match=r"gated: accept its licence at https://huggingface.co/some/model"):
        load_text_to_image("some/model", offline=False, **USUAL)


def test_unknown_weights_are_refused() -> None:
    with pytest.raises(ValueError, match=r"model\.weights must be pretrained or random"):
        load_text_to_image("x/y", weights="none", **USUAL)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_one_line() -> None:
    with pytest.raises(ValueError, match=r"there is no GPU; use model\.device=cpu"):
        load_text_to_image("x/y", device="cuda", **USUAL)


def test_the_byte_tokenizer_reads_any_text_and_ends_with_its_highest_id() -> None:
    tokenizer = byte_tokenizer(pad_token="!")
    tokens = tokenizer("A café 北京.").input_ids
    assert len(tokenizer) == 514 and (tokens[0], tokens[-1]) == (512, 513) and max(tokens[1:-1]) < 512
    assert tokenizer.decode(tokens, skip_special_tokens=True).strip() == "a café 北京 ."
    assert tokenizer("x", padding="max_length").input_ids[3:] == [tokenizer.pad_token_id] * 74


def test_a_plain_pipeline_is_left_usable(tmp_path: Path) -> None:
    pipeline = tiny_pipeline()
    images(tiny_text_to_image(pipeline), plan([1], [0]), method=Shift(1.0))
    pipeline.save_pretrained(tmp_path)
    assert type(StableDiffusionPipeline.from_pretrained(tmp_path, local_files_only=True).scheduler) is DDIMScheduler
