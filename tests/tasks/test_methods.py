"""What `mitigation._target_` names is what runs: a method without an autoencoder, and one of a user's own package."""

import os
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from diffusers import DDIMPipeline
from program import Program, undisturbed

import difflens
from difflens.methods.h_direction import DirectionEdit

EDITED = ("mitigation.strength=2", "mitigation.assignment=exact")
MINE = """
from difflens.methods.h_direction import HDirection


class Nudge(HDirection):
    def __init__(self, *, factor: float, **settings) -> None:
        super().__init__(**settings)
        self.factor = factor

    def learn(self, given):
        return {name: self.factor * value for name, value in super().learn(given).items()}


class Stranger:
    def __init__(self, **settings) -> None:
        pass
"""
YAML = """
defaults: [h_direction, _self_]
_target_: my_methods.Nudge
name: mine
factor: 2.0
"""


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Program:
    """A program that finds the stages of another method done, and a user's package beside it."""
    program = undisturbed().copied(tmp_path_factory.mktemp("methods") / "study")
    (program.folder / "my_methods.py").write_text(MINE)
    (program.folder / "conf" / "mitigation").mkdir(parents=True)
    (program.folder / "conf" / "mitigation" / "mine.yaml").write_text(YAML)
    return program


def let_in(folder: str) -> None:
    """What a user does before the start: the package can be imported, and is named in the environment."""
    sys.path.insert(0, folder)
    os.environ["DIFFLENS_ALLOW_TARGETS"] = "my_methods"


def images(program: Program, method: str) -> list[bytes]:
    return [path.read_bytes() for path in sorted((program.latest / "images" / method).glob("*.png"))]


def test_a_method_without_an_autoencoder_goes_the_whole_way_and_none_is_trained(tmp_path: Path) -> None:
    program = Program(tmp_path)
    holding = "mitigation.hold.attributes=[gender,age]"
    done = program("mitigation=h_direction", "mitigation.assignment=exact", holding)
    assert done.code == 0, done.err + done.out
    assert [row["method"] for row in program.json("metrics.json")["rows"]] == ["original", "h_direction"]
    assert program.artifacts("sae") == program.artifacts("attribution") == []
    # The attribute's own and that of the held one, which is held by its probe.
    assert len(program.artifacts("fit")) == 2 and len(program.artifacts("probe")) == 1
    report = program.json("report.json")
    assert report["dose"]["points"] and report["features"] == [] and "sae" not in report
    assert (program.latest / "report.html").stat().st_size > 10_000
    features = difflens.load_features(program.latest)
    assert isinstance(features.mitigation, DirectionEdit) and features.mitigation.strength.abs().sum() > 0
    pipe = DDIMPipeline.from_pretrained(Path(difflens.__file__).parent / "miniature" / "weights" / "generator")
    pipe.set_progress_bar_config(disable=True)

    def made() -> torch.Tensor:
        drawn = pipe(4, generator=torch.Generator().manual_seed(0), num_inference_steps=4, output_type="np").images
        return torch.from_numpy(drawn)

    plain = made()
    with difflens.steer(pipe, features):
        assert (made() - plain).abs().amax((1, 2, 3)).min() > 0.01
    assert torch.equal(made(), plain)


def test_who_is_moved_is_read_anew_by_another_probe(program: Program) -> None:
    """This method asks for no probe itself, but `early` reads by one who is to be moved."""
    asked = ("task=steer", "mitigation=h_direction", "mitigation.assignment=early", "mitigation.strength=1")
    for settings in ((), ("probe.l2=10",)):
        done = program(*asked, *settings)
        assert done.code == 0, done.err + done.out
    made = {entry["kind"]: entry["reused"] for entry in program.json("manifest.json")["artifacts"]}
    assert not made["states"] and not made["steered"]


def test_a_users_own_method_is_what_runs_under_its_name(program: Program) -> None:
    prepare = partial(let_in, str(program.folder))
    conf = f"--config-dir={program.folder / 'conf'}"
    assert program("mitigation=h_direction", *EDITED).code == 0
    theirs = images(program, "h_direction")
    done = program(conf, "mitigation=mine", *EDITED, prepare=prepare)
    assert done.code == 0, done.err + done.out
    assert program.json("metrics.json")["rows"][1]["method"] == "mine"
    assert images(program, "mine") != theirs
    # The same numbers where the class does the same.
    assert program(conf, "mitigation=mine", "mitigation.factor=1.0", *EDITED, prepare=prepare).code == 0
    assert images(program, "mine") == theirs


@pytest.mark.parametrize(
    ("overrides", "complaint"),
    [
        (["mitigation._target_=my_methods.Stranger"], "is no difflens.methods.base.Method; name a class of it"),
        (
            ["mitigation._target_=difflens.methods.base.Window"],
            "set DIFFLENS_ALLOW_TARGETS=<package>; else it must be one of difflens.methods.difflens",
        ),
        (["+mitigation.strenght=2"], "got an unexpected keyword argument 'strenght'"),
        (["mitigation.window.start=2"], "mitigation.window needs 0 ≤ start < stop ≤ 1"),
    ],
)
def test_what_is_no_method_is_refused_in_one_line(program: Program, overrides: list[str], complaint: str) -> None:
    conf = f"--config-dir={program.folder / 'conf'}"
    done = program(conf, "mitigation=mine", *overrides, prepare=partial(let_in, str(program.folder)))
    assert done.code == 2 and complaint in done.complaint


def test_a_users_package_is_not_let_in_unless_the_environment_names_it(program: Program) -> None:
    done = program(f"--config-dir={program.folder / 'conf'}", "mitigation=mine")
    assert done.code == 2 and "set DIFFLENS_ALLOW_TARGETS=<package>" in done.complaint
