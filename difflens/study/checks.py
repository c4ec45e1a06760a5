"""What some stage would stumble over later and only built objects can tell, refused before any begins."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from difflens.data.mixing import BufferSizes, buffer_sizes
from difflens.data.prompts import fill
from difflens.models.sampling import coinciding
from difflens.store.files import human_size
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
        # An audit pushes no image.
        if bench.cfg.task.name != "audit":
            check_gate(bench)
    if "attribution" in method.needs:
        check_autoencoder(bench, held=bool(held))
    with blaming("trainer"):
        bench.trainer()


def check_gate(bench: "Workbench") -> None:
    """Check that not every studied prompt is left alone for the class it names (ValueError: all are); say which are."""
    assert bench.prompts is not None
    texts = [fill(prompt) for prompt in (*bench.prompts.studied, *bench.prompts.unseen)]
    alone = [text for text in texts if bench.leaves_alone(text)]
    if {*texts[: len(bench.prompts.studied)]} <= {*alone}:
        raise ValueError(
            f"every studied prompt names a class of {bench.attribute.name!r}, such as {alone[0]!r}, so that no image would "
            "be pushed; give prompts that name none, or set prompt.gate=false."
        )
    if alone:
        bench.run.say(f"left alone, since they name a class of {bench.attribute.name!r}: {', '.join(map(repr, alone))}")


def check_streams(bench: "Workbench") -> None:
    """Check that no two images begin with the same noise (else ValueError): of 2^32 streams 10,000 may hit one twice."""
    cfg, prompts = bench.cfg, bench.prompts
    texts = 1 if prompts is None else len(prompts.studied) + len(prompts.unseen)
    calibration = cfg.mitigation.calibration
    asked = {
        cfg.data.base_seed: cfg.data.images,
        # `+ texts`: calibration images are rounded up to the same number of every prompt.
        calibration.base_seed: calibration.images + texts,
        cfg.metric.base_seed: cfg.metric.images * texts + cfg.metric.named * len(bench.named),
    }
    pair = coinciding((seed, image_id) for seed, count in asked.items() for image_id in range(count))
    if pair is not None:
        (one, first), (other, second) = pair
        raise ValueError(
            f"image {first} of base seed {one} and image {second} of base seed {other} begin with the same noise; choose "
            "another data.base_seed, mitigation.calibration.base_seed or metric.base_seed."
        )


def check_autoencoder(bench: "Workbench", *, held: bool) -> None:
    """Check what trains and searches the SAE, where the method asks for one; else ValueError."""
    cfg = bench.cfg
    # On a GPU it is the GPU's memory that counts, which torch tells when it runs out.
    if cfg.sae.saved is None and (cfg.trainer.accelerator or cfg.model.get("device") or "cpu") == "cpu":
        with blaming(f"data.site.module={bench.site.module}"):
            channels, height, width = bench.model.site_shape(bench.site)
        dim = channels * height * width if cfg.sae.get("token") == "map" else channels
        # Before it is built, which would take a quarter of that.
        check_training(dim, cfg.sae.get("expansion", 1), memory=main_memory())
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


def check_training(dim: int, expansion: float, *, memory: int) -> None:
    """Check that an SAE fits into `memory` bytes while it is trained: two matrices, their gradients and Adam's two moments.

    Raises:
        ValueError: it does not.
    """
    needed = 4 * 2 * 4 * round(expansion * dim) * dim
    if needed > memory:
        raise ValueError(
            f"sae.expansion={expansion:g} asks for {round(expansion * dim)} latents of {dim} values, whose training takes "
            f"{human_size(needed)} of memory, and this machine has {human_size(memory)}; lower it."
        )


def check_buffer(sizes: BufferSizes, *, dim: int, memory: int) -> None:
    """Check that the buffer that mixes an SAE's tokens of `dim` values fits into `memory` bytes; else ValueError."""
    if sizes.refilling > memory:
        least = int(sizes.capacity * memory / sizes.refilling / 2)
        raise ValueError(
            f"data.buffer and sae.training.batch ask for {sizes.capacity} tokens of {dim} values in a buffer: "
            f"{human_size(sizes.buffer)}, and {human_size(sizes.refilling)} while it is refilled, but this machine has "
            f"{human_size(memory)} of memory; lower data.buffer to {least} or less, and sae.training.batch to half of it."
        )
