"""Arguments of the command line before a verb sees them: abbreviations written out, and options without effect."""

from __future__ import annotations

import os
from collections.abc import Collection
from itertools import islice

import typer

SETTING_VERBS = ("plan", "search", "resume")
SECTIONS = (
    "models", "space", "strategy", "fitness", "budget", "workers", "trackers", "table", "adapters", "vocabulary",
    "allow_unrelated", "out_dtype", "seed",
)  # fmt: skip
"""The search file's keys at the top level; here, since the config takes long to import."""
REPEATED = ("--models", "--tasks", "--include-path")


def written_out(arguments: list[str]) -> list[str]:
    """Write out what the command line abbreviates.

    `--models A B` stands for `--models A --models B`; in verbs that read a search file, `--budget.hours=2` and
    `--strategy m2n2` stand for `--set budget.hours=2` and `--set strategy=m2n2`. The `~` of `--run=~/runs`, which
    shells leave as it is, is the user's home.
    """
    expanded: list[str] = []
    option, taken = None, 0
    sets = next((argument for argument in arguments if not argument.startswith("-")), None) in SETTING_VERBS
    rest = iter(arguments)
    for argument in rest:
        key, equals, value = argument.partition("=")
        if sets and key.startswith("--") and ("." in key or key[2:] in SECTIONS):
            set_ = argument[2:] if equals else "=".join((key[2:], *islice(rest, 1)))
            expanded += ["--set", set_]
            option = None
            continue
        if key.startswith("--") and value.startswith("~"):
            expanded.append(f"{key}={os.path.expanduser(value)}")
            option = None
            continue
        if argument.startswith("-"):
            option, taken = (argument, 0) if argument in REPEATED else (None, 0)
        elif option is not None:
            if taken:
                expanded.append(option)
            taken += 1
        expanded.append(argument)
    return expanded


def refuse_unused(context: typer.Context, names: Collection[str], where: str) -> None:
    """Refuse the first of some options, by their parameters' names, that was typed and has no effect there."""
    for parameter in context.command.params:
        source = context.get_parameter_source(str(parameter.name))
        if parameter.name in names and source is not None and source.name == "COMMANDLINE":
            from evomerge.config.errors import ConfigError

            raise ConfigError(f"{parameter.opts[-1]}: it has no effect {where}; leave it out")
