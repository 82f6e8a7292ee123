"""The group of all verbs, and how any of them ends: an exit code and at most one message, never a traceback."""

from __future__ import annotations

import errno
import os
import re
import sys
import traceback
from collections.abc import Sequence

import click

from sonde import __version__
from sonde.cli.bench import bench
from sonde.cli.calibrate import calibrate
from sonde.cli.coe import coe
from sonde.cli.papers import papers, reproduce
from sonde.cli.plan import plan
from sonde.cli.require import require
from sonde.cli.show import show
from sonde.cli.simulate import simulate
from sonde.cli.trace import trace
from sonde.cli.validate import validate
from sonde.errors import SondeError

INTERRUPTED = 130
#: errors of writing that are nobody's fault here: no reader, no room, no device
_UNWRITTEN = (errno.EPIPE, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="sonde")
@click.option("--debug", is_flag=True, hidden=True, help="Show the traceback of an unexpected error.")
def commands(debug: bool) -> None:
    """What should run where, how, and at what cost: found by exact simulation of your own traffic."""
    del debug  # read by `main`, which handles the errors


for verb in (plan, simulate, trace, show, require, coe, validate, calibrate, papers, reproduce, bench):
    commands.add_command(verb)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line (the process's own by default) and return its exit code."""
    context: dict[str, bool] = {}
    try:
        with commands.make_context("sonde", _given(arguments)) as root:
            context["debug"] = bool(root.params.get("debug"))
            commands.invoke(root)
        sys.stdout.flush()
    except click.exceptions.Exit as end:
        return end.exit_code
    except (KeyboardInterrupt, click.Abort):
        return _say("interrupted", INTERRUPTED)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except Exception as error:  # noqa: BLE001 - the last place where an error can be turned into words
        return _failed(error, debug=context.get("debug", False))
    return 0


def _given(arguments: Sequence[str] | None) -> list[str]:
    return list(sys.argv[1:] if arguments is None else arguments)


def _failed(error: Exception, *, debug: bool) -> int:
    if debug:
        click.echo("".join(traceback.format_exception(error)), err=True, nl=False)
    if isinstance(error, SondeError):
        return _say(str(error), error.exit_code)
    if isinstance(error, OSError) and (number := _errno(error)) in _UNWRITTEN:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what is left of our output has nowhere to go
        if number == errno.EPIPE:  # whoever read it has left: say no more
            return 1
        return _say(f"the output could not be written: {os.strerror(number)}", 1)
    if isinstance(error, OSError) and error.filename is not None:
        wrong_path = isinstance(error, (FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError))
        return _say(f"{error.filename}: {error.strerror}", 2 if wrong_path else 1)
    text = f"unexpected {type(error).__name__}: {error}"
    return _say(text if debug else f"{text}\n(a fault of Sonde: `sonde --debug ...` shows where)", 1)


def _errno(error: OSError) -> int:
    """Return the system's number of an error; polars has it in its text alone."""
    found = re.search(r"\(os error (\d+)\)", str(error))
    return error.errno or (int(found[1]) if found else 0)


def _say(text: str, code: int) -> int:
    click.echo(f"sonde: {text}", err=True)
    return code
