"""What some stage would stumble over later, refused before any begins."""

from typing import TYPE_CHECKING

from difflens.data.mixing import buffer_sizes
from difflens.methods.assignment import check_rule
from difflens.store.provenance import main_memory
from difflens.study.settings import check_buffer, check_settings, check_top
from difflens.study.values import blaming, built, plain

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
    method = bench.method
    bench.fixed_strength  # noqa: B018
    bench.goals, bench.per_prompt  # noqa: B018
    built(cfg, "attribution.scorer")
    held = bench.held()
    bench.site  # noqa: B018
    if cfg.attribution.baseline == "contrast" and bench.prompts is None:
        raise ValueError(f"attribution.baseline=contrast needs prompts, and {bench.model.name} takes none; use zero.")
    bench.model.check_update(method.update)
    if bench.prompts is not None:
        bench.words  # noqa: B018
    if "attribution" in method.needs:
        check_autoencoder(bench, held=bool(held))
    with blaming("trainer"):
        bench.trainer()


def check_autoencoder(bench: "Workbench", *, held: bool) -> None:
    """Check what trains and searches the SAE, where the method asks for one.

    Raises:
        ValueError: with the offending value and the remedy.
    """
    cfg = bench.cfg
    autoencoder = bench.new_autoencoder()
    check_top(plain(cfg.attribution.top), classes=bench.attribute.classes, width=autoencoder.width)
    if held:
        top = getattr(bench.method, "held_top", 1)
        check_top(top, classes=(), width=autoencoder.width, key="mitigation.held_top")
    with blaming("sae.training"):
        module = built(cfg, "sae.training")(autoencoder, steps=bench.model.steps)
    if cfg.sae.saved is None:
        sizes = buffer_sizes(cfg.data.buffer, batch=module.hparams["batch"], dim=autoencoder.dim)
        check_buffer(sizes, dim=autoencoder.dim, memory=main_memory())
