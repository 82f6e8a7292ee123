"""One self-contained HTML page: opens offline, asks the network for nothing, in light and dark.

plotly.js travels inside, compressed; the page's own policy forbids any request. All text passes the
template's escaping, and what goes to the script passes as JSON in which "<" cannot end an element.
"""

from __future__ import annotations

import base64
import errno
import gzip
import json
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import cache
from importlib.resources import files
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from sonde.deployment.tree import Deployment
from sonde.errors import CannotError, InputError
from sonde.metrics import Objective, Outcome
from sonde.plan.result import PlanResult
from sonde.report import text, views
from sonde.units import show

_KEY = re.compile(r"^(\s*(?:- )*)([\w-]+)(:)(.*)$")


def write_page(result: PlanResult, path: str | Path) -> Path:
    """Write the answer as one HTML page to `path` and return it.

    Raises InputError where the path cannot be, CannotError where there is no room.
    """
    return _write(views.plan_view(result), path)


def write_outcome_page(
    outcome: Outcome, deployment: Deployment, objectives: Sequence[Objective], path: str | Path
) -> Path:
    """Write what happened in one run as one HTML page to `path` and return it. Raises InputError as `write_page`."""
    return _write(views.outcome_view(outcome, deployment, objectives), path)


def _write(view: views.View, path: str | Path) -> Path:
    target = Path(path)
    page = render(view)
    try:
        target.write_text(page, encoding="utf-8")
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise CannotError(f"report {path}: {error.strerror}; no page was made") from error
        raise InputError("report", str(path), f"cannot be written ({error.strerror})", "no page was made") from error
    return target


def render(view: views.View) -> str:
    """Return the page of a view as HTML."""
    environment = _environment()
    return environment.get_template("page.html").render(
        view,
        css=Markup(_style("page.css")),
        script=Markup(_style("page.js")),
        plotly=Markup(packed_plotly()),
        payload=Markup(embedded_json(view["figures"])),
        made=f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
    )


@cache
def packed_plotly() -> str:
    """Return plotly.js, gzipped, in base64 (2.0 MB in place of 4.8 MB)."""
    code = files("plotly").joinpath("package_data", "plotly.min.js").read_bytes()
    return base64.b64encode(gzip.compress(code, 9, mtime=0)).decode("ascii")


def embedded_json(value: object) -> str:
    """Return `value` as JSON that can stand inside a script element: no "<", ">" or "&" in it."""
    plain = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return plain.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def coloured_yaml(source: str) -> Markup:
    """Return YAML with its keys in span elements, everything escaped."""
    lines = []
    for line in source.rstrip("\n").split("\n"):
        if match := _KEY.match(line):
            lead, key, colon, rest = match.groups()
            lines.append(Markup('{}<span class="field">{}</span>{}{}').format(lead, key, colon, rest))
        else:
            lines.append(escape(line))
    return Markup("\n").join(lines)


def _price(value: float) -> str:
    return show(value, "price")


def _between(interval: tuple[float, float]) -> str:
    return text.between(*interval)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("sonde.report", "style"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "price": _price,
        "seconds": text.seconds,
        "percent": text.percent,
        "between": _between,
        "whole": text.whole,
        "coloured": coloured_yaml,
    }
    return environment


@cache
def _style(name: str) -> str:
    return files("sonde.report").joinpath("style", name).read_text(encoding="utf-8")
