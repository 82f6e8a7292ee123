"""Quantities in and out: every unit, round trips, and what is refused."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sonde.errors import InputError
from sonde.units import BASE, UNITS, parse, show

#: as people write it -> SI, each worked out by hand
WRITTEN = [
    ("80 GiB", "bytes", 85_899_345_920),
    ("80GB", "bytes", 8e10),
    ("1.5 TiB", "bytes", 1.5 * 1024**4),
    ("7", "bytes", 7),
    ("3.35 TB/s", "bandwidth", 3.35e12),
    ("400 Gb/s", "bandwidth", 5e10),
    ("400 Gbit/s", "bandwidth", 5e10),
    ("64 GiB/s", "bandwidth", 64 * 1024**3),
    ("989 TFLOP/s", "compute", 9.89e14),
    ("1,979 TOPS", "compute", 1.979e15),
    ("500 ms", "time", 0.5),
    ("10 min", "time", 600),
    ("1.5h", "time", 5400),
    ("5 us", "time", 5e-6),
    ("5 µs", "time", 5e-6),
    ("5 μs", "time", 5e-6),
    ("2 d", "time", 172_800),
    ("1e-3 s", "time", 1e-3),
    (".5 s", "time", 0.5),
    ("3. s", "time", 3),
    ("$2.10/h", "price", 2.10),
    ("$2.10", "price", 2.10),
    ("2.10 $/h", "price", 2.10),
    ("2.10 USD/h", "price", 2.10),
    ("$ 2.10 / h", "price", 2.10),
    ("$1,460/month", "price", 2.0),
    ("$24/d", "price", 1.0),
    ("$2/hr", "price", 2.0),
    ("$0.001/s", "price", 3.6),
    ("2.1", "price", 2.1),
    ("2 USD", "price", 2.0),
    ("$1,599", "money", 1599),
    ("1599 USD", "money", 1599),
    ("12 k$", "money", 12_000),
    ("20/s", "rate", 20),
    ("20 req/s", "rate", 20),
    ("20 reqs/s", "rate", 20),
    ("20 requests/s", "rate", 20),
    ("1 request/s", "rate", 1),
    ("20 requests / s", "rate", 20),
    ("600/min", "rate", 10),
    ("3600 requests/h", "rate", 1),
    ("20 rps", "rate", 20),
    ("2 k/s", "rate", 2000),
    ("8", "rate", 8),
    ("1,000", "count", 1000),
    ("1_000", "count", 1000),
    ("1,234,567.5", "count", 1_234_567.5),
    ("2.5k", "count", 2500),
    ("95 %", "ratio", 0.95),
    ("0.95", "ratio", 0.95),
    ("700 W", "power", 700),
    ("1.4 kW", "power", 1400),
    ("1.5 kWh", "energy", 5.4e6),
    ("+3 J", "energy", 3),
]


@pytest.mark.parametrize(("text", "dimension", "value"), WRITTEN)
def test_text_reads_as_people_mean_it(text: str, dimension: str, value: float) -> None:
    assert parse(text, dimension) == pytest.approx(value, rel=1e-12)
    assert parse(f"  {text}\t", dimension) == parse(text, dimension)


@pytest.mark.parametrize(("dimension", "unit"), [(dim, unit) for dim, units in UNITS.items() for unit in units])
def test_every_unit_reads_with_and_without_a_space(dimension: str, unit: str) -> None:
    assert parse(f"3{unit}", dimension) == parse(f"3 {unit}", dimension) == 3 * UNITS[dimension][unit]


@pytest.mark.parametrize("dimension", UNITS)
def test_a_bare_number_is_in_the_base_unit(dimension: str) -> None:
    assert UNITS[dimension][BASE[dimension]] == 1
    assert parse(2.5, dimension) == parse("2.5", dimension) == parse(np.float32(2.5), dimension) == 2.5
    assert parse(np.int64(3), dimension) == 3


@pytest.mark.parametrize("dimension", UNITS)
@pytest.mark.parametrize(
    "value",
    [
        "",
        " ",
        "fast",
        "nan",
        "inf",
        "-",
        "$",
        "1,5",
        "1,00",
        "12,3456",
        "1__0",
        "1.2.3",
        "1e",
        "１２",
        "3 parsecs",
        "1e999",
        None,
        True,
        False,
        [1],
        {"a": 1},
        b"3",
        1j,
        math.nan,
        math.inf,
        -math.inf,
        10**400,
        0,
        -1,
        "0",
        "-3",
        "-0.0",
    ],
)
def test_what_is_no_positive_quantity_is_refused(dimension: str, value: object) -> None:
    with pytest.raises(InputError) as caught:
        parse(value, dimension, "here[0].there")
    assert caught.value.path == "here[0].there"
    assert caught.value.value is value
    assert caught.value.allowed


def test_zero_is_taken_where_it_may_be() -> None:
    assert parse(0, "price", zero=True) == parse("$0/h", "price", zero=True) == 0
    with pytest.raises(InputError, match="zero or more"):
        parse(-1e-9, "price", zero=True)


@pytest.mark.parametrize(
    ("value", "dimension", "words"),
    [
        ("500 GB", "time", "'GB' is a unit of bytes, not of time"),
        ("3 s", "bytes", "'s' is a unit of time, not of bytes"),
        ("80 gib", "bytes", "did you mean 'GiB'"),
        ("500 MS", "time", "did you mean 'ms'"),
        ("$5", "time", "'$' is a unit of money, not of time"),
        ("$5 GB", "price", "is no unit of price"),
        ("3 EUR/h", "price", "did you mean 'USD/h'"),
        ("20 req", "rate", "'req' is no unit of rate"),
        ("8 s", "ratio", "'s' is a unit of time, not of ratio; use one of %"),
    ],
)
def test_a_wrong_unit_says_what_it_is_and_what_would_do(value: str, dimension: str, words: str) -> None:
    with pytest.raises(InputError) as caught:
        parse(value, dimension)
    assert words in str(caught.value)


@given(st.sampled_from(sorted(UNITS)), st.floats(1e-9, 1e18))
def test_what_is_shown_reads_back(dimension: str, value: float) -> None:
    back = parse(show(value, dimension), dimension)
    # money below a cent of a dollar and large sums are shown to the cent
    assert back == pytest.approx(value, rel=0.0051, abs=0.0051 if dimension in ("price", "money") and value >= 1 else 0)


@given(st.sampled_from(sorted(UNITS)), st.floats(1e-6, 1e15), st.floats(1.02, 100))
def test_more_never_shows_as_less(dimension: str, value: float, factor: float) -> None:
    assert parse(show(value * factor, dimension), dimension) >= parse(show(value, dimension), dimension)


@given(st.text(max_size=20), st.sampled_from(sorted(UNITS)))
def test_any_text_reads_as_a_finite_number_or_is_refused(text: str, dimension: str) -> None:
    try:
        value = parse(text, dimension)
    except InputError:
        return
    assert math.isfinite(value)
    assert value > 0


@pytest.mark.parametrize(
    ("value", "dimension", "text"),
    [
        (0.5, "time", "500 ms"),
        (90, "time", "90 s"),
        (7200, "time", "2 h"),
        (2e-6, "time", "2 µs"),
        (0, "time", "0 ns"),
        (3e-9, "time", "3 ns"),
        (80 * 2**30, "bytes", "80 GiB"),
        (1010, "bytes", "1,010 B"),
        (999.6, "bytes", "1,000 B"),
        (3.35e12, "bandwidth", "3.35 TB/s"),
        (989e12, "compute", "989 TFLOP/s"),
        (2.1, "price", "$2.10/h"),
        (0.0042, "price", "$0.0042/h"),
        (1234.5, "price", "$1,234.50/h"),
        (-2, "price", "-$2.00/h"),
        (1599, "money", "$1,599.00"),
        (20, "rate", "20/s"),
        (2500, "rate", "2.5 k/s"),
        (19_366, "count", "19.4 k"),
        (999.7e9, "count", "1 T"),
        (0.953, "ratio", "95.3 %"),
        (700, "power", "700 W"),
        (5.4e6, "energy", "1.5 kWh"),
        (999_600, "energy", "1,000 kJ"),
        (math.nan, "time", "-"),
        (math.inf, "time", "∞"),
        (-math.inf, "price", "-∞"),
    ],
)
def test_shows_as_people_would_write_it(value: float, dimension: str, text: str) -> None:
    assert show(value, dimension) == text
