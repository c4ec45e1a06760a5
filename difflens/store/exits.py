"""How an exception ends the program: one line and an exit code, 2 for a mistake in the configuration, else 1."""

import difflib
import errno
import re
import shlex
from collections.abc import Sequence
from typing import NamedTuple

from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException, OverrideParseException
from omegaconf.errors import OmegaConfBaseException

from difflens.store.errors import INTERRUPTED, BuildError, one_line, was_interrupted
from difflens.store.files import is_disk_full

NO_SLURM = (
    "the SLURM launchers start jobs with srun, which this machine has not: run on a cluster, or take "
    "hydra/launcher=submitit_local, hydra/launcher=joblib or none."
)


class Ending(NamedTuple):
    """The exit code and the line for stderr."""

    exit_code: int
    line: str


def nearest(word: str, known: Sequence[str]) -> str:
    """A suggestion for a mistyped word with a leading space, or nothing if no known word is near."""
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f" Did you mean {close[0]!r}?" if close else ""


NUMBERS = {"strength": "mitigation.strength", "width": "sae.expansion"}
"""Groups whose choices stand for numbers, and the setting that takes any other number."""


def about_option(error: MissingConfigException) -> str:
    """The line for a config group's choice that does not exist, with the files there are."""
    group, _, choice = (error.missing_cfg_file or "").rpartition("/")
    # Products such as gender+age are registered for every combination: they would hide the few files.
    options = [str(option) for option in error.options or () if "+" not in option]
    # By the numbers in them: x4 before x16.
    options.sort(key=lambda option: [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", option)])
    if group == "hydra/launcher" and choice.startswith(("joblib", "submitit")):
        return f"{group}={choice} needs the launchers: pip install 'difflens[launchers]'."
    if not group or not options:
        return one_line(error).removeprefix("MissingConfigException: ")
    known = f"available: {', '.join(options)}"
    if group in NUMBERS and re.fullmatch(r"[+-]?[\d.]+", choice):
        return f"{group}={choice}: no such {group}; {known}; or the number itself: {NUMBERS[group]}={choice}."
    return f"{group}={choice}: no such {group}; {known}.{nearest(choice, options)}"


def about_key(error: ConfigCompositionException, groups: Sequence[str]) -> str:
    """The line for an override that fits nothing in the configuration, or whose value does not fit."""
    text = " ".join(str(error).split())
    # Hydra explains the remedies on several lines; these are the two that are likely meant, on one.
    if text.startswith("Ambiguous value"):
        return f"{text.split(' 1. ')[0]}: add -m to run one job per value, or write key=[a,b] for a list."
    cause = error.__cause__
    unknown = re.match(r"Could not override '([^'@]+)", text)
    if unknown is None:
        detail = " ".join(str(cause).split("\n")[0].split()) if cause is not None else ""
        return f"{text}: {detail}".strip(": ")
    key = unknown[1]
    known = list(groups)
    # OmegaConf's error keeps the node that lacks the key; the other keys of that node are likeliest to be meant.
    parent = getattr(cause, "parent_node", None)
    if parent is not None and hasattr(parent, "keys"):
        prefix = f"{key.rpartition('.')[0]}.".lstrip(".")
        known += [f"{prefix}{name}" for name in parent]
    return f"{key}=…: the configuration has no {key!r}.{nearest(key, known)} `difflens --cfg job` prints all of it."


def about_quotes(override: str) -> str:
    """The line for an argument that the configuration's grammar cannot read, with its value quoted as it should be."""
    key, _, value = override.partition("=")
    inner = value.replace("\\", "\\\\").replace('"', '\\"')
    shown = shlex.quote(f'{key}="{inner}"')
    return (
        f"{override!r} cannot be read; quote a value with unusual signs twice, the second time for the shell: {shown}"
    )


def about_object(error: BuildError) -> Ending:
    """The ending for an object that could not be built: the configuration's fault if it was given wrong values."""
    cause, line = error.__cause__, str(error)
    code = getattr(cause, "exit_code", None)
    if code is not None or isinstance(cause, ValueError | TypeError | ImportError):
        return Ending(code or 2, line)
    # torch raises RuntimeError for weights that do not fit and for memory that does not suffice: only the text differs.
    damaged = "state_dict" in str(cause) or not isinstance(cause, RuntimeError | MemoryError)
    if damaged and not (cause and is_disk_full(cause)):
        return Ending(2, f"{line}; is this the folder of another model, or a damaged one?")
    return Ending(1, line)


def about_file(error: OSError) -> str:
    """The line for a file or folder that could not be used."""
    if is_disk_full(error):
        where = f" ({error.filename})" if error.filename else ""
        return f"the disk is full{where}; free some space and run the same command again."
    if error.filename is None or error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR):
        return one_line(error)
    return f"{error.filename}: {error.strerror}; set paths.outputs and paths.artifacts to folders that can be written."


def ending(error: BaseException, *, stage: str | None = None, groups: Sequence[str] = ()) -> Ending:
    """What to tell the user about an exception that was raised in a stage.

    Outside of any stage objects are being built from the configuration, so that a ValueError is the configuration's
    fault. `groups` are the names of config groups, to suggest the nearest to a mistyped one.
    """
    # Before all types: on its way out an interruption may have become an exception of a library.
    if was_interrupted(error):
        return Ending(130, INTERRUPTED)
    # The particular before the general: a missing file is a composition error to Hydra, and all are Hydra's exceptions.
    match error:
        case MissingConfigException():
            return Ending(2, about_option(error))
        case BuildError():
            return about_object(error)
        case ConfigCompositionException():
            return Ending(2, about_key(error, groups))
        case OmegaConfBaseException(full_key=key):
            text = str(error).split("\n")[0].strip()
            return Ending(2, f"{key}: {text}" if key and key not in text else text)
        # submitit has no type of its own for this.
        case RuntimeError() if 'Could not detect "srun"' in str(error):
            return Ending(2, NO_SLURM)
        case OverrideParseException(override=override):
            return Ending(2, about_quotes(override))
        # Python keeps bytes of the command line that are no UTF-8 as these surrogates, which no encoding takes.
        case UnicodeEncodeError(object=text, start=start, end=end) if any(
            "\udc80" <= sign <= "\udcff" for sign in text[start:end]
        ):
            return Ending(2, "a name on the command line is no UTF-8; give the file or folder another name.")
        case HydraException():
            return Ending(2, " ".join(str(error).split()))
    code = getattr(error, "exit_code", 2 if isinstance(error, ValueError) and stage is None else 1)
    line = about_file(error) if isinstance(error, OSError) else one_line(error)
    return Ending(code, f"{stage}: {line}" if stage else line)
