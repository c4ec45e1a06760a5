"""Every file of `conf/sae`, and a class of a user's own package, trains, is saved, is loaded and steers."""

import json
from pathlib import Path

import pytest
from program import Program, own_package, undisturbed

import difflens
from difflens.main import conf_folder

TRAINED = ("sae.expansion=2", "sae.k=8", "sae.training.tokens=8000", "sae.training.batch=256")
EDITED = ("task=steer", "mitigation.strength=1", *TRAINED)
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
    return undisturbed().copied(tmp_path_factory.mktemp("saes") / "study")


def saved(program: Program) -> dict[str, Path]:
    """The folder of each saved SAE by its class."""
    folders = [artifact / "autoencoder" for artifact in program.artifacts("sae")]
    return {json.loads((folder / "spec.json").read_text())["autoencoder"]["class"]: folder for folder in folders}


@pytest.mark.parametrize("kind", sorted({path.stem for path in (conf_folder() / "sae").glob("*.yaml")} - {"topk"}))
def test_every_kind_trains_is_loaded_and_steers(program: Program, kind: str) -> None:
    program.done(*EDITED, f"sae={kind}")
    sae = difflens.load_sae(program.latest)
    assert difflens.load_features(program.latest).mitigation.sae.settings() == sae.settings()  # type: ignore[attr-defined]
    assert program.json("metrics.json")["rows"][1]["clip_i"] < 1


def test_a_class_of_ones_own_trains_is_saved_and_is_loaded_again(program: Program) -> None:
    own = own_package(program, "my_saes", OWN, "sae/own", YAML)
    done = own("sae=own", "task=sae", *TRAINED)
    assert done.code == 0, done.err + done.out
    folder = saved(program)["my_saes.Soft"]
    assert json.loads((folder / "spec.json").read_text())["autoencoder"]["settings"]["cut"] == 0.25
    written = (folder / "sae.safetensors").stat().st_mtime_ns
    again = own("sae=own", *EDITED)
    assert again.code == 0 and (folder / "sae.safetensors").stat().st_mtime_ns == written
    # Without the environment's word nothing of it is imported.
    assert "set DIFFLENS_ALLOW_TARGETS=<package>" in program.refused(*EDITED, f"sae.saved={folder}")
    assert folder.is_dir()
