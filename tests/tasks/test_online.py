"""`data=online`: the SAE trains on images sampled on the fly, and goes on exactly where it was stopped."""

import signal
from functools import partial
from pathlib import Path

from program import Program, count_samples, undisturbed

ONLINE = ["task=sae", "data=online", "sae.training.tokens=20000"]


def trained(program: Program) -> bytes:
    """The weights of the SAE that the undisturbed study has not."""
    known = {path.name for path in undisturbed().artifacts("sae")}
    (artifact,) = (path for path in program.artifacts("sae") if path.name not in known)
    return (artifact / "autoencoder" / "sae.safetensors").read_bytes()


def test_an_online_training_that_was_killed_ends_as_one_that_was_not(tmp_path: Path) -> None:
    whole, torn = (undisturbed().copied(tmp_path / name) for name in ("whole", "torn"))
    sampled = tmp_path / "sampled"
    whole.done(*ONLINE, prepare=partial(count_samples, str(sampled)))
    # A micro-batch gives 8 images × 4 steps × 64 places, and no token is met twice.
    assert sampled.stat().st_size >= 20_000 / (8 * 4 * 64)
    checkpoints = torn.folder / "outputs" / "artifacts" / "sae"
    begun = torn.start(*ONLINE)
    torn.stop(begun, signal.SIGKILL, when=lambda: any(checkpoints.glob("*.partial/training/last.ckpt")))
    torn.done(*ONLINE)
    assert trained(torn) == trained(whole)
    assert not torn.unfinished()
