"""An engine at the ends of its interval: as fast, and as slow, as 80 % of measurements allow.

Steps are stretched, all by one factor, and what follows from it is left to the simulator: near saturation a queue grows
by far more than the steps do. The factor is that of the time per token; the time to first token scatters more, and what
it scatters beyond is put on it afterwards (`late`). In a closed loop, where a run whose steps take f times as long is
the same run f times as long, TTFT and TPOT come out as the prediction times the ends of their intervals.
"""

from __future__ import annotations

import math

from sonde.cost.table import Client, Coefficients, Engine


def stretch(engine: Engine, *, slow: bool) -> float:
    """Return how many times as long the steps of an engine take at that end."""
    return engine.doubt.tpot_high if slow else engine.doubt.tpot_low


def late(engine: Engine, *, slow: bool) -> float:
    """Return the factor on the time to first token at that end, beside that on the steps."""
    doubt = engine.doubt
    return max(doubt.ttft_high / doubt.tpot_high, 1.0) if slow else min(doubt.ttft_low / doubt.tpot_low, 1.0)


def drawn(engine: Engine, *, slow: bool) -> float:
    """Return the factor on joules at that end: of power and of time, which err apart, so that their logarithms add up
    in squares."""
    power = engine.doubt.energy_high if slow else engine.doubt.energy_low
    off = math.hypot(math.log(power), math.log(stretch(engine, slow=slow)))
    return math.exp(off if slow else -off)


def stretched(engine: Engine, *, slow: bool) -> Engine:
    """Return the engine whose steps and clients' waits take so many times as long; joules of a step stay."""
    factor = stretch(engine, slow=slow)
    time = Coefficients._make(factor * part for part in engine.table.time)
    client = engine.client
    waits = Client(factor * client.request_s, factor * client.token_s, client.polls, client.polls_busy)
    return engine._replace(table=engine.table._replace(time=time), client=waits)
