"""What some stage would stumble over later and only built objects can tell, refused before any begins."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from difflens.data.mixing import BufferSizes, buffer_sizes, in_gb
from difflens.models.sampling import coinciding
from difflens.store.run import main_memory
from difflens.study.values import blaming, built, plain

if TYPE_CHECKING:
    from difflens.study.workbench import Workbench


def check(bench: "Workbench") -> None:
    """Build what is cheap to build: the tracker first, which is to know of failures.

    Raises:
        ValueError: with the offending value and the remedy.
    """
    # Cached objects are read for their errors alone, which come before the first stage this way.
    bench.tracker  # noqa: B018
    method = bench.method
    bench.fixed_strength  # noqa: B018
    bench.goals, bench.per_prompt  # noqa: B018
    for key in ("attribution.scorer", "probe"):
        # With `_partial_` nothing is fitted yet; a setting that its function does not take is refused all the same.
        built(bench.cfg, key)
    held = bench.held()
    bench.model.check_update(method.update)
    check_streams(bench)
    if bench.prompts is not None:
        bench.words  # noqa: B018
    if "attribution" in method.needs:
        check_autoencoder(bench, held=bool(held))
    with blaming("trainer"):
        bench.trainer()


def check_streams(bench: "Workbench") -> None:
    """Check that no two images of the study begin with the same noise: of 2^32 streams, 10,000 images may hit one twice.

    Raises:
        ValueError: two do.
    """
    cfg, prompts = bench.cfg, bench.prompts
    texts = 1 if prompts is None else len(prompts.studied) + len(prompts.unseen)
    calibration = cfg.mitigation.calibration
    asked = {
        cfg.data.base_seed: cfg.data.images,
        # `+ texts`: calibration images are rounded up to the same number of every prompt.
        calibration.base_seed: calibration.images + texts,
        cfg.metric.base_seed: cfg.metric.images * texts,
    }
    pair = coinciding((seed, image_id) for seed, count in asked.items() for image_id in range(count))
    if pair is not None:
        (one, first), (other, second) = pair
        raise ValueError(
            f"image {first} of base seed {one} and image {second} of base seed {other} begin with the same noise; choose "
            "another data.base_seed, mitigation.calibration.base_seed or metric.base_seed."
        )


def check_autoencoder(bench: "Workbench", *, held: bool) -> None:
    """Check what trains and searches the SAE, where the method asks for one.

    Raises:
        ValueError: with the offending value and the remedy.
    """
    cfg = bench.cfg
    autoencoder = bench.new_autoencoder()
    check_top(plain(cfg.attribution.top), width=autoencoder.width)
    if held:
        check_top(getattr(bench.method, "held_top", 1), width=autoencoder.width, key="mitigation.held_top")
    with blaming("sae.training"):
        module = built(cfg, "sae.training")(autoencoder, steps=bench.model.steps)
    # An SAE that is given is not trained, and fills no buffer.
    if cfg.sae.saved is None:
        sizes = buffer_sizes(cfg.data.buffer, batch=module.hparams["batch"], dim=autoencoder.dim)
        check_buffer(sizes, dim=autoencoder.dim, memory=main_memory())


def check_top(top: Any, *, width: int, key: str = "attribution.top") -> None:
    """Check that the SAE has as many latents as are to be selected for a class (ValueError: it has fewer)."""
    if max(top.values() if isinstance(top, Mapping) else [top]) > width:
        raise ValueError(f"{key} must be 1 to {width} (the SAE's width), got {top!r}; or raise sae.expansion.")


def check_buffer(sizes: BufferSizes, *, dim: int, memory: int) -> None:
    """Check that the buffer that mixes an SAE's tokens of `dim` values fits into `memory` bytes; else ValueError."""
    if sizes.refilling > memory:
        least = int(sizes.capacity * memory / sizes.refilling / 2)
        raise ValueError(
            f"data.buffer and sae.training.batch ask for {sizes.capacity} tokens of {dim} values in a buffer: "
            f"{in_gb(sizes.buffer)}, and {in_gb(sizes.refilling)} while it is refilled, but this machine has "
            f"{in_gb(memory)} of memory; lower data.buffer to {least} or less, and sae.training.batch to half of it."
        )
