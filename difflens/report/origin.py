"""Sections on where the results come from: time, settings, versions, artifacts, and the commands that repeat them."""

import shlex
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

from difflens.report.run_folder import RunFolder
from difflens.report.wording import number, seconds


def costs(run: RunFolder) -> Mapping[str, Any] | None:
    """Seconds per stage, the whole run's, and peak memory."""
    stages = run.manifest.get("seconds") or {}
    peaks = {"main memory": "peak_memory_mib", "GPU memory": "peak_gpu_memory_mib"}
    measured = {name: run.manifest.get(key) for name, key in peaks.items()}
    memory = {name: f"{number(size, 0)} MiB" for name, size in measured.items() if size is not None}
    if not stages and not memory:
        return None
    longest = max(stages.values(), default=0) or 1
    return {
        "stages": [(name, seconds(value), round(100 * value / longest, 1)) for name, value in stages.items()],
        "total": seconds(run.status.get("seconds", sum(stages.values()))),
        "memory": memory,
    }


def settings(run: RunFolder) -> Mapping[str, Any] | None:
    """The resolved configuration and what the command line changed."""
    if not run.config:
        return None
    overrides, seeds = run.manifest.get("overrides") or [], run.manifest.get("seeds") or {}
    return {"config": run.config, "overrides": overrides, "seeds": seeds}


def versions(run: RunFolder) -> Mapping[str, Any] | None:
    """Packages, machine and artifacts' fingerprints."""
    packages = {name: version for name, version in (run.manifest.get("versions") or {}).items() if version}
    machine = {key: run.manifest[key] for key in ("python", "platform") if run.manifest.get(key)}
    artifacts = _artifacts(run.manifest.get("artifacts"))
    if not packages and not artifacts:
        return None
    return {"versions": {**packages, **machine}, "artifacts": artifacts}


def _artifacts(entries: Any) -> list[tuple[str, str, str]]:
    if isinstance(entries, dict):
        entries = [{"kind": kind, **entry} for kind, entry in entries.items()]
    return [
        (str(e.get("kind", "?")), str(e.get("fingerprint", "?")), "reused" if e.get("reused") else "made by this run")
        for e in entries or []
    ]


def repeat(run: RunFolder) -> Mapping[str, Any] | None:
    """The shell lines that make these numbers again."""
    command = run.manifest.get("command")
    if not command:
        return None
    git = run.manifest.get("git") or {}
    lines = [f"git checkout {shlex.quote(str(git['commit']))}", "uv sync --frozen"] if git.get("commit") else []
    return {"lines": [*lines, command_line(command)], "dirty": bool(git.get("dirty"))}


def command_line(command: str | list[str]) -> str:
    """The command as one types it: the program without its folder, arguments quoted."""
    if isinstance(command, str):
        return command
    program = PurePath(command[0]).name
    words = ["difflens"] if program in ("main.py", "__main__.py") else [program]
    return shlex.join([*words, *map(str, command[1:])])
