"""The program in a folder with a small configuration and tasks of its own, each start a process of its own."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import yaml

from difflens.main import conf_folder

TASKS = """
import os
import sys
import time

def quiet(cfg, run):
    with run.stage("sae"):
        run.artifact("sae", {"attribute": cfg.attribute.name}, lambda folder: (folder / "x").write_text("x"))

def fails(cfg, run):
    with run.stage("sae"):
        if cfg.attribute.name == os.environ.get("BROKEN", "age"):
            raise RuntimeError("the loss\\nis NaN")

def shares(cfg, run):
    def make(folder):
        time.sleep(1)
        with open("made.txt", "a") as file:
            file.write("once ")

    run.artifact("sae", {}, make)
    fails(cfg, run)

def refuses(cfg, run):
    raise ValueError("sae.k=0 must be positive.")

def hangs(cfg, run):
    with run.stage("sae"):
        (run.folder / "hanging").touch()
        try:
            pauses = dict(pair.split(":") for pair in os.environ.get("PAUSE", "").split())
            time.sleep(float(pauses.get(cfg.attribute.name, 600)))
        except KeyboardInterrupt:
            if cfg.attribute.name == "age":
                # What Lightning does in the middle of a training.
                sys.exit(1)
            if cfg.attribute.name == "race":
                # What torch does where it asks an object for its shape.
                raise ValueError("could not determine the shape") from None
            raise
"""

CONFIG = """
defaults:
  - _self_
  - task: quiet
  - attribute: gender
name: ${task.name}
seed: 3
"""


class World:
    """A folder with its own small configuration and tasks, and the program started in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.conf = folder / "conf"
        shutil.copytree(conf_folder() / "hydra", self.conf / "hydra")
        real = yaml.safe_load((conf_folder() / "config.yaml").read_text("utf-8"))
        (self.conf / "config.yaml").write_text(CONFIG + yaml.safe_dump({key: real[key] for key in ("paths", "hydra")}))
        (folder / "difflens_testing_tasks.py").write_text(TASKS)
        for task in ("quiet", "fails", "shares", "refuses", "hangs"):
            self.option("task", task, f"name: {task}\n_target_: difflens_testing_tasks.{task}\n")
        for attribute in ("gender", "age", "race"):
            self.option("attribute", attribute, f"name: {attribute}\n")

    def option(self, group: str, name: str, text: str) -> None:
        (self.conf / group).mkdir(exist_ok=True)
        (self.conf / group / f"{name}.yaml").write_text(text)

    def start(self, *arguments: str, **variables: str) -> subprocess.Popen[str]:
        package = str(Path(__file__).parents[1])
        env = {name: value for name, value in os.environ.items() if name not in ("HYDRA_FULL_ERROR", "DIFFLENS_DEBUG")}
        env |= {"PYTHONPATH": f"{package}:{self.folder}", "DIFFLENS_ALLOW_TARGETS": "difflens_testing_tasks"}
        command = [sys.executable, "-m", "difflens.main", f"--config-path={self.conf}", *arguments]
        pipe = subprocess.PIPE
        return subprocess.Popen(command, cwd=self.folder, env=env | variables, stdout=pipe, stderr=pipe, text=True)

    def __call__(self, *arguments: str, **variables: str) -> tuple[int, str, str]:
        with self.start(*arguments, **variables) as process:
            try:
                out, err = process.communicate(timeout=300)
            finally:
                process.kill()
        return process.returncode, out, err

    def status(self) -> dict:
        return json.loads((self.folder / "outputs" / "latest" / "status.json").read_text())
