"""What an experiment leaves in its run folder: its numbers and their plot."""

import os
from collections.abc import Callable
from typing import Any

from matplotlib.figure import Figure

from difflens.report.figures import save_plot
from difflens.store.run import Run


def keep(
    run: Run, name: str, data: dict[str, Any], draw: Callable[[Figure, Any], None], size: tuple[float, float]
) -> None:
    """Write `<name>.json` and, drawn from it, `<name>.svg`, and say where they lie; sizes are in inches."""
    numbers = run.write_json(f"{name}.json", data)
    if run.rank:
        return
    plot = save_plot(run.folder, name, draw, data, size)
    run.say(f"{name}: {os.path.relpath(plot)} and {os.path.relpath(numbers)}")
