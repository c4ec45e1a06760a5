"""A mistake in the configuration is told by key, by what must stand there and by value, before torch is imported."""

import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, get_args

import pytest
from composed import composed

from difflens import schema, vocabulary
from difflens.cli.guard import check_places, guard_hydra
from difflens.cli.job import check_mappings, readable
from difflens.config import check_settings, check_top
from difflens.methods import difflens as method
from difflens.methods.assignment import Rule
from difflens.store import targets
from difflens.store.errors import UserError
from difflens.store.run import resolve
from difflens.study import checks


def complaint(command: str) -> str:
    """What is said of a command line, as the program says it, but within this process."""
    guard_hydra()
    with pytest.raises(UserError) as refused:
        overrides = [readable(argument) for argument in shlex.split(command)]
        cfg = composed(*overrides)
        check_places(cfg)
        check_settings(resolve(cfg))
        check_mappings(overrides, list(cfg.attribute.get("classes", ())))
    assert "\n" not in str(refused.value)
    return str(refused.value)


def accepted(command: str) -> Any:
    return check_settings(resolve(composed(*(readable(argument) for argument in shlex.split(command)))))


WHOLE = "must be a whole number of at least"
MEANINGLESS = "would change numbers that no fingerprint knows of"
BAD = [
    ("data.images=99999999999999999999999", "data.images must be at most 10000000, got 99999999999999999999999."),
    ("data.images=1", f"data.images {WHOLE} 2, got 1."),
    ("data.images=many", f"data.images {WHOLE} 2, got 'many'."),
    ("metric.images=1000000000000", "metric.images must be at most 10000000, got 1000000000000."),
    ("model.micro_batch=100000000", f"model.micro_batch {WHOLE} 1 and at most 4096"),
    ("model.eta=-1", "model.eta must be a number from 0 to 1, got -1."),
    ("model.eta=5", "model.eta must be a number from 0 to 1, got 5."),
    ("model.eta=abc", "model.eta must be a number from 0 to 1, got 'abc'."),
    ("model.name=../../x", "model.name must be a name without '/'"),
    ("model.name=null", "model.name must be a name"),
    ("name=../../../../x", "name must be a name without '/'"),
    ("name=a/b", "name must be a name without '/'"),
    ("data.site.branch=cond", "data.site.branch=cond needs prompts, and there are none: use none, or"),
    ("data.site.tensor=outptu", "data.site.tensor must be 'output', 'input' or 'update', got 'outptu'."),
    ("data.base_seed=18446744073709551616", f"data.base_seed {WHOLE} 0 and at most 4294967295"),
    ("seed=1180591620717411303424", f"seed {WHOLE} 0 and at most 4294967295"),
    ("data.validation=2", "data.validation must be a number above 0 and below 1, got 2."),
    ("data.validation=0.9999", "leaves no image to train on"),
    ("metric.base_seed=1001", "give them different seeds"),
    ("sae.k=true", f"sae.k {WHOLE} 1, got True."),
    ("sae.centre=no", "sae.centre must be true or false, got 'no'."),
    ("sae.training.tokens=2e6", f"sae.training.tokens {WHOLE} 1 and at most 1000000000000, got 2000000.0."),
    ("sae.training.lr=0", "sae.training.lr must be a number above 0, got 0."),
    ("probe=mlp probe.hidden=0", f"probe.hidden {WHOLE} 1, got 0."),
    ("probe.held_out=nan", "probe.held_out must be a number above 0 and below 1, got nan."),
    ("probe.l2=null", "probe.l2 must be a number of at least 0, got None."),
    ("+probe.iteration=4", "Did you mean 'probe.iterations'?"),
    ("attribution.baseline=contrast", "attribution.baseline=contrast needs prompts, and there are none: use zero"),
    ("mitigation.strength=true", "mitigation.strength must be auto, a number"),
    ("mitigation.strength=1e30", "got 1e+30."),
    ("mitigation.times=1e30", "mitigation.times must be at most 1000000, got 1e+30."),
    ("mitigation.strength={female:1}", "for each of ['female', 'male'], got {'female': 1}"),
    ("strength=published", "no strength was published for this model and attribute"),
    ("mitigation.update=foo", "mitigation.update must be 'asymmetric' or 'symmetric', got 'foo'."),
    (
        "mitigation.mode=louder",
        "mitigation.mode must be 'contrast', 'margin', 'scale', 'add' or 'clamp', got 'louder'.",
    ),
    ("mitigation.gate=maybe", "mitigation.gate must be true or false, got 'maybe'."),
    ("mitigation.gate=off", "mitigation.gate must be true or false, got 'off'."),
    ("mitigation.assignment=nearest", "mitigation.assignment must be 'exact'"),
    ("mitigation.hold=null", "mitigation.hold must be a group of settings"),
    ("mitigation.hold.attributes=null", "mitigation.hold.attributes must be a list without repeats, got None."),
    ("mitigation.hold.attributes=[age,age]", "mitigation.hold.attributes must be a list without repeats"),
    ("mitigation.hold.attributes=[beard]", "hold.attributes names ['beard'], which judge.others does not list"),
    ("mitigation.name=../../elsewhere", "mitigation.name must be a word of letters"),
    ("mitigation.name=original", "mitigation.name=original is taken"),
    ("+mitigation.strenght=2", "Did you mean 'mitigation.strength'?"),
    ("+mitigation.hold.ratios=3", "nothing reads 'mitigation.hold.ratios'; take it away. Did you mean"),
    ("mitigation.calibration=null", "mitigation.calibration must be a group of settings"),
    ("mitigation.calibration.margin=0.5", "mitigation.calibration.margin must be a number of at least 1, got 0.5."),
    ("mitigation.calibration.margin=abc", "mitigation.calibration.margin must be a number of at least 1, got 'abc'."),
    ("mitigation.calibration.images=1000000000", "mitigation.calibration.images must be at most 10000000"),
    ("mitigation.calibration.first=0", "needs 0 < first ≤ largest"),
    ("mitigation.calibration.per_prompt=true", "mitigation.calibration.per_prompt=true needs prompts"),
    ("mitigation.target=uniform", "mitigation.target must give each class a share"),
    ("mitigation.target={female:half}", "mitigation.target must give each class a share"),
    ("mitigation.target.females=0.5", "no class 'females'; the classes are ['female', 'male']. Did you mean 'female'?"),
    ("mitigation.target.female=1.5", "must be non-negative and sum to 1, and leave something for ['male']; got"),
    ("mitigation.target={female:0.75,male:0.75}", "must be non-negative and sum to 1; got"),
    ("mitigation.target={female:-0.5,male:1.5}", "must be non-negative and sum to 1; got"),
    ("attribution.top=0", "attribution.top must be a whole number of at least 1"),
    ("attribution.top={female:3}", "attribution.top must name each of ['female', 'male']"),
    ("+attribution.seed=4", "nothing reads 'attribution.seed'"),
    ("metric.cards=1000000", f"metric.cards {WHOLE} 1 and at most 1000"),
    ("metric.extractor=null", "metric.extractor must be a group of settings"),
    ("metric.kid_subset=1000000000", f"metric.kid_subset {WHOLE} 2 and at most 100000"),
    ("+metric.imags=3", "Did you mean 'metric.images'?"),
    ("judge.labels=null", "judge.labels must be a group of settings"),
    ("judge.others=[age,age]", "judge.others must be a list without repeats"),
    ("trainer.devices=99999", "trainer.devices=99999 asks for more processes than this machine has cores"),
    ("trainer.devices=true", "trainer.devices must be a whole number of at least 1, got True."),
    ("+trainer.limit_train_batches=0", MEANINGLESS),
    ("+trainer.accumulate_grad_batches=4", MEANINGLESS),
    ("+trainer.max_time=00:00:00:01", MEANINGLESS),
    ("+trainer.limit_predict_batches=1", MEANINGLESS),
    ("+trainer.precision=64", MEANINGLESS),
    ("+sed=3", "nothing reads 'sed'; take it away. Did you mean 'seed'?"),
    ("missing_faces=maybe", "missing_faces must be 'count' or 'error', got 'maybe'."),
    ("paths.outputs=''", "paths.outputs must be a folder, got ''"),
    ("paths.outputs=null", "paths.outputs must be a folder, got None"),
    ("data={}", "data must be a group of settings, got {}"),
    ("published=5", "published must be a group of settings, got 5."),
    ("task=dose task.doses=[]", "task.doses must be a list without repeats that names at least one, got []."),
    ("task=dose task.doses=[nan]", "task.doses.0 must be a finite number, got nan."),
    ("task=ablation task.size=-1", f"task.size {WHOLE} 1, got -1."),
    ("task=ablation task.size=abc", f"task.size {WHOLE} 1, got 'abc'."),
    ("task=separation task.pairs=0", f"task.pairs {WHOLE} 1, got 0."),
    ("task=separation task.steps=[2]", "task.steps.0 must be at most 1, got 2."),
    ("task=transfer task.vary.eta=[1.5]", "task.vary.eta.0 must be at most 1, got 1.5."),
    ("task=transfer +task.vary.sampler=[euler]", "nothing reads 'task.vary.sampler'; take it away."),
    ("task=evolution task.images=-3", f"task.images {WHOLE} 1, got -3."),
    ("task=explore task.port=99999", f"task.port {WHOLE} 0 and at most 65535"),
    ("task=explore task.images=0", f"task.images {WHOLE} 1 and at most 4096, got 0."),
    ("task=miniature task.models=[]", "task.models must be a list without repeats that names at least one, got []."),
    ("task=convert task.new_attention_order=no", "task.new_attention_order must be true or false, got 'no'."),
    ("model=mini_sd model.guidance=-5", "model.guidance must be a number of at least 0, got -5."),
    ("model=mini_sd model.negative_prompt=5", "model.negative_prompt must be a text (in quotes"),
    ("model=mini_sd prompt.subject=foo", "one of profession, gender, age, race, glasses"),
    ("model=mini_sd attribute.words={female:female}", "attribute.words must name each of ['female', 'male']"),
    ("model=mini_sd attribute.words.male=null", "attribute.words gives no word that names ['male'] of 'gender'"),
    ("model=mini_sd attribute.synonyms.female=woman", "attribute.synonyms.female must be a list"),
    (
        "model=mini_sd +attribute.synonyms.men=[dude]",
        "attribute.synonyms has words for ['men'], which are no classes of",
    ),
    ("model=mini_sd +attribute.unless.before=[hair]", "nothing reads 'attribute.unless.before'; take it away."),
    ("model=mini_sd prompt.gate=off", "prompt.gate must be true or false, got 'off'."),
    ("model=mini_sd metric.named=0", f"metric.named {WHOLE} 1, got 0."),
    ("paths.outputs=a[1]", "paths.outputs=a[1] cannot be read; put its value into quotes"),
]


