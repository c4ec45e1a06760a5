"""The first experiments (METHOD section 10) on the tiny study: their numbers are there, consistent, and drawn."""

import re

import pytest
import torch
from program import TINY, Ended, Program, undisturbed
from safetensors.torch import load_file

from difflens.data.sampled import Shards
from difflens.tasks.evolution import describe


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Program:
    return undisturbed().copied(tmp_path_factory.mktemp("experiments") / "study")


def says_where(ended: Ended, name: str) -> bool:
    """Whether the program names the files of an experiment."""
    said = " ".join(ended.out.split())
    return re.search(rf"{name}: \S+/{name}\.svg and \S+/{name}\.json", said) is not None


def test_silencing_runs_as_a_whole_and_leaves_its_numbers_and_plot(program: Program) -> None:
    ended = program("task=ablation", "task.size=4", "task.images=8")
    assert ended.code == 0 and says_where(ended, "ablation"), ended.err + ended.out
    found = program.json("ablation.json")["classes"]
    for name in ("female", "male"):
        top, *others = (set(found[name]["latents"][kind]) for kind in ("top", "random", "bottom"))
        assert len(top) == 4 and not top & set().union(*others)
        assert found[name]["images"] == 8 and 0 <= found[name]["p"] <= 1
        for kind, share in found[name]["kept"].items():
            low, high = found[name]["intervals"][kind]
            assert 0 <= low < high <= 1 and low - 1e-9 <= share <= high + 1e-9
    assert (program.latest / "ablation.svg").read_text().startswith("<?xml")


def test_separation_scores_every_latent_on_exact_pairs(program: Program) -> None:
    ended = program("task=separation", "task.pairs=6", "task.steps=[0.5]")
    assert ended.code == 0 and says_where(ended, "separation"), ended.err + ended.out
    found = program.json("separation.json")
    assert len(found["own"]) == len(found["chosen"]) and all(0 <= value <= 1 for value in found["own"])
    chosen = [latent for latent, is_chosen in enumerate(found["chosen"]) if is_chosen]
    assert {card["latent"] for card in undisturbed().json("report.json")["features"]} <= set(chosen)
    assert found["own"] == found["auc_separation"]["gender"]
    assert (program.latest / "separation.svg").read_text().startswith("<?xml")


def test_doses_run_from_no_edit_to_twice_the_calibrated_strength(program: Program) -> None:
    ended = program("task=dose", "task.doses=[0,1]")
    assert ended.code == 0 and says_where(ended, "dose"), ended.err + ended.out
    none, calibrated = program.json("dose.json")["rows"]
    study = undisturbed().json("metrics.json")["rows"]
    assert none["fd"] == study[0]["fd"] and none["clip_i"] == pytest.approx(1) and none["edited"] == 0
    assert calibrated["fd"] == pytest.approx(study[1]["fd"]) and calibrated["shares"] == study[1]["shares"]
    assert (program.latest / "dose.svg").is_file()


def images_of(program: Program) -> tuple[torch.Tensor, torch.Tensor]:
    """The images of the last run without an edit, and with it."""
    ids = torch.arange(TINY["metric.images"])
    before = Shards(program.used("images")).images(ids)
    return before, Shards(program.used("steered")).replaced(before, ids)


FIXED = ["task=steer", "mitigation.mode=scale", "mitigation.protocol=official", "mitigation.strength=3"]


def test_no_times_the_strength_is_the_plain_model_though_the_official_protocol_adds_a_bias(program: Program) -> None:
    program.done(*FIXED, "mitigation.assignment=exact", "mitigation.times=0")
    assert torch.equal(*images_of(program))
    rows = program.json("metrics.json")["rows"]
    assert rows[1]["edited"] == 0 and rows[1]["fd"] == rows[0]["fd"]
    # The strength that changes no code still adds the bias: only without an edit is nothing added.
    program.done(*FIXED, "mitigation.assignment=batch", "mitigation.strength=1")
    assert not torch.equal(*images_of(program))
    targets = load_file(program.used("steered") / "targets.safetensors")["targets"]
    assert len(targets) == 16 and len(targets.unique()) == 1, "sixteen images move as one"


def test_all_strengths_act_on_every_image(program: Program) -> None:
    program.done(*FIXED, "task=report", "mitigation.assignment=everyone", "mitigation.strength={female: 1, male: 3}")
    before, after = images_of(program)
    assert (before != after).flatten(1).any(1).all()
    metrics, moves = program.json("metrics.json"), program.json("images/edited.json")
    assert metrics["rows"][1]["edited"] == len(before) == len(moves) and metrics["protocol"]["assignment"] == "everyone"
    assert {move["to"] for move in moves} == {"all classes"}
    assert "all classes" in (program.latest / "report.html").read_text()


def test_a_probe_with_a_hidden_layer_locates_and_gates(program: Program) -> None:
    # Nothing but the probe and what follows from it is made anew.
    program.done("task=steer", "probe=mlp", "probe.hidden=4", "mitigation.strength=1")
    made = program.reused
    assert made["sae"] and not made["probe"] and not made["attribution"] and not made["steered"]


def test_evolution_follows_fresh_images(program: Program) -> None:
    ended = program("task=evolution", "task.images=16")
    assert ended.code == 0 and says_where(ended, "evolution"), ended.err + ended.out
    found = program.json("evolution.json")
    assert found["images"] == 16 and set(found["recall"]) == {"female", "male"}
    assert all(len(found["recall"][name]) == 4 and 0 <= found["busiest"][name] < 4 for name in found["recall"])
    assert (program.latest / "evolution.svg").is_file()


def test_a_planted_onset_is_found() -> None:
    labels = torch.tensor([0, 0, 1, 1])
    read = torch.tensor([[0, 0, 0, 0], [1, 0, 1, 1], [0, 0, 1, 1], [0, 0, 1, 1]])
    codes = torch.zeros(4, 4, 2, 2)
    codes[2, :2, 0, 1] = 3.0  # at step 2, in images of class a, in the upper right
    found = describe(("a", "b"), labels, read, {"a": codes, "b": torch.zeros(4, 4, 2, 2)})
    assert found["recall"] == {"a": [1.0, 0.5, 1.0, 1.0], "b": [0.0, 1.0, 1.0, 1.0]}
    assert found["decodable"] == {"a": 2, "b": 1}
    assert found["busiest"]["a"] == 2 and found["maps"]["a"] == [[0.0, 3.0], [0.0, 0.0]]
    assert found["firing"]["a"]["own"] == [0.0, 0.0, 0.75, 0.0] and sum(found["firing"]["a"]["other"]) == 0
