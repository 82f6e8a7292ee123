"""What every node of a tree is made of: frozen models, refusals with path and value, and quantities in words."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from typing import Annotated, NoReturn

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

from sonde.errors import InputError
from sonde.units import parse

#: one line of text: YAML does not keep control characters and rarer ends of lines apart
Line = Annotated[str, Field(min_length=1, max_length=400, pattern=r"^[^\p{C}\p{Zl}\p{Zp}]+$")]


class Choice(BaseModel):
    """Base of every node: frozen, and a key that it does not know is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)


def refuse(field: str, value: object, allowed: str, consequence: str = "") -> NoReturn:
    """Raise what a validator raises: `field` is relative to its node; `load` turns it into an InputError."""
    raise PydanticCustomError(
        "refused",
        "{field} = {value}: {allowed}",
        {"field": field, "value": value, "allowed": allowed, "consequence": consequence},
    )


def repeated(values: Iterable[object]) -> list[object]:
    """Return the values that are there more than once."""
    return [value for value, count in Counter(values).items() if count > 1]


_SHARE = re.compile(r"^(\d+(?:\.\d*)?)\s*%$")


def quantity_or_share(dimension: str, of: str, *, zero: bool = False) -> BeforeValidator:
    """Return what turns text into the SI unit of `dimension`, and a share "60%" of `of` into "60 %"."""

    def read(value: object) -> object:
        if not isinstance(value, str):
            return value
        share = _SHARE.match(value.strip())
        if share:
            return f"{float(share[1]):g} %"
        try:
            return parse(value, dimension, zero=zero)
        except InputError as error:
            refuse("", value, error.allowed + f', or a share of {of} such as "60 %"', error.consequence)

    return BeforeValidator(read)


def quantity(dimension: str, *, zero: bool = False) -> BeforeValidator:
    """Return what turns text such as "25 GB/s" into the SI unit of `dimension`, and leaves anything else as it is."""

    def read(value: object) -> object:
        try:
            return parse(value, dimension, zero=zero) if isinstance(value, str) else value
        except InputError as error:
            refuse("", value, error.allowed, error.consequence)

    return BeforeValidator(read)
