"""What can go wrong, as exceptions. Nothing here imports anything of Sonde.

SondeError
├── InputError       what the user gave cannot be used (exit code 2)
└── CannotError      what was asked cannot be had (exit code 1)
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from importlib import import_module
from types import ModuleType


class SondeError(Exception):
    """Base of all errors that Sonde raises on purpose; its text is meant for the user."""

    exit_code = 1


class _Missing:
    """Stands for the value of a key that is not there."""

    def __repr__(self) -> str:
        return "(missing)"


MISSING = _Missing()


class InputError(SondeError):
    """Bad input: where it is, what it is, what is allowed, and what would follow from it.

    `path` names the value inside what was given; `where`, if known, is its file and line.
    """

    exit_code = 2

    def __init__(self, path: str, value: object, allowed: str, consequence: str = "", *, where: str = "") -> None:
        self.path, self.value, self.allowed, self.consequence, self.where = path, value, allowed, consequence, where
        head = f"{where}: " if where else ""
        tail = f"; {consequence}" if consequence else ""
        super().__init__(f"{head}{path} = {value!r}: {allowed}{tail}")


class CannotError(SondeError):
    """The question was understood, and the answer is no: the text says why and how far it got."""


def library(name: str, use: str) -> ModuleType:
    """Return an optional library. Raises CannotError that says what it is for and how to get it."""
    try:
        return import_module(name)
    except ImportError as error:
        raise CannotError(f"{use} needs {name}, which is not installed: pip install {name}") from error


def nearest(word: str, known: Iterable[str]) -> str:
    """Return " (did you mean 'x'?)" for the known word closest to `word` in any case, or an empty string."""
    lowered = {name.lower(): name for name in known}
    close = get_close_matches(word.lower(), list(lowered), n=1, cutoff=0.55)
    return f" (did you mean {lowered[close[0]]!r}?)" if close else ""


def unknown(path: str, word: str, known: Iterable[str], what: str = "name", *, see: str = "") -> InputError:
    """Return the error for a name that is in no table: the nearest that is, some others, and what to `see` for all."""
    names = sorted(known)
    return InputError(path, word, f"no such {what}{nearest(word, names)}", listed(names, see))


def listed(names: Sequence[str], see: str = "") -> str:
    """Return "known: a, b, ..." with 12 names at most, and the command that shows all of them."""
    shown = ", ".join(names[:12]) + (", ..." if len(names) > 12 else "")
    more = f"all {len(names)}" if len(names) > 12 else "what each is"
    return f"known: {shown}" + (f" ({more}: {see})" if see else "")
