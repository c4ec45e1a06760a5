"""One calibration for all prompts against one for each: `uv run python experiments/compare_calibrations.py attribute=gender`.

Runs the study of `mini_sd` both ways, with whatever else is given on the command line, and prints the hard FD under every
prompt, on the evaluation seeds and by the second judge; prompts that were never calibrated stand last.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

LATEST = Path(os.environ.get("DIFFLENS_OUTPUTS", "outputs")) / "latest"


def study(per_prompt: bool, overrides: Sequence[str]) -> dict[str, list[dict[str, Any]]]:
    """The rows of one study, of the studied and of the unseen prompts: the originals' and the mitigation's."""
    settings = [f"mitigation.calibration.per_prompt={str(per_prompt).lower()}", *overrides]
    if code := subprocess.run([sys.executable, "-m", "difflens.main", "model=mini_sd", *settings]).returncode:
        sys.exit(code)  # the program has said why
    files = {"studied": LATEST / "metrics.json", "unseen": LATEST / "metrics_unseen.json"}
    return {name: json.loads(file.read_text())["rows"] for name, file in files.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("overrides", nargs="*", help="what else the studies are told, such as attribute=gender")
    overrides = parser.parse_args().overrides
    shared, own = study(False, overrides), study(True, overrides)
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
