"""What a technique is, as rows: what it changes, its parameters with units and defaults, and a line of YAML to paste.

All of it is read from the technique itself; an explanation of a parameter is a line of its class's docstring.
"""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Iterator
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import click
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from sonde import units
from sonde.cli.output import console
from sonde.deployment.node import Quantity
from sonde.techniques.table import TECHNIQUES, technique
from sonde.techniques.technique import Technique

Row = dict[str, Any]
WIDEST = 100  # columns of text that is wrapped

#: effect -> what it changes
EFFECTS = {
    "deployment": "the deployment: pools, links, caches, routing",
    "replica": "a replica: precision, parallelism, batching",
    "shard": "what one device holds and computes in",
    "operators": "the operators of a step",
    "engine": "the compiled engine: step table, memory, limits",
}
_TYPES: dict[Any, str] = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
#: "name   what it is", or two names that say the same; what goes on does so indented
_LINE = re.compile(r"^(\w+(?:, \w+)*) {2,}(\S.*)$")
#: what YAML reads as something else than the text that it is
_PLAIN = re.compile(r"^[A-Za-z0-9][\w .:/%$-]*$")


def line(name: str) -> Row:
    """Return what a reader chooses a technique by: its name, what it does, where it is from."""
    found = technique(name)
    return {"name": name, "does": found.title, "source": found.source}


def describe(name: str) -> Row:
    """Return all that there is to know of a technique; `parameters` as `sonde show --json` has them."""
    found = technique(name)
    changes = {effect: text for effect, text in EFFECTS.items() if getattr(found, effect) is not None}
    cannot = {other: why for other in TECHNIQUES if (why := _conflict(name, other))}
    rows = list(_parameters(found.parameters, ""))
    if list(changes) == ["deployment"]:  # that has no pools yet to choose among
        rows = [row for row in rows if row["name"] != "pools"]
    about = _about(found.parameters) if len(rows) > 1 else ""
    head = line(name) | {"changes": changes, "cannot": cannot, "about": about}
    return head | {"parameters": rows, "yaml": f"- {name}" + _example(found)}


def _conflict(name: str, other: str) -> str:
    return technique(name).cannot.get(other) or technique(other).cannot.get(name) or ""


def _about(owner: type[BaseModel]) -> str:
    """Return the docstring of a class of parameters without the lines of its parameters."""
    paragraphs = inspect.cleandoc(owner.__doc__ or "").split("\n\n")
    return "\n\n".join(" ".join(text.split()) for text in paragraphs if not _LINE.match(text.partition("\n")[0]))


def explained(owner: type[BaseModel]) -> dict[str, str]:
    """Return what docstrings say of each parameter, that of a class before those of its bases."""
    found: dict[str, str] = {}
    for base in reversed([base for base in owner.__mro__ if issubclass(base, BaseModel)]):
        names: list[str] = []
        for text in inspect.cleandoc(base.__doc__ or "").splitlines():
            start = _LINE.match(text)
            if start:
                names = start[1].split(", ")
                found |= dict.fromkeys(names, start[2])
            elif names and text.startswith("  "):
                found |= {name: f"{found[name]} {text.strip()}" for name in names}
            else:
                names = []
    return found


def _parameters(owner: type[BaseModel], above: str) -> Iterator[Row]:
    """Yield a row for every parameter, its own first; those of a mapping of nodes below it."""
    means = explained(owner)
    fields = sorted(owner.model_fields.items(), key=lambda item: item[0] == "pools")
    for name, field in fields:
        kinds, quantity = list(_kinds(field.annotation)), _quantity(field)
        default = None if field.is_required() else field.get_default(call_default_factory=True)
        nodes = [kind for kind in kinds if get_origin(kind) is dict]
        yield {
            "name": above + name, "takes": _takes(kinds, field, quantity),
            "unit": units.BASE[quantity.dimension] if quantity else None,
            "default": None if default is None else _text(default, quantity),
            "required": field.is_required(), "means": means.get(name, ""),
        }  # fmt: skip
        for node in nodes:
            keys, inner = get_args(node)
            yield from _parameters(inner, f"{above}{name}.{'/'.join(get_args(keys))}.")


def _kinds(annotation: Any) -> Iterator[Any]:
    """Yield the types that a parameter may be of, None left out."""
    origin = get_origin(annotation)
    if origin is Annotated:
        yield from _kinds(get_args(annotation)[0])
    elif origin in (Union, UnionType):
        for part in get_args(annotation):
            yield from _kinds(part)
    elif annotation is not NoneType:
        yield annotation


