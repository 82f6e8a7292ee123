"""The bytes of a trace file: plain, gzip or zstd, as blocks of whole lines."""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, cast

from sonde.errors import InputError

BLOCK_BYTES = 8 << 20
_GZIP, _ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"


def open_trace(path: Path) -> IO[bytes]:
    """Return the decompressed bytes of `path` as a stream. Raises InputError where it is missing or empty."""
    if not path.exists():
        raise InputError(str(path), "no such file", "must be a trace file", "there is nothing to simulate")
    if path.is_dir():
        raise InputError(str(path), "a folder", "must be a trace file")
    try:
        with path.open("rb") as file:
            magic = file.read(4)
    except OSError as error:
        raise InputError(str(path), error.strerror, "must be a file that can be read") from error
    if not magic:
        raise InputError(str(path), "an empty file", "needs at least one request", "there is nothing to simulate")
    if magic[:2] == _GZIP:
        return cast(IO[bytes], gzip.open(path, "rb"))
    return io.BytesIO(_zstd(path)) if magic == _ZSTD else path.open("rb")


def blocks(stream: IO[bytes], path: Path, size: int = BLOCK_BYTES) -> Iterator[bytes]:
    """Yield the rest of `stream` in blocks of about `size` bytes that end at the end of a line."""
    rest = b""
    while True:
        piece = read(stream, path, size)
        if not piece:
            break
        end = piece.rfind(b"\n") + 1
        if end:
            yield rest + piece[:end]
            rest = piece[end:]
        else:
            rest += piece
    if rest:
        yield rest


def first_line(stream: IO[bytes], path: Path) -> tuple[int, str]:
    """Return the number (from 1) and the text of the first line that is not blank; the stream stands behind it."""
    number = 0
    try:
        for raw in stream:
            number += 1
            if text := raw.decode("utf-8-sig").strip():
                return number, text
    except UnicodeDecodeError as error:
        raise InputError(str(path), "bytes that are no text", "must be CSV, JSON or JSON lines in UTF-8") from error
    except (OSError, EOFError, zlib.error) as error:
        raise _damaged(path, error) from error
    raise InputError(str(path), "only blank lines", "needs at least one request", "there is nothing to simulate")


def read(stream: IO[bytes], path: Path, size: int = -1) -> bytes:
    """Return at most `size` bytes of the stream (all: -1). Raises InputError where the archive is damaged."""
    try:
        return stream.read(size)
    except (OSError, EOFError, zlib.error) as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> InputError:
    return InputError(str(path), str(error), "must be a whole file", "what is behind the damage would be lost")


def _zstd(path: Path) -> bytes:
    """Return the decompressed bytes, by polars, which reads zstd where Python before 3.14 does not."""
    import polars

    try:
        frame = polars.read_csv(
            path, has_header=False, separator="\x01", quote_char=None, schema={"line": polars.String}
        )
    except (polars.exceptions.PolarsError, OSError) as error:
        raise _damaged(path, error) from error
    return "\n".join(frame["line"].fill_null("").to_list()).encode()
