"""YAML in and out, as YAML 1.2 reads it: no sexagesimal numbers, no dates, no `yes` and `on` for true.

`read` gives the tree and the line of every node, so that an error can say where; keys that are there twice, which
YAML would let pass, are errors. `write` quotes whatever `read` would take for something else.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from sonde.errors import InputError

_RESOLVERS = {
    "tag:yaml.org,2002:bool": (r"true|True|TRUE|false|False|FALSE", "tTfF"),
    "tag:yaml.org,2002:int": (r"[-+]?[0-9][0-9_]*|0x[0-9a-fA-F]+", "-+0123456789"),
    "tag:yaml.org,2002:float": (
        r"[-+]?(?:[0-9][0-9_]*\.?[0-9_]*|\.[0-9][0-9_]*)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        "-+0123456789.",
    ),
    "tag:yaml.org,2002:null": (r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    "tag:yaml.org,2002:merge": (r"<<", "<"),
}


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012  (PyYAML's own table, of this class alone)


class _Dumper(yaml.SafeDumper):
    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:  # noqa: ARG002
        """Indent lists inside mappings, as people write them."""
        super().increase_indent(flow, False)


for _tag, (_pattern, _first) in _RESOLVERS.items():
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(_tag, re.compile(rf"^(?:{_pattern})$"), list(_first))
_Loader.add_constructor(
    "tag:yaml.org,2002:int", lambda _, node: int(node.value.replace("_", ""), 0 if "x" in node.value else 10)
)
_Loader.add_constructor("tag:yaml.org,2002:float", lambda _, node: _float(node.value))

_COLLECTIONS = ("tag:yaml.org,2002:map", "tag:yaml.org,2002:seq")

Lines = dict[str, int]

#: aliases let a short text stand for a tree without end
MOST_NODES = 100_000


def read(text: str, where: str) -> tuple[Any, Lines]:
    """Return the tree in YAML text, and the line of each of its paths ("sites[0].pools[1].replicas").

    Raises InputError with `where`, line and column for text that is no YAML, and for keys that are there twice.
    """
    lines: Lines = {}
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        return (None if node is None else _build(loader, node, "", lines, where, ())), lines
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        at = f"{where}, line {mark.line + 1}, column {mark.column + 1}" if mark else where
        found = text.splitlines()[mark.line].strip() if mark and mark.line < len(text.splitlines()) else ""
        raise InputError(at, found, f"is not YAML: {error.problem or error.context}", "nothing was read") from None
    except RecursionError:
        raise InputError(where, text[:40], "is nested too deeply", "nothing was read") from None
    except (yaml.YAMLError, ValueError) as error:
        raise InputError(where, text[:40], f"is not YAML: {' '.join(str(error).split())}", "nothing was read") from None


def write(tree: Mapping[str, Any]) -> str:
    """Return a tree as YAML text in its own order of keys."""
    text: str = yaml.dump(tree, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)
    return text


def file(source: str | Path, what: str) -> str:
    """Return the text of a file. Raises InputError where there is none that can be read."""
    path = Path(source)
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        beside = sorted(p.name for p in path.parent.glob("*.y*ml"))[:8] if path.parent.is_dir() else []
        there = f"in that folder: {', '.join(beside)}" if beside else ""
        raise InputError(what, str(source), "no such file", there) from None
    except IsADirectoryError:
        raise InputError(what, str(source), "is a folder; name a YAML file in it") from None
    except UnicodeDecodeError:
        raise InputError(what, str(source), "is not text in UTF-8; it should be YAML") from None
    except (OSError, ValueError) as error:
        raise InputError(what, str(source), f"cannot be read: {getattr(error, 'strerror', error)}") from None


def join(path: str, key: object) -> str:
    """Return the path of what lies at `key` (a name, or a number in a list) below `path`."""
    if isinstance(key, int):
        return f"{path}[{key}]"
    return f"{path}.{key}" if path else str(key)


def _build(loader: _Loader, node: yaml.Node, path: str, lines: Lines, where: str, above: tuple[int, ...]) -> Any:
    lines[path] = node.start_mark.line + 1
    if id(node) in above:
        at = f"{where}, line {lines[path]}"
        raise InputError(path, "an alias", "contains itself", "it would have no end", where=at)
    if len(lines) > MOST_NODES:
        raise InputError(where, f"more than {MOST_NODES} nodes", "is too much for a scenario or a deployment")
    if not isinstance(node, yaml.ScalarNode) and node.tag not in _COLLECTIONS:
        raise InputError(path, node.tag, "a tag is not understood here", where=f"{where}, line {lines[path]}")
    if isinstance(node, yaml.SequenceNode):
        below = (*above, id(node))
        return [_build(loader, item, join(path, i), lines, where, below) for i, item in enumerate(node.value)]
    if not isinstance(node, yaml.MappingNode):
        return loader.construct_object(node)
    _refuse_twice(node, path, where)
    loader.flatten_mapping(node)
    tree = {}
    for key_node, value_node in node.value:
        key = loader.construct_object(key_node)
        if isinstance(key, (list, dict)):
            at = f"{where}, line {key_node.start_mark.line + 1}"
            raise InputError(path, key, "cannot be a key: keys are text", where=at)
        tree[key] = _build(loader, value_node, join(path, str(key)), lines, where, (*above, id(node)))
        lines[join(path, str(key))] = key_node.start_mark.line + 1
    return tree


def _refuse_twice(node: yaml.MappingNode, path: str, where: str) -> None:
    seen: dict[str, int] = {}
    for key, _ in node.value:
        line = key.start_mark.line + 1
        if isinstance(key, yaml.ScalarNode) and key.value in seen and key.value != "<<":
            allowed, consequence = f"is there twice, first in line {seen[key.value]}", "one of the two would be lost"
            raise InputError(join(path, key.value), key.value, allowed, consequence, where=f"{where}, line {line}")
        seen[str(key.value)] = line


def _float(text: str) -> float:
    text = text.lower().replace("_", "")
    return float(text.replace(".inf", "inf").replace(".nan", "nan"))
