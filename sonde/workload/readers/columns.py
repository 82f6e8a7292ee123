"""The columns of a CSV while it is read: blocks of each, joined one by one at the end to save memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sonde.errors import InputError
from sonde.workload.readers.trace import session_codes
from sonde.workload.requests import Requests

if TYPE_CHECKING:
    import polars

Place = Callable[[int, str], str]


@dataclass
class Columns:
    """What has been read so far; `line` is the last line read, `last` its time, `zero` that of the first row."""

    arrival: list[NDArray[np.float64]] = field(default_factory=list)
    prompt: list[NDArray[np.int32]] = field(default_factory=list)
    output: list[NDArray[np.int32]] = field(default_factory=list)
    session: list[polars.Series] = field(default_factory=list)
    priority: list[NDArray[np.int8]] = field(default_factory=list)
    block_count: list[NDArray[np.int64]] = field(default_factory=list)
    block_hash: list[NDArray[np.int64]] = field(default_factory=list)
    block_tokens: int = 0
    rows: int = 0
    dropped: int = 0
    line: int = 0
    last: float = -np.inf
    zero: float | int | None = None

    def add_optional(self, frame: polars.DataFrame, keep: NDArray[np.bool_], where: Place) -> None:
        """Add what a trace may lack, of the rows to `keep`. Raises InputError at the first value that will not do."""
        import polars

        if "priority" in frame.columns:
            levels = _cast(frame["priority"], polars.Int8, where, "a whole number from -128 to 127")
            self.priority.append(levels.fill_null(0).to_numpy()[keep])
        if "block_hash" in frame.columns and "block_tokens" in frame.columns:
            self._add_blocks(frame, keep, where)
        if "session" in frame.columns:
            named = frame["session"].filter(polars.Series(keep))
            numbered = named.cast(polars.Int64, strict=False)
            self.session.append(named if numbered.null_count() > named.null_count() else numbered)

    def _add_blocks(self, frame: polars.DataFrame, keep: NDArray[np.bool_], where: Place) -> None:
        import polars

        sizes = _cast(frame["block_tokens"], polars.Int32, where, "tokens in a block").fill_null(0)
        different = (sizes < 1) | (sizes != (self.block_tokens or sizes[0]))
        if different.any():
            row = int(different.arg_true()[0])
            raise InputError(where(row, "block_tokens"), sizes[row], "must be one number of tokens, at least 1")
        self.block_tokens = int(sizes[0])
        lists = frame["block_hash"].fill_null("").str.extract_all(r"\S+")
        counts = lists.list.len().to_numpy().astype(np.int64)
        flat = lists.filter(lists.list.len() > 0).explode()
        owner = np.repeat(np.arange(len(counts)), counts)
        hashes = _cast(
            flat.alias("block_hash"), polars.Int64, lambda i, role: where(int(owner[i]), role), "whole numbers"
        )
        self.block_count.append(counts[keep])
        self.block_hash.append(hashes.to_numpy()[np.repeat(keep, counts)])

    def requests(self, limit: int | None) -> Requests:
        """Return the columns in one piece, at most `limit` rows, from the first arrival on; empties itself."""
        n = self.rows if limit is None else min(self.rows, limit)
        arrival = _joined(self.arrival, n)
        arrival -= arrival[0]
        start, hashes = np.zeros(n + 1, np.int64), np.empty(0, np.int64)
        if self.block_tokens:
            np.cumsum(_joined(self.block_count, n), out=start[1:])
            hashes = _joined(self.block_hash, int(start[-1]))
        return Requests(
            arrival, _joined(self.prompt, n), _joined(self.output, n), self._sessions(n),
            _joined(self.priority, n) if self.priority else np.zeros(n, np.int8), start, hashes, self.block_tokens,
        )  # fmt: skip

    def _sessions(self, n: int) -> NDArray[np.int32]:
        """Return the session numbers: those of the file, or, where they are text, in the order they appear."""
        import polars

        if not self.session:
            return np.full(n, -1, np.int32)
        textual = any(part.dtype == polars.String for part in self.session)
        parts = [part.cast(polars.String) if textual else part for part in self.session]
        whole: polars.Series = polars.concat(parts)[:n]
        self.session.clear()
        if not textual:
            return session_codes(whole.fill_null(-1).to_numpy())
        names = whole.drop_nulls().unique(maintain_order=True)
        codes = whole.replace_strict(names, polars.int_range(len(names), dtype=polars.Int32, eager=True), default=-1)
        return codes.cast(polars.Int32).to_numpy().copy()


def _cast(text: polars.Series, kind: Any, where: Place, allowed: str) -> polars.Series:
    """Return text as numbers; null stays null. Raises InputError at the first that is none."""
    numbers = text.cast(kind, strict=False)
    if numbers.null_count() > text.null_count():
        row = int((numbers.is_null() & text.is_not_null()).arg_true()[0])
        raise InputError(where(row, text.name), text[row], f"must be {allowed}", "repair or remove the line")
    return numbers


def _joined(parts: list[NDArray[Any]], n: int) -> NDArray[Any]:
    whole = np.concatenate(parts)
    parts.clear()
    return whole if len(whole) <= n else whole[:n].copy()
