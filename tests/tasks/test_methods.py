"""What `mitigation._target_` names is what runs: a method without an autoencoder, and one of a user's own package."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import DDIMPipeline
from program import Ended, Program, own_package, undisturbed

import difflens
from difflens.methods.h_direction import DirectionEdit

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
    """A program that finds the stages of another method done."""
    return undisturbed().copied(tmp_path_factory.mktemp("methods") / "study")


@pytest.fixture(scope="module")
def mine(program: Program) -> Callable[..., Ended]:
    return own_package(program, "my_methods", MINE, "mitigation/mine", YAML)


def test_a_method_without_an_autoencoder_goes_the_whole_way_and_none_is_trained(program: Program) -> None:
    program.done("mitigation=h_direction", "mitigation.assignment=exact", "mitigation.hold.attributes=[gender,age]")
    assert [row["method"] for row in program.json("metrics.json")["rows"]] == ["original", "h_direction"]
    artifacts = program.json("manifest.json")["artifacts"]
    used = [kind for kind, _ in {(entry["kind"], entry["fingerprint"]) for entry in artifacts}]
    assert not {"sae", "attribution"} & set(used)
    # The attribute's own and that of the held one, which is held by its probe.
    assert used.count("fit") == 2 and used.count("probe") == 1
    report = program.json("report.json")
    assert report["dose"]["points"] and report["features"] == [] and "sae" not in report
    assert (program.latest / "report.html").stat().st_size > 10_000
    features = difflens.load_features(program.latest)
    assert isinstance(features.mitigation, DirectionEdit) and features.mitigation.strength.abs().sum() > 0
    pipe = DDIMPipeline.from_pretrained(Path(difflens.__file__).parent / "miniature" / "weights" / "generator")
    pipe.set_progress_bar_config(disable=True)

    def made() -> torch.Tensor:
        drawn = pipe(2, generator=torch.Generator().manual_seed(0), num_inference_steps=4, output_type="np").images
        return torch.from_numpy(drawn)

    plain = made()
    with difflens.steer(pipe, features):
        assert (made() - plain).abs().amax((1, 2, 3)).min() > 0.01
    assert torch.equal(made(), plain)


# This method asks for no probe itself, but `early` reads by one who is to be moved.
EDITED = ("task=steer", "mitigation.assignment=early", "mitigation.target={female: 0.75, male: 0.25}")


def steered(program: Program) -> bytes:
    """The edited images of the last run."""
    return b"".join(path.read_bytes() for path in sorted(program.used("steered").glob("shard-*")))


def test_a_users_own_method_is_what_runs_under_its_name(program: Program, mine: Callable[..., Ended]) -> None:
    program.done("mitigation=h_direction", "mitigation.strength=2", *EDITED)
    theirs = steered(program)
    done = mine("mitigation=mine", "mitigation.strength=1", *EDITED)
    assert done.code == 0, done.err + done.out
    row = program.json("metrics.json")["rows"][1]
    assert row["method"] == "mine" and row["clip_i_edited"] < 1
    assert steered(program) == theirs, "twice its direction, half as strongly"


def test_who_is_moved_is_read_anew_by_another_probe(program: Program) -> None:
    program.done("mitigation=h_direction", "mitigation.strength=2", *EDITED, "probe.l2=10")
    made = program.reused
    assert made["images"] and not made["states"] and not made["steered"]


@pytest.mark.parametrize(
    ("named", "complaint"),
    [
        ("my_methods.Stranger", "is no difflens.methods.base.Method; name a class of it"),
        (
            "difflens.methods.base.Window",
            "set DIFFLENS_ALLOW_TARGETS=<package>; else it must be one of difflens.methods.difflens",
        ),
    ],
)
def test_what_is_no_method_is_refused_in_one_line(mine: Callable[..., Ended], named: str, complaint: str) -> None:
    done = mine("mitigation=mine", f"mitigation._target_={named}")
    assert done.code == 2 and complaint in done.complaint


def test_a_users_package_is_not_let_in_unless_the_environment_names_it(mine: Callable[..., Ended]) -> None:
    done = mine("mitigation=mine", prepare=None)
    assert done.code == 2 and "set DIFFLENS_ALLOW_TARGETS=<package>" in done.complaint
