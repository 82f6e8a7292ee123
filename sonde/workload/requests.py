"""Requests as columns: what is asked of a deployment, one row per request, sorted by arrival."""

from __future__ import annotations

from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sonde.errors import InputError
from sonde.units import show

if TYPE_CHECKING:
    import polars


class Requests(NamedTuple):
    """Columns of n requests. Build with `requests()`, which checks; times in s, lengths in tokens.

    arrival_s       f8[n]    since the first moment of the trace, never decreasing
    prompt_tokens   i4[n]    at least 1
    output_tokens   i4[n]    at least 1
    session         i4[n]    conversations share a number; -1 is a request on its own
    priority        i1[n]    0 is served first
    block_start     i8[n+1]  where the prompt's hashed blocks begin in `block_hash` (all 0: no hashes)
    block_hash      i8[m]    identity of every full prompt block, for prefix caching
    block_tokens    int      tokens in a hashed block (0: no hashes)
    """

    arrival_s: NDArray[np.float64]
    prompt_tokens: NDArray[np.int32]
    output_tokens: NDArray[np.int32]
    session: NDArray[np.int32]
    priority: NDArray[np.int8]
    block_start: NDArray[np.int64]
    block_hash: NDArray[np.int64]
    block_tokens: int

    @property
    def n(self) -> int:
        """Return the number of requests (`len` counts the columns of a NamedTuple)."""
        return len(self.arrival_s)

    @property
    def span_s(self) -> float:
        """Return the time from the first arrival to the last."""
        return float(self.arrival_s[-1] - self.arrival_s[0]) if self.n else 0.0

    def __repr__(self) -> str:
        """Return how many there are, over how long, and how long they are: columns would say little."""
        if not self.n:
            return "Requests: none"
        when = f"over {show(self.span_s, 'time')}, {show(self.n / self.span_s, 'rate')}" if self.span_s else "at once"
        lengths = [
            f"{name} p50 {np.quantile(column, 0.5):,.0f}, p99 {np.quantile(column, 0.99):,.0f} tokens"
            for name, column in (("prompts", self.prompt_tokens), ("outputs", self.output_tokens))
        ]
        return f"Requests: {self.n:,} {when}; {'; '.join(lengths)}"

    def head(self, n: int) -> Requests:
        """Return the first `n` requests (all of them where there are fewer)."""
        return self._rows(0, min(max(n, 0), self.n))

    def window(self, start_s: float, end_s: float) -> Requests:
        """Return what arrives in [start_s, end_s), the first of it at time 0. Raises InputError where nothing does."""
        first, last = (int(row) for row in np.searchsorted(self.arrival_s, (start_s, end_s)))
        if last <= first:
            raise InputError(
                "window", f"{start_s:g} s to {end_s:g} s", f"must hold requests; the trace spans {self.span_s:g} s"
            )
        part = self._rows(first, last)
        return part._replace(arrival_s=part.arrival_s - part.arrival_s[0])

    def _rows(self, first: int, last: int) -> Requests:
        start = self.block_start[first : last + 1]
        rows = slice(first, last)
        return Requests(
            self.arrival_s[rows], self.prompt_tokens[rows], self.output_tokens[rows], self.session[rows],
            self.priority[rows], start - start[0], self.block_hash[start[0] : start[-1]], self.block_tokens,
        )  # fmt: skip

    def to_polars(self) -> polars.DataFrame:
        """Return one row per request; `block_hash` is a list, and there only if the requests have hashes."""
        import polars

        frame = polars.DataFrame(dict(zip(self._fields[:5], self[:5], strict=True)))
        if not self.block_tokens:
            return frame
        row = np.repeat(np.arange(self.n), np.diff(self.block_start))
        lists = polars.DataFrame({"row": row, "block_hash": self.block_hash}).group_by("row").agg("block_hash")
        frame = frame.with_row_index("row").with_columns(polars.col("row").cast(polars.Int64))
        return frame.join(lists, on="row", how="left", maintain_order="left").drop("row")

    def to_csv(self, path: str | Path | IO[bytes]) -> None:
        """Write a CSV that `read` reads back equal (as long as the first request arrives at time 0).

        Sessions and priorities are written where any differ from the default; hashes as one column of numbers
        joined by spaces, with the tokens of a block beside it.
        """
        import polars

        frame = self.to_polars()
        if (self.session == -1).all():
            frame = frame.drop("session")
        else:
            frame = frame.with_columns(polars.col("session").replace(-1, None))
        if (self.priority == 0).all():
            frame = frame.drop("priority")
        if self.block_tokens:
            text = polars.col("block_hash").cast(polars.List(polars.String)).list.join(" ")
            frame = frame.with_columns(text, polars.lit(self.block_tokens).alias("block_tokens"))
        frame.write_csv(path)


