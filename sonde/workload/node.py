"""The base of what a profile is made of, and how its mistakes are told."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, ValidationError

from sonde.errors import InputError, nearest


class Node(BaseModel):
    """Base of every part of a profile: frozen, and a key that it does not know is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def told(error: ValidationError, model: type[BaseModel], path: str) -> InputError:
    """Return the first of pydantic's complaints as an InputError with the place in the file."""
    first = error.errors()[0]
    place = path + "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in first["loc"])
    if first["type"] == "extra_forbidden":
        owner: type[BaseModel] | None = model
        for part in first["loc"][:-1]:
            kind = owner.model_fields[str(part)].annotation if owner and str(part) in owner.model_fields else None
            owner = kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None
        known = list(owner.model_fields) if owner else []
        return InputError(place, str(first["input"])[:60], f"unknown key{nearest(str(first['loc'][-1]), known)}")
    if first["type"] == "missing":
        return InputError(place, "missing", "must be there", "nothing can be drawn without it")
    return InputError(place, str(first["input"])[:60], first["msg"].removeprefix("Value error, "))
