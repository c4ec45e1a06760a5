from collections.abc import Callable

import pytest
import torch
from diffusers import UNet2DModel
from torch import Tensor

from difflens.models.hooks import SiteHooks, find_module
from difflens.vocabulary import Site

SITES = [
    Site("mid_block"),
    Site("mid_block", "input"),
    Site("mid_block", "update"),
    Site("mid_block.resnets.1"),
    Site("up_blocks.0.resnets.0"),
    Site("down_blocks.1", "output"),
    Site("down_blocks.0.resnets.0"),
]
X = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
GRID = [900, 500, 100]


def run(unet: UNet2DModel, site: Site, change: Callable[[Tensor, int], Tensor | None], *, fork: bool) -> Tensor:
    with torch.inference_mode(), SiteHooks(unet, site, timesteps=GRID, change=change, fork=fork):
        return unet(X, 500).sample


@pytest.mark.parametrize("site", SITES, ids=str)
def test_a_fork_gives_the_unedited_and_the_edited_pass_at_once(unet: UNet2DModel, site: Site) -> None:
    plain = unet(X, 500).sample.detach()
    edited = run(unet, site, lambda h, _: h + 0.5, fork=False)
    both = run(unet, site, lambda h, _: h + 0.5, fork=True)
    torch.testing.assert_close(both[:3], plain, rtol=0, atol=1e-5)
    torch.testing.assert_close(both[3:], edited, rtol=0, atol=1e-5)
    assert (edited - plain).abs().max() > 1e-3
    # A neutral edit, and a step that is not edited, change no bit.
    assert torch.equal(run(unet, site, lambda h, _: h, fork=False), plain)
    assert torch.equal(run(unet, site, lambda h, _: None, fork=True), plain)


@pytest.mark.parametrize("site", SITES, ids=str)
def test_a_fork_of_some_rows_set_aside_leaves_the_output_its_size(unet: UNet2DModel, site: Site) -> None:
    asides: list[tuple[int, Tensor, Tensor]] = []
    keep = lambda *given: asides.append(given)  # noqa: E731
    settings = {"timesteps": GRID, "change": lambda h, _: h + 0.5, "rows": (slice(1, 3),), "aside": keep, "batch": 3}
    with torch.inference_mode(), SiteHooks(unet, site, fork=True, **settings):
        kept = unet(X, 500).sample
    ((call, unedited, forked),) = asides
    edited = run(unet, site, lambda h, _: h + 0.5, fork=False)
    assert call == 0 and torch.equal(kept, unedited)
    torch.testing.assert_close(kept, unet(X, 500).sample.detach(), rtol=0, atol=1e-5)
    torch.testing.assert_close(forked, edited[1:3], rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="2 rows where 3 were expected"), SiteHooks(unet, site, **settings):
        unet(X[:2], 500)


def test_rows_go_by_the_order_of_the_calls_in_a_step(unet: UNet2DModel) -> None:
    seen: list[tuple[int, int]] = []
    read = lambda step, h: seen.append((step, len(h)))  # noqa: E731
    with SiteHooks(unet, Site(), timesteps=GRID, read=read, rows=(None, slice(0, 2))) as hooks:
        for t in (900, 900, 500, 500):
            unet(X, t)
    assert seen == [(0, 2), (1, 2)] and hooks.calls == 2


def test_a_module_that_changes_the_shape_has_no_update(unet: UNet2DModel) -> None:
    with pytest.raises(ValueError, match="has no update"):
        run(unet, Site("down_blocks.0", "update"), lambda h, _: h, fork=False)


def test_everything_before_the_site_runs_once(unet: UNet2DModel) -> None:
    batches: list[int] = []
    for name in ("conv_in", "down_blocks.1.resnets.0", "mid_block.resnets.0", "up_blocks.0.resnets.0", "conv_out"):
        unet.get_submodule(name).register_forward_pre_hook(lambda _, args: batches.append(len(args[0])))
    run(unet, Site("mid_block"), lambda h, _: h * 2, fork=True)
    assert batches == [3, 3, 3, 3, 3, 6], "the last block runs on the unedited and on the edited rows"


def test_the_step_is_read_off_the_timestep_not_counted(unet: UNet2DModel) -> None:
    seen = []
    with SiteHooks(unet, Site(), timesteps=GRID, read=lambda step, h: seen.append((step, tuple(h.shape)))):
        for t in (100, 900, 900):
            unet(X, t)
    assert [step for step, _ in seen] == [2, 0, 0]
    assert seen[0][1] == (3, 16, 4, 4)
    with pytest.raises(ValueError, match="timestep 77"), SiteHooks(unet, Site(), timesteps=GRID):
        unet(X, 77)


def test_a_hook_that_never_fires_is_an_error(unet: UNet2DModel) -> None:
    hooks = SiteHooks(unet, Site(), timesteps=GRID)
    unet.mid_block = type(unet.mid_block)(in_channels=16, temb_channels=32, attention_head_dim=8, resnet_groups=4)
    with pytest.raises(RuntimeError, match="fired 0 times in 1"), hooks:
        unet(X, 500)


def test_a_wrong_site_names_the_nearest_modules(unet: UNet2DModel) -> None:
    with pytest.raises(ValueError, match=r"no module 'midblock'; did you mean .*mid_block"):
        find_module(unet, Site("midblock"))
    with pytest.raises(ValueError, match=r"no module ''; its blocks are .*mid_block"):
        find_module(unet, Site(""))
