"""What every node of a tree is made of: frozen models, refusals with path and value, and quantities in words."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Quantity:
    """What turns text such as "25 GB/s" into the SI unit of `dimension`, and leaves anything else as it is.

    zero   whether it may be zero
    of     what a share such as "60%" may be of, which becomes "60 %"; without it no share will do
    """

    dimension: str
    zero: bool = False
    of: str = ""

    def __call__(self, value: object) -> object:
        """Return the number, or the share as text. What is neither is refused."""
        if not isinstance(value, str):
            return value
        share = _SHARE.match(value.strip()) if self.of else None
        if share:
            return f"{float(share[1]):g} %"
        try:
            return parse(value, self.dimension, zero=self.zero)
        except InputError as error:
            also = f', or a share of {self.of} such as "60 %"' if self.of else ""
            refuse("", value, error.allowed + also, error.consequence)


def quantity_or_share(dimension: str, of: str, *, zero: bool = False) -> BeforeValidator:
    """Return what turns text into the SI unit of `dimension`, and a share "60%" of `of` into "60 %"."""
    return BeforeValidator(Quantity(dimension, zero, of))


def quantity(dimension: str, *, zero: bool = False) -> BeforeValidator:
    """Return what turns text such as "25 GB/s" into the SI unit of `dimension`, and leaves anything else as it is."""
    return BeforeValidator(Quantity(dimension, zero))