#: lengths and session numbers are held in 32 bits
_MOST_TOKENS = 2**31 - 1


def requests(
    arrival_s: object,
    prompt_tokens: object,
    output_tokens: object,
    *,
    session: object = None,
    priority: object = None,
    path: str = "requests",
) -> Requests:
    """Return checked columns. Raises InputError naming the first row that is not a whole number in its range,
    not finite, or earlier than the one before it.
    """
    arrival = _column(arrival_s, f"{path}.arrival_s", np.float64, (-np.inf, np.inf))
    n = len(arrival)
    if n == 0:
        raise InputError(path, "no rows", "needs at least one request", "there is nothing to simulate")
    if (np.diff(arrival) < 0).any():
        row = int(np.flatnonzero(np.diff(arrival) < 0)[0]) + 1
        raise InputError(
            f"{path}.arrival_s[{row}]",
            float(arrival[row]),
            f"time goes backwards (before it: {arrival[row - 1]})",
        )
    session = np.full(n, -1) if session is None else session
    priority = np.zeros(n, np.int8) if priority is None else priority
    columns = [
        _column(values, f"{path}.{name}", dtype, limits)
        for values, name, dtype, limits in (
            (prompt_tokens, "prompt_tokens", np.int32, (1, _MOST_TOKENS)),
            (output_tokens, "output_tokens", np.int32, (1, _MOST_TOKENS)),
            (session, "session", np.int32, (-1, _MOST_TOKENS)),
            (priority, "priority", np.int8, (-128, 127)),
        )
    ]
    lengths = [n, *map(len, columns)]
    if len(set(lengths)) > 1:
        raise InputError(path, f"{', '.join(map(str, lengths))} rows", "columns must be of one length")
    return Requests._make([arrival, *columns, np.zeros(n + 1, np.int64), np.empty(0, np.int64), 0])


def _column(values: object, path: str, dtype: type[np.generic], limits: tuple[float, float]) -> Any:
    """Return a column of `dtype`, every value of which is finite, within limits, and whole where the type is."""
    if isinstance(values, np.ndarray) and values.dtype == dtype:
        given = values
    else:
        try:
            given = np.asarray(values)
            given = given if given.dtype.kind in "iu" else np.asarray(given, dtype=np.float64)
        except (TypeError, ValueError, OverflowError) as error:
            raise InputError(path, type(values).__name__, f"must be a column of numbers: {error}") from error
    if given.ndim != 1:
        raise InputError(path, given.shape, "must be a column: one number for each request")
    low, high = limits
    with np.errstate(invalid="ignore"):
        wrong = ~np.isfinite(given) | (given < low) | (given > high)
        if np.issubdtype(dtype, np.integer) and given.dtype.kind == "f":
            wrong |= given != np.floor(given)
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        allowed = "a finite time" if dtype is np.float64 else f"a whole number from {int(low)} to {int(high):,}"
        raise InputError(f"{path}[{row}]", given[row].item(), f"must be {allowed}")
    return np.ascontiguousarray(given, dtype=dtype)


def chosen(trace: Requests, keep: NDArray[np.bool_]) -> Requests:
    """Return the requests of the rows to `keep`."""
    counts = np.diff(trace.block_start)
    blocks = np.repeat(keep, counts)
    start = np.concatenate((np.zeros(1, np.int64), np.cumsum(counts[keep], dtype=np.int64)))
    return Requests(
        trace.arrival_s[keep], trace.prompt_tokens[keep], trace.output_tokens[keep], trace.session[keep],
        trace.priority[keep], start, trace.block_hash[int(trace.block_start[0]) :][: len(blocks)][blocks],
        trace.block_tokens,
    )  # fmt: skip


def repeat(trace: Requests, count: int) -> Requests:
    """Return `count` requests: the trace again and again, one mean gap between two copies."""
    copies = -(-count // trace.n)
    period = trace.span_s * trace.n / max(trace.n - 1, 1) or 1.0
    base = trace.arrival_s - trace.arrival_s[0]
    return Requests(
        (np.arange(copies)[:, None] * period + base[None, :]).ravel()[:count],
        np.tile(trace.prompt_tokens, copies)[:count],
        np.tile(trace.output_tokens, copies)[:count],
        np.tile(trace.session, copies)[:count],
        np.tile(trace.priority, copies)[:count],
        np.zeros(count + 1, np.int64),
        np.empty(0, np.int64),
        0,
    )


def scale_rate(trace: Requests, factor: float) -> Requests:
    """Return the same requests arriving `factor` times as fast."""
    return trace._replace(arrival_s=(trace.arrival_s - trace.arrival_s[0]) / factor)
