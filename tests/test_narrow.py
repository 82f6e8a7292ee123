"""Numbers of 1 to 8 bits in bytes, register layouts, and products that read them."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sonde.errors import InputError
from sonde.learn import gemv, layout, numbers

FLOATS = [f"float{1 + e + m}_e{e}m{m}" for e, m in itertools.product(range(1, 6), range(7)) if 3 <= 1 + e + m <= 8]
NAMES = [f"{kind}{bits}" for kind in ("int", "uint") for bits in range(1, 9)] + FLOATS


@given(bits=st.integers(1, 8), count=st.integers(0, 70), rows=st.integers(1, 3), seed=st.integers(0, 2**32 - 1))
def test_what_is_packed_comes_out_again(bits: int, count: int, rows: int, seed: int) -> None:
    codes = np.random.default_rng(seed).integers(0, 2**bits, (rows, count), dtype=np.uint8)
    data = numbers.packed(codes, bits)
    assert data.shape == (rows, math.ceil(count * bits / 8))
    assert np.array_equal(numbers.unpacked(data, bits, count), codes)


@given(bits=st.integers(1, 8), seed=st.integers(0, 2**32 - 1))
def test_element_k_begins_at_bit_k_times_the_width(bits: int, seed: int) -> None:
    """Against one large whole number; elements of 3, 5, 6 and 7 bits lie across bytes."""
    codes = np.random.default_rng(seed).integers(0, 2**bits, 24, dtype=np.uint8)
    whole = sum(int(code) << (k * bits) for k, code in enumerate(codes))
    assert numbers.packed(codes, bits).tobytes() == whole.to_bytes(3 * bits, "little")


@pytest.mark.parametrize("name", NAMES)
def test_every_code_is_the_nearest_to_its_own_value(name: str) -> None:
    it = numbers.number(name)
    table = numbers.values(it)
    assert len(table) == 2**it.bits
    assert np.isfinite(table).all()
    assert np.array_equal(table[numbers.encoded(table, it)], table)  # zero may have two codes


@settings(deadline=None)
@given(name=st.sampled_from(NAMES), seed=st.integers(0, 2**32 - 1))
def test_numbers_go_to_the_nearest_value(name: str, seed: int) -> None:
    it = numbers.number(name)
    table = numbers.values(it)
    x = np.random.default_rng(seed).normal(0, np.abs(table).max(), 50)
    found = table[numbers.encoded(x, it)]
    assert np.allclose(np.abs(found - x), np.abs(table[:, None] - x).min(axis=0))


@pytest.mark.parametrize(
    ("name", "largest", "least"),
    [("float8_e4m3", 480, 2**-9), ("float6_e3m2", 28, 2**-4), ("float6_e2m3", 7.5, 2**-3), ("float4_e2m1", 6, 0.5)],
)
def test_floats_are_those_of_their_exponent_and_mantissa(name: str, largest: float, least: float) -> None:
    """OCP's formats; of e4m3 without its NaN, whose code is one more value here."""
    table = numbers.values(numbers.number(name))
    assert table.max() == largest
    assert table[table > 0].min() == least


@pytest.mark.parametrize("name", ["int0", "uint9", "float2_e1m0", "float8_e4m4", "bf16", ""])
def test_numbers_that_there_are_none_of(name: str) -> None:
    with pytest.raises(InputError):
        numbers.number(name)


@settings(deadline=None, max_examples=40)
@given(name=st.sampled_from(NAMES), outputs=st.integers(1, 9), groups=st.integers(1, 3), seed=st.integers(0, 2**32 - 1))
def test_narrow_matrices_take_their_bytes_and_err_by_half_a_step(
    name: str, outputs: int, groups: int, seed: int
) -> None:
    it = numbers.number(name)
    weights = np.random.default_rng(seed).standard_normal((outputs, groups * 32)).astype(np.float32)
    held = numbers.narrowed(weights, it, 32)
    scales = outputs * groups * 2 * (2 if it.kind == "uint" else 1)
    assert held.nbytes == outputs * groups * 32 * it.bits // 8 + scales
    error = np.abs(numbers.widened(held) - weights).reshape(outputs, groups, 32)
    table = np.sort(numbers.values(it))
    step = np.diff(table).max() / 2 * held.scales.astype(np.float32)
    if it.kind == "int":
        step = np.maximum(step, held.scales * (table.max() + table.min() + 1)) if it.bits > 1 else step + np.inf
    assert (error <= step[:, :, None] * 1.02 + 2e-3).all()


