"""One calibration for all prompts against one for each: `uv run python experiments/compare_calibrations.py attribute=gender`.

Runs the study of `mini_sd` both ways, with whatever else is given on the command line, and prints the hard FD under every
prompt, on the evaluation seeds and by the second judge; prompts that were never calibrated stand last.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

LATEST = Path(os.environ.get("DIFFLENS_OUTPUTS", "outputs")) / "latest"


def study(per_prompt: bool) -> dict[str, dict[str, Any]]:
    """The rows of one study, of the studied and of the unseen prompts: the originals' and the mitigation's."""
    settings = [f"mitigation.calibration.per_prompt={str(per_prompt).lower()}", *sys.argv[1:]]
    subprocess.run(["difflens", "model=mini_sd", *settings], check=True)
    files = {"studied": LATEST / "metrics.json", "unseen": LATEST / "metrics_unseen.json"}
    return {name: json.loads(file.read_text())["rows"] for name, file in files.items()}


def main() -> None:
    shared, own = study(per_prompt=False), study(per_prompt=True)
    table = Table(title="FD hard", title_justify="left")
    for column in ("prompt", "original", "one strength for all prompts", "one for each"):
        table.add_column(column, justify="left" if column == "prompt" else "right")
    for name in ("studied", "unseen"):
        (original, together), (_, apart) = shared[name], own[name]
        for prompt in original["prompts"]:
            found = (row["prompts"][prompt]["fd_hard"] for row in (original, together, apart))
            table.add_row(prompt, *(f"{value:.3f}" for value in found))
        means = (row["fd_hard_prompt_mean"] for row in (original, together, apart))
        table.add_row(f"mean of the {name} prompts", *(f"{value:.3f}" for value in means), end_section=True)
    Console().print(table)


if __name__ == "__main__":
    main()
