"""The command line: one verb per product verb, and nothing that Python cannot do as well.

Results go to stdout, everything else to stderr. Exit codes: 0 done, 1 it could not be done, 2 bad input,
130 interrupted.
"""

from __future__ import annotations

from sonde.cli.entry import commands, main

__all__ = ["commands", "main"]
