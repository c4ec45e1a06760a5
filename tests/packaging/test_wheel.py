"""The wheel is whole: it carries the configuration and the embedded weights and works far from the checkout."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return next(folder.glob("difflens-*.whl"))


def test_the_wheel_holds_every_module_config_and_weight(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    conf = [path for path in (ROOT / "conf").rglob("*") if path.suffix in (".yaml", ".py")]
    package = [path for path in (ROOT / "difflens").rglob("*.py")]
    folders = (ROOT / "difflens" / "miniature" / "weights", ROOT / "difflens" / "judges" / "photographs")
    weights = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    expected = {f"difflens/{path.relative_to(ROOT)}" for path in conf}
    expected |= {str(path.relative_to(ROOT)) for path in [*package, *weights]}
    assert conf and expected <= names, sorted(expected - names)
    assert not [name for name in names if name.startswith(("tests", "outputs")) or "__pycache__" in name]


def test_the_unpacked_wheel_shows_its_help_and_its_config_elsewhere(wheel, tmp_path):
    installed, elsewhere = tmp_path / "installed", tmp_path / "elsewhere"
    zipfile.ZipFile(wheel).extractall(installed)
    elsewhere.mkdir()
    env = os.environ | {"PYTHONPATH": str(installed)}
    for arguments in (["--help"], ["--info", "searchpath"]):
        done = subprocess.run(
            [sys.executable, "-m", "difflens.main", *arguments],
            cwd=elsewhere, env=env, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert "task" in done.stdout or str(installed / "difflens" / "conf") in done.stdout
    assert str(installed / "difflens" / "conf") in done.stdout and str(ROOT) not in done.stdout
    assert list(elsewhere.iterdir()) == []
