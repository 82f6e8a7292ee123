"""A step table with other times: what its devices draw in any step is drawn for as much longer, or less long."""

from __future__ import annotations

from sonde.cost.table import Coefficients, StepTable


def retimed(table: StepTable, time: Coefficients, watts: float) -> StepTable:
    """Return the table with the times given, and the joules that `watts` (of all devices) add for the difference.

    The joules of the work itself stay as they are.
    """
    return table._replace(time=time, energy=plus(plus(table.energy, time, watts), table.time, -watts))


def plus(one: Coefficients, two: Coefficients, times: float) -> Coefficients:
    """Return one + times·two, coefficient by coefficient."""
    return Coefficients(
        one.fixed + times * two.fixed,
        one.linear + times * two.linear,
        one.slope + times * two.slope,
        one.prefill + times * two.prefill,
        one.prefill_window + times * two.prefill_window,
        one.decode + times * two.decode,
        one.read + times * two.read,
        one.read_window + times * two.read_window,
    )
