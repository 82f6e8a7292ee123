"""A power cap: devices may draw so much and no more, and their clocks fall until they do."""

from __future__ import annotations

from sonde.deployment.tree import PowerCap, Replica
from sonde.errors import InputError
from sonde.techniques.technique import Parameters, Technique


class Cap(Parameters):
    """What a device may draw.

    cap   power of one device, or a share of its peak power
    """

    cap: PowerCap = "60 %"


def replica(replica: Replica, chosen: Cap) -> Replica:
    """Return the replica with its devices capped; `sonde.cost.power` says what that does to a step."""
    if replica.power_cap not in (None, chosen.cap):
        raise InputError(
            "techniques.power-cap", chosen.cap, "the replica has a power_cap of its own: name one of the two",
            "the stricter one could be lifted unnoticed",
        )  # fmt: skip
    return replica.model_copy(update={"power_cap": chosen.cap})


TECHNIQUE = Technique(
    title="a cap on what a device draws: prompts slow down, decoding hardly does, and tokens take less energy",
    source="Patel et al., Splitwise, ISCA 2024, arXiv 2311.18677",
    parameters=Cap,
    replica=replica,
)