def _metadata(annotation: Any) -> Iterator[Any]:
    """Yield what is said of a type and of its parts: bounds, and how text is read."""
    if get_origin(annotation) is Annotated:
        inner, *more = get_args(annotation)
        for item in more:
            yield from item.metadata if isinstance(item, FieldInfo) else (item,)
        yield from _metadata(inner)
    elif get_origin(annotation) in (Union, UnionType):
        for part in get_args(annotation):
            yield from _metadata(part)


def _quantity(field: FieldInfo) -> Quantity | None:
    said = [getattr(item, "func", None) for item in (*field.metadata, *_metadata(field.annotation))]
    return next((func for func in said if isinstance(func, Quantity)), None)


def _takes(kinds: list[Any], field: FieldInfo, quantity: Quantity | None) -> str:
    """Return in words what may be given."""
    bounds = _range([*field.metadata, *_metadata(field.annotation)])
    kind = kinds[0]
    if quantity is not None:
        share = f', or a share of {quantity.of} such as "60 %"' if quantity.of else ""
        unit = units.BASE[quantity.dimension]
        return f"{quantity.dimension} such as {units.EXAMPLES[quantity.dimension]} (a number is in {unit}){share}"
    if get_origin(kind) is Literal:
        *first, last = [str(choice) for choice in get_args(kind)]
        return f"{', '.join(first)} or {last}"
    if get_origin(kind) is tuple:
        return "a list of names"
    if get_origin(kind) is dict:
        return f"what is below, for {' and '.join(get_args(get_args(kind)[0]))}"
    return f"{_TYPES[kind]}{bounds}"


def _range(said: list[Any]) -> str:
    """Return ", 1 to 8" and the like for bounds."""
    found = {key: getattr(item, key) for item in said for key in ("ge", "gt", "le", "lt") if hasattr(item, key)}
    if "ge" in found and "le" in found:
        return f", {found['ge']:,} to {found['le']:,}"
    words = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
    parts = [f"{words[key]} {found[key]:,}" for key in words if key in found]
    return f", {' and '.join(parts)}" if parts else ""


def _text(value: object, quantity: Quantity | None = None) -> str:
    """Return a value as a user would write it in YAML."""
    if quantity is not None and isinstance(value, (int, float)):
        return units.show(float(value), quantity.dimension)
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_text, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key}: {_text(item)}' for key, item in value.items())}}}"
    if isinstance(value, str):
        return value if _PLAIN.match(value) else f'"{value}"'
    return f"{value:g}" if isinstance(value, float) else str(value)


def _example(found: Technique[Any]) -> str:
    """Return the parameters that have an example, and so all that are required, as they stand behind the name."""
    given = {name: field.examples[0] for name, field in found.parameters.model_fields.items() if field.examples}
    return f": {_text(given)}" if given else ""


def show(row: Row) -> None:
    """Print a technique on stdout, wrapped to the terminal."""
    width = min(console().width, WIDEST)
    click.echo(row["name"])
    changes, cannot = "; ".join(row["changes"].values()), [f"{name}: {why}" for name, why in row["cannot"].items()]
    for head, texts in (
        ("", [row["does"]]), ("from", [row["source"]]), ("changes", [changes]), ("not beside", cannot),
    ):  # fmt: skip
        for i, text in enumerate(texts):
            _wrapped(text, width, f"  {'' if i else head:<12}" if head else "  ", 14 if head else 2)
    click.echo("\nparameters" + ("" if row["parameters"] else ": none"))
    if row["about"]:
        _wrapped(row["about"], width, "  ", 2)
    for item in row["parameters"]:
        click.echo(f"\n  {item['name']}{_default(item)}")
        _wrapped(item["takes"], width, "      ", 6)
        _wrapped(item["means"], width, "      ", 6)
    click.echo(f"\nin a scenario or a deployment\n  techniques:\n    {row['yaml']}")


def _default(parameter: Row) -> str:
    if parameter["required"]:
        return "  (required)"
    return "" if parameter["default"] is None else f"  (default {parameter['default']})"


def _wrapped(text: str, width: int, first: str, indent: int) -> None:
    click.echo(textwrap.fill(text, width, initial_indent=first, subsequent_indent=" " * indent,
                             break_long_words=False, break_on_hyphens=False))  # fmt: skip