def test_a_group_must_divide_the_inputs() -> None:
    with pytest.raises(InputError, match="divide"):
        numbers.narrowed(np.ones((2, 33)), numbers.number("int4"), 32)


# ---- layouts

parts = st.tuples(st.booleans(), st.integers(1, 4), st.integers(1, 3)).map(
    lambda it: layout.spatial(*it[1:]) if it[0] else layout.local(*it[1:])
)


@settings(deadline=None)
@given(st.lists(parts, min_size=1, max_size=3))
def test_every_composition_holds_every_element_once(chain: list[layout.Layout]) -> None:
    whole = chain[0]
    for one in chain[1:]:
        whole = whole * one
    assert layout.bijective(whole)
    assert whole.threads * whole.places == math.prod(whole.shape)


@settings(deadline=None)
@given(parts, parts, parts)
def test_composition_is_associative(f: layout.Layout, g: layout.Layout, h: layout.Layout) -> None:
    left, right = (f * g) * h, f * (g * h)
    assert left.shape == right.shape
    assert np.array_equal(left.index, right.index)


def test_a_layout_is_the_formula_element_by_element() -> None:
    f, g = layout.local(3, 4), layout.spatial(2, 3)
    whole = f * g
    assert (whole.threads, whole.places, whole.shape) == (6, 12, (6, 12))
    for t, i in itertools.product(range(6), range(12)):
        assert tuple(whole.index[t, i]) == (2 * (i // 4) + t // 3, 3 * (i % 4) + t % 3)
    assert not np.array_equal(whole.index, (g * f).index)  # the order counts
    assert not layout.bijective(replace(whole, index=np.zeros_like(whole.index)))
    with pytest.raises(InputError, match="dimensions"):
        f * layout.local(2)


@settings(deadline=None, max_examples=30)
@given(bits=st.integers(1, 8), seed=st.integers(0, 2**32 - 1))
def test_a_thread_looks_at_its_bytes_as_numbers_of_any_width(bits: int, seed: int) -> None:
    """Dealt offline, each thread's bytes hold its own elements, whatever lies across their ends."""
    of = layout.local(2, 1) * layout.spatial(4, 4) * layout.local(1, 4)
    codes = np.random.default_rng(seed).integers(0, 2**bits, of.shape, dtype=np.uint8)
    data = layout.dealt(codes, of, bits)
    assert data.shape == (16, bits)
    assert np.array_equal(layout.gathered(data, of, bits), codes)
    mine = [codes[tuple(at)] for at in of.index[5]]
    assert np.array_equal(numbers.unpacked(data[5], bits, 8), mine)


def test_elements_that_fill_no_byte_are_refused() -> None:
    with pytest.raises(InputError, match="whole bytes"):
        layout.dealt(np.zeros((3, 1), np.uint8), layout.local(3, 1), 3)


# ---- products


@settings(deadline=None, max_examples=16)
@given(bits=st.integers(1, 8), outputs=st.integers(1, 1100), groups=st.integers(1, 2), seed=st.integers(0, 2**32 - 1))
def test_products_are_those_of_the_weights_that_are_held(bits: int, outputs: int, groups: int, seed: int) -> None:
    draws = np.random.default_rng(seed)
    weights = draws.standard_normal((outputs, groups * gemv.GROUP)).astype(np.float32)
    x = draws.standard_normal(weights.shape[1]).astype(np.float32)
    held = gemv.dealt(weights, bits)
    grouped = weights.reshape(outputs, groups, -1)
    scale = np.abs(grouped).max(axis=2, keepdims=True) / max(2 ** (bits - 1) - 1, 1)
    low = 2 ** (bits - 1)
    wide = (np.clip(np.rint(grouped / scale), -low, low - 1) * scale).reshape(weights.shape)
    assert np.allclose(gemv.product(held, x), wide @ x, atol=5e-3)
    whole = math.ceil(outputs / gemv.TILE) * gemv.TILE
    assert held.nbytes == whole * weights.shape[1] * (bits / 8 + 4 / gemv.GROUP)


def test_products_in_32_bits_and_bandwidth() -> None:
    draws = np.random.default_rng(0)
    weights, x = draws.standard_normal((gemv.TILE, 64)).astype(np.float32), draws.standard_normal(64).astype(np.float32)
    assert np.allclose(gemv.wide_product(gemv.tiled(weights), x), weights @ x, atol=1e-4)
    assert gemv.bandwidth(1) > 1e8
