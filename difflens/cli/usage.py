"""The text of `difflens --help`, read from the folder of the configuration without composing it."""

import textwrap
from pathlib import Path

from difflens.cli.products import choices

HEADER = """\
difflens: where inside a diffusion model does a social bias live, and can it be
turned down without touching anything else?

usage: difflens [group=choice ...] [key=value ...]

With no argument it runs the whole study on the embedded miniature model:
collect activations, train a sparse autoencoder and a linear probe, find the
latents that carry the attribute, edit them, measure, write a report. Results:
outputs/latest. A later run reuses every stage made with the same settings.

Groups and their choices (group=choice):"""

FOOTER = """\
Examples:
  difflens                               the whole study on the miniature model
  difflens attribute=age                 the same for another attribute
  difflens task=steer                    one stage; what it needs is made or
                                         reused
  difflens -m attribute=gender,age,race  one run per attribute; one that fails
                                         does not stop the others, and the same
                                         command again redoes that one alone
  difflens task=report                   tables, figures and report.html from
                                         what is in outputs/

Environment:
  DIFFLENS_OUTPUTS                       the folder of all results (outputs)
  DIFFLENS_WEIGHTS                       the folder of published networks that
                                         you bring (weights); task=doctor says
                                         which ones an experiment needs
  HF_HUB_CACHE, HF_HOME                  where models of the Hugging Face hub
                                         are looked for
  DIFFLENS_ALLOW_TARGETS                 packages of your own whose classes a
                                         configuration may name
  DIFFLENS_DEBUG=1                       show the traceback of an error

More:
  difflens --cfg job                     print every setting and its value; set
                                         any with key=value
  difflens --hydra-help                  all flags
  eval "$(difflens -sc install=bash)"    completion of groups and choices (also
                                         zsh, fish)

Exit codes: 0 done, 2 a mistake in the configuration, 1 a failed run, 130
interrupted (run it again to go on)."""


def config_groups(conf: Path) -> dict[str, list[str]]:
    """The choices of every config group by the group's name; a group inside a group is `outer/inner`.

    The list of measures is no choice: every configuration has it.
    """
    groups: dict[str, list[str]] = {}
    for path in sorted(set(conf.glob("*/**/*.yaml")) - {conf / "metric" / "measures.yaml"}):
        groups.setdefault(path.parent.relative_to(conf).as_posix(), []).append(path.stem)
    for group, named in choices(conf).items():
        groups[group] = [*named, *groups.get(group, [])]
    return dict(sorted(groups.items()))


def usage(conf: Path) -> str:
    """The help text."""
    lines = []
    for group, names in config_groups(conf).items():
        # Presets and tuning follow from model, attribute and method, and are rarely asked for by name.
        if "/" not in group and group not in ("preset", "tuning"):
            # For a terminal of 80 columns; a choice that breaks at its hyphen could not be copied.
            lines += textwrap.wrap(
                f"{group:<12} {', '.join(names)}",
                width=79,
                initial_indent="  ",
                subsequent_indent=" " * 15,
                break_on_hyphens=False,
            )
    return "\n".join([HEADER, *lines, "", FOOTER])
