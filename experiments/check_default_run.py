"""Whether `outputs/latest` holds the default run's golden numbers: `uv run python experiments/check_default_run.py`.

The tolerances leave room for another processor's rounding, which moves single images across a class border, and for no
more. A change that moves a number beyond them belongs in the changelog, and its new value into `default_run.json`.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from difflens.store.past_run import newest_having

GOLDEN = Path(__file__).with_name("default_run.json")


def look_up(metrics: Any, path: str) -> float:
    """The number at a dotted path such as `rows.1.fd_hard`."""
    for part in path.split("."):
        metrics = metrics[int(part)] if isinstance(metrics, list) else metrics[part]
    return float(metrics)


def main() -> None:
    """Print every number beside its golden value; exit 1 if one is off."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", nargs="?", type=Path, default=Path("outputs/latest"), help="the run's folder")
    file = newest_having(parser.parse_args().run, "metrics.json") / "metrics.json"
    if not file.is_file():
        parser.error(f"there is no {file}; make it with `uv run difflens`.")
    metrics = json.loads(file.read_text())
    off = 0
    for path, (value, tolerance) in json.loads(GOLDEN.read_text()).items():
        found = look_up(metrics, path)
        wrong = abs(found - value) > tolerance
        off += wrong
        print(f"{'OFF ' if wrong else 'ok  '} {path:<32} {found:>9.4f}  golden {value:.4f} ± {tolerance}")
    sys.exit(1 if off else 0)


if __name__ == "__main__":
    main()
