"""docs/cli.md, made from the commands themselves: `python -m sonde.cli.docs docs/cli.md` writes it."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from pathlib import Path

import click

from sonde.cli.entry import commands

HEAD = """# The command line

Made by `make docs` from the commands' own help; a test fails where it is stale.

Results go to stdout, everything else (progress, notes, errors) to stderr. With `--json`, stdout holds JSON and
nothing else; [json.md](json.md) says what each key means. Exit codes: 0 done, 1 it could not be done (no deployment
holds, say), 2 bad input, 130 interrupted.
"""


def verbs(group: click.Group, path: str = "sonde") -> Iterator[tuple[str, click.Command]]:
    """Yield every command below `group` with its full name, in the order in which help lists them."""
    for name, command in group.commands.items():
        full = f"{path} {name}"
        if isinstance(command, click.Group):
            yield from verbs(command, full)
        else:
            yield full, command


def markdown() -> str:
    """Return the whole page."""
    return "\n".join([HEAD, *[section(name, command) for name, command in verbs(commands)]])


def section(name: str, command: click.Command) -> str:
    """Return the part of one command: usage, what it does, a row for every option."""
    shown = [option for option in command.params if isinstance(option, click.Option) and not option.hidden]
    usage = " ".join([name, *[_argument(p) for p in command.params if isinstance(p, click.Argument)], "[OPTIONS]"])
    lines = [f"## {name}", "", "```", usage, "```", "", inspect.cleandoc(command.help or ""), ""]
    lines += ["| option | what it does |", "|---|---|", *[_row(option) for option in shown], ""]
    return "\n".join(lines)


def _argument(argument: click.Argument) -> str:
    name = (argument.name or "").upper()
    return name if argument.required else f"[{name}]"


def _row(option: click.Option) -> str:
    flags = ", ".join(option.opts)
    value = "" if option.is_flag else f" {option.metavar or option.type.name.upper()}"
    standard = f" (default: {option.default})" if option.show_default and option.default is not None else ""
    return f"| `{flags}{value}` | {option.help}{standard} |"


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(markdown(), encoding="utf-8")
