"""Fixtures that several test files share."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

ROOT = Path(__file__).parents[1]


class Ended(NamedTuple):
    """How a command line ended."""

    code: int
    out: str
    err: str

    def json(self) -> Any:
        """Return stdout read as JSON, in which NaN and Infinity are errors."""

        def refuse(name: str) -> None:
            raise ValueError(f"{name} is no JSON")

        return json.loads(self.out, parse_constant=refuse)


@pytest.fixture
def sonde_cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Ended]:
    """Give a function that runs `sonde ARGUMENTS` in this process, as wide as a pipe is."""
    monkeypatch.delenv("COLUMNS", raising=False)  # test runners set it
    from sonde.cli import main

    def run(*arguments: object) -> Ended:
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        return Ended(code, *capsys.readouterr())

    return run