@pytest.mark.parametrize(("command", "words"), BAD, ids=[command for command, _ in BAD])
def test_a_mistake_is_told_by_key_and_value(command: str, words: str) -> None:
    assert words in complaint(command)


def test_the_program_says_so_in_one_line_within_seconds_and_without_torch(tmp_path: Path) -> None:
    code = (
        "import atexit, sys; from difflens.main import main; sys.argv = ['difflens', 'model.eta=5'];"
        "atexit.register(lambda: print(sorted({'torch', 'lightning', 'diffusers', 'wandb'} & set(sys.modules)))); main()"
    )
    begun = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout.splitlines()[-1]) == (2, "[]") and time.monotonic() - begun < 30
    assert done.stderr == "difflens: error: model.eta must be a number from 0 to 1, got 5.\n"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ("", "strength=auto"),
        ("mitigation.strength=2.0", "mode=margin"),
        ("mitigation.strength=2.0 mitigation.mode=contrast", "mode=contrast"),
        ("mitigation.strength=2.0 mitigation.mode=scale mitigation.suppress=0.5", "suppress=0.5"),
        (
            "mitigation.strength=2.0 mitigation.mode=scale mitigation.hold.attributes=[gender,age,race]",
            "hold.attributes=['age', 'race']",
        ),
    ],
)
def test_where_all_strengths_act_on_every_image_nothing_may_need_a_target_class(settings: str, words: str) -> None:
    told = complaint(f"mitigation.assignment=everyone {settings}")
    assert f"mitigation.{words} needs a target class for each image" in told
    accepted("mitigation.assignment=everyone mitigation.strength=2 mitigation.mode=scale mitigation.hold.attributes=[]")


