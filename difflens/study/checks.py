"""What some stage would stumble over later, refused before any begins."""

from typing import TYPE_CHECKING

from hydra.utils import instantiate

from difflens.data.mixing import buffer_sizes
from difflens.methods.assignment import check_rule
from difflens.methods.sae_features import check_mode
from difflens.store.provenance import main_memory
from difflens.study.settings import check_buffer, check_settings, check_top
from difflens.study.values import blaming, plain

if TYPE_CHECKING:
    from difflens.study.workbench import Workbench


def check(bench: "Workbench") -> None:
    """Check the whole configuration, and build what is cheap to build: the tracker first, which is to know of failures.

    Raises:
        ValueError: with the offending value and the remedy.
    """
    cfg = bench.cfg
    bench.tracker  # noqa: B018
    check_settings(cfg)
    check_rule(cfg.mitigation.assignment)
    check_mode(cfg.mitigation.mode, cfg.mitigation.places, cfg.mitigation.protocol)
    bench.fixed_strength  # noqa: B018
    bench.goals, bench.per_prompt  # noqa: B018
    instantiate(cfg.mitigation.window)
    instantiate(cfg.attribution.scorer)
    held = bench.held()
    bench.model.check_update(cfg.mitigation["update"])
    if bench.prompts is not None:
        bench.words  # noqa: B018
    autoencoder = bench.new_autoencoder()
    check_top(plain(cfg.attribution.top), classes=bench.attribute.classes, width=autoencoder.width)
    if held:
        check_top(cfg.mitigation.hold.top, classes=(), width=autoencoder.width, key="mitigation.hold.top")
    with blaming("sae.training"):
        module = instantiate(cfg.sae.training)(autoencoder, steps=bench.model.steps)
    if cfg.sae.saved is None:
        sizes = buffer_sizes(cfg.data.buffer, batch=module.hparams["batch"], dim=autoencoder.dim)
        check_buffer(sizes, dim=autoencoder.dim, memory=main_memory())
    with blaming("trainer"):
        bench.trainer()
