"""Weights of any width from 1 to 8 bits, multiplied by activations in 16: fewer bytes, the same arithmetic (Tilus)."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Annotated

from pydantic import AfterValidator, Field

from sonde.cost.roofline import Operator
from sonde.cost.shard import Shard, arithmetic, operands
from sonde.deployment.node import Line, refuse
from sonde.errors import InputError
from sonde.techniques.technique import Holds, Parameters, Technique
from sonde.techniques.tiles import bytes_of, instructions_per_s, on_products, widened

_NUMBER = re.compile(r"^(?:(?P<whole>u?int)(?P<bits>[1-8])|float(?P<width>[3-8])_e(?P<e>[1-7])m(?P<m>[0-6]))$")


def width(number: str) -> int:
    """Return the bits of a type of number: "uint4", "int6", "float6_e3m2". Refuses what there is none of."""
    found = _NUMBER.match(number)
    if found is None:
        refuse("", number, "must be int1 to int8, uint1 to uint8, or float3_e1m1 to float8_e5m2")
    if found["whole"]:
        return int(found["bits"])
    bits = int(found["width"])
    if 1 + int(found["e"]) + int(found["m"]) != bits:
        refuse("", number, f"needs one bit of sign and {bits - 1} of exponent and mantissa")
    return bits


def _checked(number: str) -> str:
    width(number)
    return number


class Weights(Parameters):
    """What weights are held in, and what widening them takes.

    number         uint1 to uint8, int1 to int8, or a float of 3 to 8 bits, such as "float6_e3m2" with 3 of exponent and
                   2 of mantissa
    group          inputs that share a scale in 16 bits
    instructions   of general cores, to widen one weight and scale it (0: a data path does it)
    """

    number: Annotated[Line, AfterValidator(_checked)] = "uint4"
    group: int = Field(default=128, ge=8, le=65_536)
    instructions: float = Field(default=2.0, ge=0, le=100)


def shard(part: Shard, weights: Weights) -> Shard:
    """Return the share of a device whose layers hold such weights; they are widened to what activations are in."""
    if part.activation_bytes < 2.0:
        raise InputError(
            "techniques.low-bit-weights", part.replica.activations,
            "needs activations in 16 bits or more, to which weights are widened",
            "the product would be computed in the narrow format of the activations: use w4a8 or w4a4",
        )  # fmt: skip
    activations = part.replica.activations
    held = bytes_of(width(weights.number), weights.group)
    if held >= part.weight_bytes and held >= part.expert_bytes:
        raise InputError(
            "techniques.low-bit-weights.number", weights.number,
            f"takes {held:.3f} bytes a weight with its scales, and weights take {part.weight_bytes:.3f} without it",
        )  # fmt: skip
    computed = arithmetic(part.device, activations, activations)
    return replace(
        part,
        weight_bytes=held,
        expert_bytes=held,
        product=computed,
        expert_product=computed,
        form=operands(part.device, activations, activations),
        expert_form=operands(part.device, "int4", activations, grouped=True),
    )


def operators(part: Shard, found: list[Operator], weights: Weights) -> list[Operator]:
    """Return the operators with every weight widened on general cores, beside the loads and the arithmetic."""
    if weights.instructions == 0:
        return found
    rate = instructions_per_s(part.device, "low-bit-weights")
    return on_products(found, lambda one: widened(part, one, weights.instructions, rate))


_TWICE = "both say what weights are held in"

TECHNIQUE = Technique(
    title="weights of any width from 1 to 8 bits, widened as they are read",
    source="Ding et al., Tilus, ASPLOS 2026, arXiv 2504.12984",
    parameters=Weights,
    cannot={"w4a4": _TWICE, "w4a8": _TWICE, "w2a8kv4": _TWICE},
    shard=shard,
    operators=operators,
    holds=lambda weights: Holds(weights.number, weights.number),
)
