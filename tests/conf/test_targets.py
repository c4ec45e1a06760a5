"""A slot of the configuration takes what is on its list or of its seam, and nothing else, wherever it stands."""

import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from difflens.cli.guard import check_hydra, guard_hydra
from difflens.cli.products import choices
from difflens.main import conf_folder
from difflens.store import targets
from difflens.store.errors import BuildError, UserError
from difflens.store.targets import SLOTS, build, check_targets, find_targets, read_environment
from difflens.vocabulary import Attribute

MINE = """
import shutil
from difflens.methods.h_direction import HDirection

class Nudge(HDirection):
    pass

class Stranger:
    pass

def make_judge():
    return Stranger()
"""


@pytest.fixture
def own_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A user's module `mine_own`, named in the environment."""
    (tmp_path / "mine_own.py").write_text(MINE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("DIFFLENS_ALLOW_TARGETS", "mine_own, other.")
    read_environment()
    yield
    monkeypatch.undo()
    sys.modules.pop("mine_own", None)
    read_environment()


def test_everything_on_the_lists_exists() -> None:
    for slot in SLOTS.values():
        for name in (*slot.allowed, *([slot.seam] if slot.seam else [])):
            module, _, last = name.rpartition(".")
            assert callable(getattr(import_module(module), last)), name


def test_every_target_of_a_file_is_on_some_list() -> None:
    known = {name for slot in SLOTS.values() for name in slot.allowed}
    for path in conf_folder().glob("**/*.yaml"):
        found = {target for _, target in find_targets(yaml.safe_load(path.read_text("utf-8")) or {})}
        assert found <= known, path


def test_every_target_of_a_choice_without_a_file_is_on_its_groups_list() -> None:
    for group, named in choices(conf_folder()).items():
        for node in named.values():
            check_targets({group: node})


@pytest.mark.parametrize(
    ("key", "target"),
    [
        ("metric.reference", "difflens.cli.sweeps.clear"),  # deletes a folder
        ("logger", "difflens.store.run.git"),  # runs a command
        ("judge.labels", "open_clip.factory.load_checkpoint"),  # unpickles
        ("sae.training", "difflens.training.sae_module.SaeModule.load_from_checkpoint"),
        ("model", "diffusers.DiffusionPipeline.from_pretrained"),  # runs a folder's own code
        ("metric.reference", "difflens.tasks.convert.shutil.copyfile"),
        ("model", "difflens.models.load.load_unconditional.__globals__"),
        ("model", "difflens.sae.topk.TopKAutoencoder"),  # of another slot
        ("judge.labels", "torch.hub.load"),
        ("sae", "os.system"),
        ("sae", 17),
        ("task", "builtins.eval"),
        ("sae", "mine_own.Mine"),  # not named in the environment
        ("paths", "difflens.vocabulary.Site"),  # no slot
        ("", "difflens.vocabulary.Site"),
        ("mitigation.window.deeper", "difflens.vocabulary.Site"),
        ("judge.others.0", "difflens.vocabulary.Site"),
    ],
)
def test_what_is_not_on_a_slots_list_is_refused(key: str, target: Any) -> None:
    assert not targets.own_packages
    node: Any = {"_target_": target}
    for part in reversed([part for part in key.split(".") if part]):
        node = [node] if part == "0" else {part: node}
    with pytest.raises(UserError, match=r"_target_ of ") as refused:
        check_targets(node)
    assert repr(target) in str(refused.value) and (key or "the top level") in str(refused.value)
    if key:
        with pytest.raises(UserError):
            build({"_target_": target}, key)


def test_a_package_of_ones_own_fills_slots_of_its_seam_alone(own_package: None) -> None:
    assert type(build({"_target_": "mine_own.Nudge", "gate": False}, "mitigation")).__name__ == "Nudge"
    for target, key, words in (
        ("mine_own.Stranger", "mitigation", "is no difflens.methods.base.Method; name a class of it"),
        ("mine_own.make_judge", "judge.labels", "is no difflens.judges.protocol.Judge"),
        ("mine_own.shutil.copyfile", "probe", "there is no class or function|comes from 'shutil'|No module"),
        ("mine_own.HDirection", "mitigation", "comes from 'difflens.methods.h_direction', not from your package"),
        ("mine_own.Nudge", "attribute", "it must be one of difflens.vocabulary.Attribute"),
        ("mine_own.Missing", "mitigation", "there is no class or function 'Missing'"),
        ("mine_own._Hidden", "mitigation", "must be one of"),
    ):
        with pytest.raises(UserError, match=words):
            build({"_target_": target}, key)


def test_the_environment_is_read_before_a_configuration_can_change_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIFFLENS_ALLOW_TARGETS", "mine_own")
    with pytest.raises(UserError, match="set DIFFLENS_ALLOW_TARGETS"):
        check_targets({"mitigation": {"_target_": "mine_own.Nudge"}})


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("+hydra.callbacks.x._target_=difflens.store.run.git", "_target_ of hydra.callbacks.x"),
        ("+hydra.job.env_set.DIFFLENS_ALLOW_TARGETS=os", "set it before difflens is started"),
        ("hydra.job_logging.handlers.file.class=shutil.copyfile", "hydra.job_logging.handlers.file.class"),
        ("hydra.sweeper._target_=os.system", "_target_ of hydra.sweeper"),
        ("hydra.callbacks.sweep._target_=${name}", "_target_ of hydra.callbacks.sweep"),
    ],
)
def test_hydras_own_objects_are_looked_at_before_it_builds_them(override: str, words: str) -> None:
    guard_hydra()
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        check_hydra(compose("config", return_hydra_config=True).hydra)
        with pytest.raises(UserError, match=words):
            compose("config", overrides=[override])


def test_factories_of_logs_are_refused() -> None:
    settings = {"job": {"env_set": {}}, "hydra_logging": {"handlers": [{"()": "os.system"}]}}
    with pytest.raises(UserError, match=r"logs are written by classes of logging"):
        check_hydra(OmegaConf.create(settings))


def test_objects_inside_are_built_first_and_settings_that_nobody_takes_are_named() -> None:
    attribute = build({"_target_": "difflens.vocabulary.Attribute", "name": "a", "classes": ("x", "y")}, "attribute")
    assert attribute == Attribute("a", ("x", "y"))
    window = {"_target_": "difflens.methods.base.Window", "start": 2, "stop": 1}
    described = {"_target_": "difflens.methods.h_direction.HDirection", "window": window}
    with pytest.raises(BuildError, match=r"mitigation\.window \(difflens\.methods\.base\.Window\): mitigation\.window"):
        build(described, "mitigation")
    partial = {"_target_": "difflens.sae.topk.TopKAutoencoder", "_partial_": True, "topk": 3}
    with pytest.raises(BuildError, match=r"sae \(.*\): TypeError: TopKAutoencoder takes no 'topk'"):
        build(partial, "sae")
