"""Every file of `conf/sae`, and a class of a user's own package, trains, is saved, is loaded and steers."""

import json
import os
import sys
from functools import partial
from pathlib import Path

import pytest
from program import Program, undisturbed

import difflens
from difflens.main import conf_folder

EDITED = ("task=steer", "mitigation.strength=1", "mitigation.assignment=exact", "sae.expansion=2", "sae.k=8")
OWN = """
from difflens.sae.base import SparseAutoencoder, SparseCodes


class Soft(SparseAutoencoder):
    def __init__(self, dim, *, cut=0.5, **settings):
        super().__init__(dim, **settings)
        self.cut = cut

    def settings(self):
        return {**super().settings(), "cut": self.cut}

    def select(self, activations):
        return SparseCodes.where(activations > self.cut, activations - self.cut)
"""
YAML = "defaults: [topk, _self_]\n_target_: my_saes.Soft\ncut: 0.25\n"


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Program:
    program = undisturbed().copied(tmp_path_factory.mktemp("saes") / "study")
    (program.folder / "my_saes.py").write_text(OWN)
    (program.folder / "conf" / "sae").mkdir(parents=True)
    (program.folder / "conf" / "sae" / "own.yaml").write_text(YAML)
    return program


def let_in(folder: str) -> None:
    """What a user does before the start."""
    sys.path.insert(0, folder)
    os.environ["DIFFLENS_ALLOW_TARGETS"] = "my_saes"


def saved(program: Program) -> dict[str, Path]:
    """The folder of each saved SAE by its class."""
    folders = [artifact / "autoencoder" for artifact in program.artifacts("sae")]
    return {json.loads((folder / "spec.json").read_text())["autoencoder"]["class"]: folder for folder in folders}


@pytest.mark.parametrize("kind", sorted({path.stem for path in (conf_folder() / "sae").glob("*.yaml")} - {"topk"}))
def test_every_kind_trains_is_loaded_and_steers(program: Program, kind: str) -> None:
    done = program(*EDITED, f"sae={kind}", "sae.training.batch=256")
    assert done.code == 0, done.err + done.out
    sae = difflens.load_sae(program.latest)
    assert difflens.load_features(program.latest).mitigation.sae.settings() == sae.settings()  # type: ignore[attr-defined]
    assert program.json("metrics.json")["rows"][1]["clip_i"] < 1


def test_a_class_of_ones_own_trains_is_saved_and_is_loaded_again(program: Program) -> None:
    own = (f"--config-dir={program.folder / 'conf'}", "sae=own", *EDITED)
    prepare = partial(let_in, str(program.folder))
    done = program(*own, prepare=prepare)
    assert done.code == 0, done.err + done.out
    folder = saved(program)["my_saes.Soft"]
    assert json.loads((folder / "spec.json").read_text())["autoencoder"]["settings"]["cut"] == 0.25
    written = (folder / "sae.safetensors").stat().st_mtime_ns
    again = program(*own, prepare=prepare)
    assert again.code == 0 and (folder / "sae.safetensors").stat().st_mtime_ns == written
    # Without the environment's word nothing of it is imported.
    given = program(*EDITED, f"sae.saved={folder}")
    assert given.code == 2 and "set DIFFLENS_ALLOW_TARGETS=<package>" in given.complaint
    assert folder.is_dir()
