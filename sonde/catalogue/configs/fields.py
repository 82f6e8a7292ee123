"""Fields of a config.json: typed access under any of several names, and errors that say which field of which file."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sonde.errors import InputError


@dataclass(frozen=True, slots=True)
class Fields:
    """A config with the defaults of its architecture under it, and the settings that no config spells out.

    data        the config (a nested text config already lifted out)
    settings    what the architecture fixes, such as {"qk_norm": "head"}
    path        the file or row that the config came from, for messages
    """

    data: Mapping[str, Any]
    settings: Mapping[str, Any] = field(default_factory=dict)
    path: str = "config.json"

    def get(self, *names: str, default: Any = None) -> Any:
        """Return the first of `names` that is present and not null, or `default`."""
        for name in names:
            value = self.data.get(name)
            if value is not None:
                return value
        return default

    def setting(self, name: str, default: Any = None) -> Any:
        """Return what the architecture fixes under `name`."""
        return self.settings.get(name, default)

    def count(self, *names: str, default: int | None = None, least: int = 1) -> int:
        """Return a whole number of at least `least`, the first of `names` that is present, or `default`."""
        for name in names:
            value = self.data.get(name)
            if value is None:
                continue
            if isinstance(value, float) and value.is_integer():
                value = int(value)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise self.error(name, value, f"must be a whole number of at least {least}")
            return value
        if default is None:
            raise self.missing(*names)
        return default

    def flag(self, *names: str, default: bool = False) -> bool:
        """Return a yes or no."""
        value = self.get(*names, default=default)
        if not isinstance(value, bool):
            raise self.error(names[0], value, "must be true or false")
        return value

    def number(self, *names: str, default: float | None = None) -> float:
        """Return a positive finite number."""
        value = self.get(*names, default=default)
        if value is None:
            raise self.missing(*names)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value <= 0:
            raise self.error(names[0], value, "must be a number above zero")
        return float(value)

    def items(self, name: str) -> list[Any]:
        """Return the list under `name`, empty where there is none."""
        values = self.get(name, default=[])
        if not isinstance(values, list):
            raise self.error(name, values, "must be a list")
        return values

    def at(self, name: str, layer: int) -> Any:
        """Return entry `layer` of the list `name`, or None where there is no such list."""
        if self.data.get(name) is None:
            return None
        values = self.items(name)
        if layer >= len(values):
            raise self.error(name, f"{len(values)} entries", "must have one entry per layer")
        return values[layer]

    def entry(self, name: str, layer: int) -> Fields:
        """Return entry `layer` of the list `name`, which must be a nested config."""
        value = self.at(name, layer)
        if not isinstance(value, Mapping):
            raise self.error(f"{name}[{layer}]", value, "must be a JSON object")
        return Fields(value, self.settings, f"{self.path}: {name}[{layer}]")

    def part(self, name: str) -> Fields:
        """Return the nested config under `name`, which must be there."""
        value = self.data.get(name)
        if not isinstance(value, Mapping):
            raise self.missing(name)
        return Fields(value, self.settings, f"{self.path}: {name}")

    def divides(self, part: int, whole: int, part_name: str, whole_name: str) -> int:
        """Return whole/part, which must come out even."""
        if whole % part:
            raise self.error(part_name, part, f"must divide {whole_name} = {whole}", "heads would be of unequal size")
        return whole // part

    def error(self, name: str, value: object, allowed: str, consequence: str = "") -> InputError:
        """Return the error for a field that is there and wrong."""
        return InputError(f"{self.path}: {name}", value, allowed, consequence)

    def missing(self, *names: str) -> InputError:
        """Return the error for a field that is not there."""
        what = names[0] if len(names) == 1 else f"{names[0]} (or {', '.join(names[1:])})"
        return InputError(f"{self.path}: {names[0]}", None, f"the field {what} is missing", "the model has no size")
