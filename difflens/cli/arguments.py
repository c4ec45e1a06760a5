"""The command line as Hydra can read it: flags first, letters its grammar does not know in quotes, `~` as the home folder."""

from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from difflens.store.errors import UserError

SWITCHES = ("-m", "--multirun", "-r", "--run", "--resolve", "--hydra-help", "--version", "--info")
"""Flags that take no value."""

MEANT = set("[]{}()'\",")
"""Characters by which somebody means a list, a mapping or a text of Hydra's grammar; values without them are quoted."""

SHARE = "mitigation.target."
"""Shares of single classes, which the configuration has none of by itself."""


def flags_first(arguments: list[str]) -> list[str]:
    """The arguments with all flags before the overrides: argparse takes overrides in one piece only.

    They stay as they are where a flag's value stands by itself (`-c job`).
    """
    together = all(not each.startswith("-") or "=" in each or each in SWITCHES for each in arguments)
    return sorted(arguments, key=lambda each: not each.startswith("-")) if together else arguments


def readable(argument: str) -> str:
    """One argument as Hydra can read it.

    Raises:
        UserError: it cannot be made so.
    """
    key, equals, value = argument.partition("=")
    if not equals or argument.startswith("-"):
        return argument
    if key.startswith(SHARE):
        key = f"++{key}"
    if value.startswith("~/"):
        value = str(Path(value).expanduser())
    for text in (value, *([] if MEANT & {*value} else [f"'{value}'"])):
        try:
            OverridesParser.create().parse_override(f"{key}={text}")
            return f"{key}={text}"
        except HydraException:
            continue
    raise UserError(
        f"{argument} cannot be read; put its value into quotes, and all of it into others: '{key}=\"{value}\"'."
    )
