"""Pages of the documentation made from the program: `python -m sonde.cli.docs docs` writes them into that folder.

cli.md is made from the commands' own help, parameters.md from the techniques themselves.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click

from sonde.cli.entry import commands
from sonde.cli.technique import describe
from sonde.techniques.table import TECHNIQUES

HEAD = """# The command line

Made by `make docs` from the commands' own help; a test fails where it is stale.

Results go to stdout, everything else (progress, notes, errors) to stderr. With `--json`, stdout holds JSON and
nothing else; [json.md](json.md) says what each key means. Exit codes: 0 done, 1 it could not be done (no deployment
holds, say), 2 bad input, 130 interrupted.
"""

PARAMETERS_HEAD = """# Parameters of techniques

Made by `make docs` from the techniques themselves; a test fails where it is stale. `sonde show NAME` says the same of
one. [techniques.md](techniques.md) says what each does and how they work together.

Every parameter may be left out, unless it is required: its default holds, or where there is none, what the last column
says. A number without a unit is in the unit that stands beside it. All parameters are given by name:

    techniques:
      - power-cap                               # as by default
      - token-budget: { tbt: 200 ms }
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
    """Return cli.md."""
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


def parameters() -> str:
    """Return parameters.md."""
    return "\n".join([PARAMETERS_HEAD, *[_technique(describe(name)) for name in TECHNIQUES]])


def _technique(row: Mapping[str, Any]) -> str:
    does = row["does"][0].upper() + row["does"][1:]
    lines = [f"## {row['name']}", "", f"{does} ({row['source']}). Changes {'; '.join(row['changes'].values())}."]
    lines += ["", *([row["about"], ""] if row["about"] else [])]
    if row["parameters"]:
        lines += ["| parameter | takes | default | what it is |", "|---|---|---|---|"]
        lines += [_parameter(parameter) for parameter in row["parameters"]] + [""]
    if row["cannot"]:
        lines += ["Cannot stand beside:", ""]
        lines += [f"- `{name}`: {why}" for name, why in row["cannot"].items()] + [""]
    return "\n".join([*lines, "```yaml", "techniques:", f"  {row['yaml']}", "```", ""])


def _parameter(row: Mapping[str, Any]) -> str:
    default = "required" if row["required"] else "" if row["default"] is None else f"`{row['default']}`"
    return f"| `{row['name']}` | {row['takes']} | {default} | {row['means']} |"


#: file -> what is in it
PAGES = {"cli.md": markdown, "parameters.md": parameters}

if __name__ == "__main__":
    for file, text in PAGES.items():
        (Path(sys.argv[1]) / file).write_text(text(), encoding="utf-8")
