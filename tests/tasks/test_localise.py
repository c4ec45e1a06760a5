"""Every block is read in one pass, and pushes are tried where reading is best."""

import pytest
import torch
import yaml
from program import Program, undisturbed
from tiny_pipeline import images, plan, tiny_text_to_image, tiny_unconditional

from difflens.models.hooks import readable_modules
from difflens.stages.localise import Trial, ordered
from difflens.vocabulary import Site


def test_places_are_named_in_the_order_in_which_they_are_computed() -> None:
    model = tiny_unconditional()
    names, seen = readable_modules(model.unet), []
    assert "mid_block" in names and len(set(names)) == len(names)
    handles = [
        model.unet.get_submodule(name).register_forward_hook(lambda *_, name=name: seen.append(name)) for name in names
    ]
    model.site_shape(Site(names[-1]))
    for handle in handles:
        handle.remove()
    assert [name for name in seen if seen.count(name) == 1][: len(names)] == names
    with pytest.raises(ValueError, match="no blocks"):
        readable_modules(torch.nn.Linear(2, 2))


@pytest.mark.parametrize("make", [tiny_unconditional, tiny_text_to_image])
def test_readers_see_what_is_recorded_and_change_nothing(make) -> None:
    model = make(micro_batch=4)
    site = Site("mid_block", branch=model.default_branch)
    other = Site(readable_modules(model.unet)[0], branch=model.default_branch)
    read: dict[Site, list[torch.Tensor]] = {site: [], other: []}
    readers = {each: (lambda _, h, each=each: read[each].append(h.clone())) for each in read}
    asked = plan([0, 1])
    (batch,) = model.sample(asked, readers=readers)
    (recorded,) = model.sample(asked, record=site)
    assert torch.equal(torch.stack(read[site], 1).half(), recorded.activations)
    assert len(read[other]) == model.steps and read[other][0].shape[0] == 2
    assert torch.equal(batch.images, torch.stack(list(images(model, asked).values())))


def test_what_arrives_comes_first_and_then_what_stays_most_alike() -> None:
    def trial(reached: float, clip_i: float, oddness: float = 1.0) -> Trial:
        return Trial("mid_block", 0.0, 1.0, 1.0, reached, 0.5, clip_i, clip_i, clip_i, oddness)

    found = ordered([trial(0.5, 0.99), trial(0.97, 0.8), trial(0.96, 0.9), trial(0.7, 0.5), trial(1.0, 0.99, 9.0)])
    # Ghosts are the most similar of all: the old picture shines through.
    wanted = [(0.96, 0.9), (0.97, 0.8), (1.0, 0.99), (0.7, 0.5), (0.5, 0.99)]
    assert [(each.reached, each.clip_i) for each in found] == wanted


SMALL = ("localise.images=32", "localise.tried=4", "localise.sites=2", "localise.windows=[[0.0,1.0],[0.5,1.0]]")


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Program:
    return undisturbed().copied(tmp_path_factory.mktemp("localise") / "study")


def test_nothing_is_chosen_for_what_acts_at_no_site(program: Program) -> None:
    program.done("task=doctor", "data.site=auto", "mitigation.window=auto")
    program.done("task=activations", "data.site=auto", "mitigation=redraw")
    for words, complaint in (
        (("data.site=auto", "mitigation.window=auto", "mitigation=icm"), "mitigation.window=auto"),
        (("data.site=mid_block",), "must be auto, or"),
        (("mitigation.window=early",), "must be auto, or"),
        (("task=localise", "localise.windows=[[0.5,1.5]]"), "localise.windows"),
    ):
        assert complaint in program.refused(*words)
    few = program("task=localise", "localise.images=8", "attribute=race")
    assert few.code == 2 and "raise localise.images" in few.err
    assert not program.artifacts("localisation")


def test_a_study_says_where_its_bias_lives_and_acts_there(program: Program) -> None:
    ended = program.done("task=localise", *SMALL)
    found = program.json("localise.json")
    recall = torch.tensor(found["recall"])
    assert recall.shape == (len(found["sites"]), 4) and recall[:, -1].max() > 0.9
    assert len(found["trials"]) == 2 + 2 and "best: data.site.module=" in ended.out
    assert {trial["stop"] for trial in found["trials"]} == {1.0}
    assert (program.latest / "localise.svg").stat().st_size > 1000
    # From here on it chooses by itself, and says so.
    given = (*SMALL, "mitigation.strength=2")
    program.done("data.site=auto", "mitigation.window=auto", *given)
    reused = program.reused
    assert reused["localisation"], "it is found once"
    chosen = program.json("manifest.json")["chosen"]
    config = yaml.safe_load((program.latest / "config.yaml").read_text())
    # Whatever reads the run later sees plain values.
    assert config["data"]["site"]["module"] == chosen["values"]["data.site.module"]
    window = config["mitigation"]["window"]
    assert [window["start"], window["stop"]] == [chosen["trial"]["start"], chosen["trial"]["stop"]]
    original, edited = program.json("metrics.json")["rows"]
    assert "oddness" not in original and edited["oddness"] > 0
    page = (program.latest / "report.html").read_text()
    assert chosen["artifact"] in page and f"data.site.module={config['data']['site']['module']}" in page
    # The same values by hand are the same study: nothing is made anew.
    named = (f"data.site.module={config['data']['site']['module']}", f"mitigation.window.start={window['start']}")
    again = program(*named, f"mitigation.window.stop={window['stop']}", *given)
    assert again.code == 0 and all(entry["reused"] for entry in program.json("manifest.json")["artifacts"])
    assert "chosen" not in program.json("manifest.json")


def test_of_site_and_window_each_may_be_chosen_alone(program: Program) -> None:
    few = ("task=activations", "data.images=16", *SMALL, "localise.tried=2", "localise.sites=1")
    program.done(*few, "mitigation.window=auto", "data.site.module=up_blocks.1.resnets.0")
    chosen = program.json("manifest.json")["chosen"]
    assert chosen["trial"]["site"] == "up_blocks.1.resnets.0" and "data.site.module" not in chosen["values"]
    program.done(*few, "data.site=auto", "mitigation.window.start=0.25")
    chosen = program.json("manifest.json")["chosen"]
    assert (chosen["trial"]["start"], list(chosen["values"])) == (0.25, ["data.site.module"])
