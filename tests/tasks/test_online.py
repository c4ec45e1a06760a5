"""`data=online`: the SAE trains on images sampled on the fly, and goes on exactly where it was stopped."""

import signal
from pathlib import Path

from program import Program, undisturbed

ONLINE = ["task=sae", "data=online", "sae.training.tokens=20000"]


def trained(program: Program) -> bytes:
    """The weights of the SAE that the undisturbed study has not."""
    known = {path.name for path in undisturbed().artifacts("sae")}
    (artifact,) = (path for path in program.artifacts("sae") if path.name not in known)
    return (artifact / "autoencoder" / "sae.safetensors").read_bytes()


def test_an_online_training_that_was_killed_ends_as_one_that_was_not(tmp_path: Path) -> None:
    whole, torn, stored = (undisturbed().copied(tmp_path / name) for name in ("whole", "torn", "stored"))
    for program, settings in ((whole, ONLINE), (stored, [*ONLINE, "data=shards"])):
        ended = program(*settings)
        assert ended.code == 0, ended.err
    checkpoints = torn.folder / "outputs" / "artifacts" / "sae"
    begun = torn.start(*ONLINE)
    torn.stop(begun, signal.SIGKILL, when=lambda: any(checkpoints.glob("*.partial/training/last.ckpt")))
    assert torn(*ONLINE).code == 0
    assert trained(torn) == trained(whole) != trained(stored)
    assert not torn.unfinished()
