"""What each stage of a finished run took against its floor: `uv run python experiments/stage_costs.py outputs/latest`.

The floor of a stage is the U-Net alone: as many steps of as many images as the stage sends through it, at the time that one
takes on this machine now (SAE, judges and files cost what is above it), counted as `task=doctor` counts them: the calibration
may have taken fewer doses. Stages that send none have no floor.
Measure on the machine of the run, with nothing beside it; stages that the run reused are left out.
"""

import argparse
import json
from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table

from difflens.tasks.forecast import Floor, measure_floor, read_shape, read_work, seconds

STEPS_ALONE = Floor(step=1.0, image=0.0, train=0.0, encode=0.0, value=0.0, label=0.0, score=0.0, extract=0.0)
"""With this floor, seconds are steps of the U-Net, each of one image."""


def costs(run: Path) -> dict[str, tuple[float, float, float]]:
    """Of every stage: its seconds, the U-Net's steps of one image in it, and the seconds of those alone."""
    cfg = OmegaConf.load(run / "config.yaml")
    assert isinstance(cfg, DictConfig)
    shape = read_shape(cfg)
    work, sae = read_work(cfg, shape)
    step = measure_floor(cfg, shape, sae)[0].step
    spent = json.loads((run / "manifest.json").read_text())["seconds"]
    counted = seconds(work, STEPS_ALONE)
    return {name: (took, counted.get(name, 0.0), counted.get(name, 0.0) * step) for name, took in spent.items()}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", nargs="?", type=Path, default=Path("outputs/latest"))
    shown = Table("stage", "seconds", "image steps", "ms each", "U-Net alone, s", "times the floor")
    for name, (took, steps, floor) in costs(parser.parse_args().run).items():
        row = [name, f"{took:.1f}"]
        if steps:
            row += [f"{steps:,.0f}", f"{1000 * took / steps:.2f}", f"{floor:.1f}", f"{took / floor:.2f}"]
        shown.add_row(*row)
    Console().print(shown)


if __name__ == "__main__":
    main()