def test_words_are_those_of_the_code() -> None:
    def told(group: type, name: str) -> set[str]:
        return {word for kind in (group.model_fields[name].annotation,) for word in get_args(kind)} - {type(None)}

    assert set(get_args(vocabulary.Where)) == told(schema.Site, "tensor")
    assert told(schema.Mitigation, "assignment") == set(get_args(Rule))
    for name in ("mode", "unit", "places", "protocol"):
        assert told(schema.FeatureMethod, name) == set(get_args(getattr(method, name.title())))


def test_class_names_that_yaml_reads_as_booleans_are_to_be_quoted(tmp_path: Path) -> None:
    (tmp_path / "attribute").mkdir()
    (tmp_path / "attribute" / "smile.yaml").write_text(
        "_target_: difflens.vocabulary.Attribute\nname: smile\nclasses: [yes, no]\n"
    )
    told = complaint(f"attribute=smile hydra.searchpath=[{tmp_path}]")
    assert "attribute.classes.0 must be a text (in quotes" in told and told.endswith("got True.")
    assert "Put class names such as yes, no" in complaint("mitigation.target={true:0.5,male:0.5}")
    assert accepted("attribute.classes=[yes,no] mitigation.target.yes=0.7 mitigation.strength={yes:1,no:2}")


@pytest.mark.parametrize(
    ("argument", "read"),
    [
        ("mitigation.target.female=0.75", "++mitigation.target.female=0.75"),
        ("paths.outputs=/tmp/größe", "paths.outputs='/tmp/größe'"),
        ("paths.outputs=a=b", "paths.outputs='a=b'"),
        ("paths.outputs=a b", "paths.outputs=a b"),
        ("paths.outputs=~/x", f"paths.outputs={Path.home()}/x"),
        ("hydra.sweeper.params={a: 1}", "hydra.sweeper.params={a: 1}"),
        ("--config-dir=ä", "--config-dir=ä"),
        ("-m", "-m"),
    ],
)
def test_arguments_become_what_hydra_reads(argument: str, read: str) -> None:
    assert readable(argument) == read


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"seed:\n\t1\n", "line 2: found character '\\t' that cannot start any token; indent with spaces."),
        (b"seed: 1\nseed: 2\n", "line 2: found duplicate key seed."),
        ("seed: 1\n".encode("utf-16"), "line 1: begins with a byte-order mark"),
        (b"\xef\xbb\xbfseed: 1\n", "line 1: begins with a byte-order mark"),
        ("seed: 1\n# für\n".encode("latin-1"), "line 2: is not UTF-8 text"),
    ],
)
def test_a_file_that_cannot_be_read_is_named_with_its_line(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "experiment").mkdir()
    path = tmp_path / "experiment" / "own.yaml"
    path.write_bytes(content)
    assert complaint(f"experiment=own hydra.searchpath=[{tmp_path}]").startswith(f"{path}, {words}")


def test_what_a_class_of_ones_own_takes_is_left_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(targets, "own_packages", ("mine",))
    settings = accepted("mitigation._target_=mine.Method +mitigation.anything=3")
    assert settings.mitigation.model_extra["anything"] == 3


def test_as_many_latents_as_the_sae_has() -> None:
    checks.check_top({"female": 12, "male": 0}, width=12)
    with pytest.raises(ValueError, match=r"attribution\.top must be 1 to 12 \(the SAE's width\), got 13"):
        checks.check_top(13, width=12)
    for top in (0, -1, "all", {"female": 0, "male": 0}):
        with pytest.raises(UserError, match=r"attribution\.top must"):
            check_top(top, ("female", "male"))
