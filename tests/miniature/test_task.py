"""`task=miniature` makes what its models need of each other, and goes on where a killed run stopped."""

from pathlib import Path
from typing import Any

import open_clip
import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from difflens.miniature.fit import FitSettings
from difflens.miniature.reader_recipes import JudgeRecipe
from difflens.store.artifacts import ArtifactStore
from difflens.store.run import Run
from difflens.tasks.miniature import make_recipe, miniature

CONF = Path(__file__).parents[2] / "conf"
TINY = {
    "judge": {"recipe.pool": 64, "recipe.held_out": 64, "fit.steps": 6, "fit.batch": 4, "fit.checkpoint_every": 2},
    "generator": {"recipe.pool": 8, "recipe.watched": 2, "recipe.watched_steps": 1, "fit.steps": 1, "fit.batch": 4},
}


def composed(folder: Path, *overrides: str) -> DictConfig:
    tiny = [f"++task.recipes.{name}.{key}={value}" for name, row in TINY.items() for key, value in row.items()]
    places = [f"task.export_to={folder / 'weights'}", f"task.workspace={folder / 'work'}"]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("config", overrides=["task=miniature", *places, *tiny, *overrides])


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path / "run", ArtifactStore(tmp_path / "artifacts"))


def written(folder: Path) -> dict[str, bytes]:
    """The weights and logs of every model, by their place."""
    files = [path for path in sorted((folder / "weights").rglob("*")) if path.suffix in (".safetensors", ".csv")]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_a_killed_training_goes_on_and_ends_as_an_undisturbed_one(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = "task.models=[judge,generator]"
    miniature(composed(tmp_path / "whole", models), run)
    loss = JudgeRecipe.loss

    def killed(self: JudgeRecipe, model: Any, step: int, settings: FitSettings) -> Any:
        if step == 5:
            raise KeyboardInterrupt
        return loss(self, model, step, settings)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(JudgeRecipe, "loss", killed)
        miniature(composed(tmp_path / "killed", models), run)
    assert not written(tmp_path / "killed") and (tmp_path / "killed/work/judge/checkpoint.pt").is_file()
    miniature(composed(tmp_path / "killed", models), run)
    whole = written(tmp_path / "whole")
    assert written(tmp_path / "killed") == whole and len(whole) == 4


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["task.models=[hat]"], "task.models names 'hat'; the recipes are"),
        (["task.models=[judge]", "task.recipes.judge.recipe.population=fair"], "no population 'fair'"),
        (["task.models=[judge]", "task.recipes.judge.recipe.kind=hat"], "no kind 'hat'; there are judge, clip"),
        (["task.models=[judge]", "+task.recipes.judge.fit.epochs=3"], "judge.fit has no 'epochs'; it has steps, batch"),
        (["task.models=[judge]", "+task.recipes.judge.recipe.hat=3"], "a recipe of kind judge has no 'hat'"),
    ],
)
def test_what_does_not_exist_is_refused_by_name(overrides: list[str], message: str, tmp_path: Path, run: Run) -> None:
    with pytest.raises(ValueError, match=message):
        miniature(composed(tmp_path, *overrides), run)
    assert not (tmp_path / "weights").exists()


def test_the_shipped_clip_is_open_clips_and_small(tmp_path: Path) -> None:
    for name in ("clip", "workplace_clip"):
        model = make_recipe(**OmegaConf.to_container(composed(tmp_path).task.recipes[name].recipe)).build()
        assert type(model) is open_clip.CLIP and model.visual.grid_size == (8, 8)
        assert sum(parameter.numel() for parameter in model.parameters()) <= 3_000_000
