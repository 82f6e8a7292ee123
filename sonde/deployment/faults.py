"""What pydantic finds wrong in a tree, said as Sonde says it: path, value, what is allowed, and the consequence."""

from __future__ import annotations

import reprlib
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

from sonde.deployment.text import join
from sonde.errors import MISSING, InputError, nearest

#: what would follow from a wrong value, by the key that it stands at
CONSEQUENCES = {
    "replicas": "with none, this pool would serve no request",
    "sites": "with none, no request could be served",
    "pools": "with none, this site would serve no request",
    "hardware": "with none, there is nothing to plan with",
    "objectives": "with none, the cheapest plan would be the slowest",
    "memory_fraction": "an engine cannot use memory that the device does not have",
    "max_batch": "an engine with no room for a sequence never finishes one",
    "token_budget": "a step must hold a token",
    "pue": "a site draws at least what its computers draw",
    "max": "with none, the device could not be used; leave the entry out instead",
}

_ALLOWED: dict[str, str] = {
    "missing": "is required",
    "greater_than_equal": "needs at least {ge}",
    "greater_than": "must be above {gt}",
    "less_than_equal": "may be at most {le}",
    "less_than": "must be below {lt}",
    "too_short": "needs at least {min_length}",
    "string_too_short": "must not be empty",
    "string_too_long": "may have {max_length} characters at most",
    "string_pattern_mismatch": "must be one line of text, without control characters",
    "finite_number": "must be a finite number",
    "int_type": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_parsing_size": "must be a whole number of usual size",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "float_parsing": "must be a number",
    "string_type": "must be text",
    "tuple_type": "must be a list",
    "dict_type": "must be a mapping of keys to values",
    "model_type": "must be a mapping of keys to values",
    "invalid_key": "keys must be text",
}


def fault(error: ValidationError, data: object, root: type[BaseModel], where: Callable[[str], str]) -> InputError:
    """Return the first thing that is wrong, as an InputError that also counts the others.

    `data` is what was validated and `root` its type; `where` maps a path to the place in a file, or "".
    """
    by_path: dict[str, list[InputError]] = {}
    for detail in error.errors(include_url=False):
        one = _fault(detail, data, root, where)
        if detail["type"] != "too_short" or not one.value:  # a list of which an entry is wrong counts as too short
            by_path.setdefault(one.path, []).append(one)
    found = [_any_of(branches) for branches in by_path.values()]
    first, *others = sorted(found, key=lambda one: one.value is MISSING)
    if others:
        more = (
            f"{len(others)} more: {', '.join(other.path for other in others[:4])}{', ...' if len(others) > 4 else ''}"
        )
        consequence = f"{first.consequence}; and {more}" if first.consequence else f"and {more}"
        return InputError(first.path, first.value, first.allowed, consequence, where=first.where)
    return first


def _any_of(branches: list[InputError]) -> InputError:
    """Return the one error about a value that fits no branch of a union: a number that is wrong, or what would do."""
    first = branches[0]
    finite = [branch for branch in branches if branch.allowed == _ALLOWED["finite_number"]]
    if finite or len(branches) == 1:
        return (finite or branches)[0]
    kinds = list(dict.fromkeys(branch.allowed.removeprefix("must be ") for branch in branches))
    allowed = f"must be {', '.join(kinds[:-1])} or {kinds[-1]}" if len(kinds) > 1 else first.allowed
    return InputError(first.path, first.value, allowed, first.consequence, where=first.where)


def brief(value: object) -> object:
    """Return `value` itself, or a short text for a long one."""
    return value if len(repr(value)) <= 60 else _Brief(value)


class _Brief:
    """Stands for a value that is too long to print in full."""

    def __init__(self, value: object) -> None:
        shorten = reprlib.Repr()
        shorten.maxstring, shorten.maxother, shorten.maxdict, shorten.maxlist, shorten.maxlevel = 50, 50, 3, 3, 2
        self.text = shorten.repr(value)

    def __repr__(self) -> str:
        return self.text


def _fault(detail: Any, data: object, root: type[BaseModel], where: Callable[[str], str]) -> InputError:
    kind, context = detail["type"], detail.get("ctx", {})
    path, value, key = _follow(detail["loc"], data, kind)
    allowed = _ALLOWED[kind].format_map(context) if kind in _ALLOWED else detail["msg"]
    consequence = CONSEQUENCES.get(str(key), "")
    if kind == "extra_forbidden":
        known = _keys(root, detail["loc"][:-1])
        allowed = f"no such key{nearest(str(key), known)}"
        consequence = f"known here: {', '.join(known)}" if known else ""
    elif kind == "missing":
        value = MISSING
    elif kind == "string_type" and isinstance(value, (int, float)):
        consequence = f"write it in quotes if it is a name: '{value}'"
    elif kind == "literal_error":
        choices = [word.strip(" '") for word in str(context["expected"]).replace(" or ", ", ").split(",")]
        allowed = f"must be one of {', '.join(choices)}{nearest(str(value), choices)}"
    elif kind == "refused":
        path, value = join(path, context["field"]) if context["field"] else path, context["value"]
        allowed, consequence = context["allowed"], context["consequence"]
    path = path or "the file"
    return InputError(path, brief(value), allowed, consequence, where=where(path))


def _follow(loc: Sequence[object], data: object, kind: str) -> tuple[str, object, object]:
    """Return path, value and last key of `loc` in `data`, without the branches of unions that pydantic names in it."""
    path, value, key = "", data, ""
    for step in loc:
        if isinstance(value, Mapping) and step in value:
            path, value, key = join(path, step), value[step], step  # type: ignore[assignment]
        elif isinstance(value, (list, tuple)) and isinstance(step, int) and step < len(value):
            path, value, key = join(path, step), value[step], key
        elif isinstance(value, BaseModel) and hasattr(value, str(step)):
            path, value, key = join(path, step), getattr(value, str(step)), str(step)
        elif kind == "missing" and step is loc[-1]:
            path, value, key = join(path, step), None, str(step)
    return path, value, key


def _keys(root: type[BaseModel], loc: Sequence[object]) -> list[str]:
    """Return the keys that the node at `loc` knows."""
    node: Any = root
    for step in loc:
        if isinstance(step, str) and step in getattr(node, "model_fields", {}):
            node = _node_of(node.model_fields[step].annotation)
    return list(getattr(node, "model_fields", {}))


def _node_of(annotation: Any) -> Any:
    """Return the node type inside `tuple[Node, ...]` or `Node | None`."""
    if isinstance(annotation, types.GenericAlias | types.UnionType) or typing.get_origin(annotation):
        inner = [_node_of(part) for part in typing.get_args(annotation)]
        return next((node for node in inner if isinstance(node, type) and issubclass(node, BaseModel)), None)
    return annotation
