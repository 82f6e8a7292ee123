"""Models by name, or from any config.json: `model("llama-3.1-8b")`, `model("path/to/config.json")`.

The rows lie in `data/models.jsonl`, one model a line: its name and aliases, the fields of its config that
matter, the parameters that its publisher states, where that stands, and when it was read. A row with `like`
is another row with some fields of the config changed, such as its quantisation.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from pathlib import Path
from types import MappingProxyType
from typing import Any

from sonde.catalogue.configs import read_config
from sonde.catalogue.model import Model
from sonde.errors import InputError, unknown

Row = Mapping[str, Any]

#: a config is a few kilobytes; what is longer than this is something else, such as weights
LARGEST_CONFIG = 4 << 20


def model(name_or_path: str) -> Model:
    """Return the model of that name or alias (in any case), or the one that a config.json describes.

    A folder stands for the config.json in it; a `hf_quant_config.json` beside it says how the weights are
    quantised where the config does not. Raises InputError where there is no such name or file, or where
    the config makes no model.
    """
    row = _index().get(name_or_path.strip().lower())
    if row is not None:
        return _from_row(str(row["name"]))
    if not name_or_path.strip():
        raise unknown("model", name_or_path, model_names(), "model", see="sonde show models")
    path = Path(name_or_path).expanduser()
    if path.is_dir():
        path = path / "config.json"
    if path.is_file():
        config = _load(path)
        name = path.parent.resolve().name if path.name == "config.json" else path.stem.removesuffix("_config")
        return read_config(config, name, str(path), source=str(path))
    if path.suffix == ".json" or name_or_path.startswith((".", "/", "~")) or path.name == "config.json":
        raise InputError("model", name_or_path, "no such file", "give a name, a config.json or a folder that holds one")
    raise unknown("model", name_or_path, model_names(), "model", see="sonde show models")


def model_names() -> list[str]:
    """Return the names of the catalogue's models, in alphabetical order."""
    return sorted(str(row["name"]) for row in model_rows())


@cache
def model_rows() -> tuple[Row, ...]:
    """Return the rows of the catalogue, those with `like` filled in: name, aliases, figures, source, date, config."""
    text = files("sonde.catalogue").joinpath("data/models.jsonl").read_text(encoding="utf-8")
    rows: dict[str, Row] = {}
    for row in (json.loads(line) for line in text.splitlines() if line.strip()):
        base = rows[row["like"]] if "like" in row else {}
        rows[row["name"]] = MappingProxyType({**base, **row, "config": _over(base.get("config", {}), row["config"])})
    return tuple(rows.values())


def _over(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return `base` with `changes` over it; the nested text config is changed, any other field replaced."""
    text = {"text_config": {**base["text_config"], **changes.get("text_config", {})}} if "text_config" in base else {}
    return {**base, **changes, **text}


@cache
def _index() -> Mapping[str, Row]:
    """Return the rows by name and alias, in lower case; an alias is also known by what follows its slash."""
    found: dict[str, Row] = {}
    for row in model_rows():
        for alias in row["aliases"]:
            found.setdefault(alias.lower().rpartition("/")[2], row)
    for row in model_rows():
        for name in (row["name"], *row["aliases"]):
            found[name.lower()] = row
    return MappingProxyType(found)


@cache
def _from_row(name: str) -> Model:
    row = _index()[name.lower()]
    return read_config(row["config"], name, f"models.jsonl: {name}", source=row["source"], date=row["date"])


def _load(path: Path) -> dict[str, Any]:
    config = _json(path)
    beside = path.with_name("hf_quant_config.json")
    if beside.is_file() and "quantization_config" not in config and "quantization" not in config:
        config["quantization"] = _json(beside).get("quantization", {})
    return config


def _json(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > LARGEST_CONFIG:
            raise InputError(str(path), f"{path.stat().st_size:,} bytes", "is too long to be a config.json")
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError("model", str(path), f"cannot be read: {error}") from error
    except (json.JSONDecodeError, RecursionError) as error:
        where = f"line {error.lineno}: {error.msg}" if isinstance(error, json.JSONDecodeError) else "nested too deep"
        raise InputError(str(path), "text", f"must be JSON ({where})") from error
    if not isinstance(found, dict):
        raise InputError(str(path), type(found).__name__, "must hold a JSON object", "there is no model to read")
    return found
