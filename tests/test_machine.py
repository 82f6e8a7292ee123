"""Measuring this machine: what is computed is checked against slow twins; how long anything took never is."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sonde.calibrate.machine import chase, clock, facts, fit, gemm
from sonde.calibrate.machine.attention import Attention, attended
from sonde.calibrate.machine.backends import backends, numpy_backend
from sonde.calibrate.machine.fusion import advice, apart, chains
from sonde.calibrate.machine.gemm import Product, Shape, multiplied
from sonde.calibrate.machine.gpu import missing, triton_missing
from sonde.calibrate.machine.knee import knee
from sonde.calibrate.machine.loopback import loopback
from sonde.calibrate.machine.loops import region, walk
from sonde.calibrate.machine.storage import disk
from sonde.calibrate.machine.stream import KERNELS, START, Backend, best, check, elements, expected, stream
from sonde.errors import CannotError


@given(lines=st.integers(1, 400), seed=st.integers(0, 1000))
def test_the_pointer_chase_visits_every_line_once_and_comes_back(lines: int, seed: int) -> None:
    following = chase.cycle(lines, np.random.default_rng(seed))
    at, seen = 0, []
    for _ in range(lines):
        seen.append(at)
        at = int(following[at])
    assert at == 0
    assert sorted(seen) == list(range(0, lines * chase.WORDS, chase.WORDS))
    assert np.count_nonzero(following >= 0) == lines, "only the first word of a line is used"


@pytest.mark.parametrize("steps", [0, 1, 7, 64])
def test_the_compiled_walk_ends_where_a_plain_one_does(steps: int) -> None:
    following = chase.cycle(64, np.random.default_rng(1))
    at = 0
    for _ in range(steps):
        at = int(following[at])
    assert walk()(following, 0, steps) == at


def test_a_chase_has_a_positive_latency_for_every_size() -> None:
    sizes = chase.sizes(64 << 10, 1 << 30)
    assert sizes[0] == chase.SMALLEST
    assert sizes[-1] == 4 * (64 << 10)
    assert sizes == sorted(set(sizes))
    assert all(size % chase.LINE == 0 for size in sizes)
    found = list(chase.chase(sizes[:3], np.random.default_rng(0), steps=200, repeats=1))
    assert [point.bytes for point in found] == sizes[:3]
    assert all(point.seconds > 0 for point in found)


@settings(max_examples=60)
@given(
    steps=st.lists(st.floats(2.2, 10), min_size=1, max_size=3),
    widths=st.lists(st.integers(3, 8), min_size=4, max_size=4),
    seed=st.integers(0, 10_000),
)
def test_levels_are_found_again_in_a_noisy_curve(steps: list[float], widths: list[int], seed: int) -> None:
    heights = np.cumprod([1e-9, *steps])
    curve, at = [], 4096
    noise = np.random.default_rng(seed)
    for height, width in zip(heights, widths, strict=False):
        for _ in range(width):
            curve.append(chase.Latency(at, float(height * (1 + 0.02 * noise.standard_normal()))))
            at *= 2
    found = chase.levels(curve)
    assert len(found) == len(heights)
    for level, height in zip(found, heights, strict=True):
        assert level.seconds == pytest.approx(height, rel=0.05)
    ends = np.cumsum(widths[: len(heights)])[:-1]
    assert [level.bytes for level in found] == [*(4096.0 * 2 ** (end - 1) for end in ends), math.inf]


def test_a_flat_curve_is_one_level_and_a_half_cached_point_is_none() -> None:
    flat = [chase.Latency(4096 << i, 2e-9) for i in range(8)]
    assert [level.seconds for level in chase.levels(flat)] == [pytest.approx(2e-9)]
    rising = [chase.Latency(4096 << i, s) for i, s in enumerate([1e-9] * 4 + [6e-9] + [40e-9] * 4)]
    assert [level.name for level in chase.levels(rising)] == ["L1", "memory"]
    assert chase.levels([]) == ()


@pytest.mark.parametrize("backend", backends(2, touches=True)[0], ids=lambda b: f"{b.name}-{b.threads}-{b.touch}")
def test_every_back_end_runs_the_same_kernels(backend: Backend) -> None:
    count = 20_011  # no multiple of a block
    arrays = {name: backend.allocate(count, value) for name, value in START.items()}
    plain = {name: np.full(count, value) for name, value in START.items()}
    for kernel in KERNELS:
        backend.run(kernel, arrays)
        second = kernel.scale * plain[kernel.second] if kernel.second else 0.0
        plain[kernel.out] = plain[kernel.first] + second if kernel.second else kernel.scale * plain[kernel.first]
        for name, array in arrays.items():
            np.testing.assert_allclose(backend.host(array), plain[name], rtol=1e-15)


def test_stream_counts_bytes_as_stream_does_and_checks_what_it_wrote() -> None:
    assert {kernel.name: 8 * kernel.words for kernel in KERNELS} == {"copy": 16, "scale": 16, "add": 24, "triad": 24}
    rates = stream(numpy_backend(), 10_000, repeats=3)
    assert [rate.kernel for rate in rates] == ["copy", "scale", "add", "triad"]
    assert all(rate.bytes_per_s >= rate.mean_bytes_per_s > 0 and rate.error < 1e-13 for rate in rates)
    assert best(rates, "triad") == rates[3]
    assert best([], "triad") is None


def test_stream_refuses_a_back_end_that_leaves_elements_out() -> None:
    right = numpy_backend()

    def lazy(kernel: object, arrays: object) -> None:
        right.run(kernel, {name: array[:-1] for name, array in arrays.items()})  # type: ignore[attr-defined, arg-type]

    wrong = Backend("lazy", 1, "own", right.allocate, lazy)
    with pytest.raises(CannotError, match="STREAM on lazy: array"):
        stream(wrong, 1000, repeats=2)


def test_values_of_stream_after_some_rounds() -> None:
    assert expected(0) == START
    assert expected(1) == {"a": 15.0, "b": 3.0, "c": 4.0}
    assert check({name: np.full(5, value) for name, value in expected(2).items()}, 2, "x") == 0.0


def test_arrays_are_four_times_the_cache_or_it_is_said() -> None:
    assert elements(32 << 20, 64 << 30) == (4 * (32 << 20) // 8, "")
    count, said = elements(32 << 20, 384 << 20)
    assert count * 8 * 3 <= 192 << 20
    assert "2 times the last-level cache, not 4" in said


def test_caches_are_read_as_the_system_describes_them(tmp_path: Path) -> None:
    for index, (level, size, kind) in enumerate(
        [("1", "48K", "Data"), ("1", "32K", "Instruction"), ("2", "2M", "Unified"), ("3", "1G", "Unified")]
    ):
        folder = tmp_path / f"index{index}"
        folder.mkdir()
        for name, value in (("level", level), ("size", size), ("type", kind)):
            (folder / name).write_text(f"{value}\n")
    assert list(facts.read_caches(tmp_path)) == [(1, 48 << 10), (2, 2 << 20), (3, 1 << 30)]
    assert list(facts.read_caches(tmp_path / "absent")) == []
    found = facts.facts()
    assert found.cores >= 1
    assert found.memory_bytes > 1 << 28
    assert found.last_cache > 0


def test_flops_and_bytes_of_a_product_are_counted() -> None:
    x, w = np.ones((3, 5)), np.ones((7, 5))
    additions = multiplications = 0
    for row in x:
        for column in w:
            multiplications += len(row)
            additions += len(column)
    assert Shape(3, 5, 7).flops == additions + multiplications
    assert Shape(3, 5, 7).moved("bf16") == 2 * (x.size + w.size + 21)
    assert Shape(3, 5, 7).moved("int8") == x.size + w.size + 4 * 21


@pytest.mark.parametrize("precision", ["fp64", "fp32", "bf16", "int8"])
def test_what_is_timed_is_the_product(precision: str) -> None:
    rng = np.random.default_rng(0)
    if precision in ("bf16", "int8"):
        pytest.importorskip("torch")
    if precision == "int8":
        x, w = rng.integers(-9, 9, (32, 64)).astype(np.int8), rng.integers(-9, 9, (16, 64)).astype(np.int8)
    else:
        kind = np.float64 if precision == "fp64" else np.float32
        x, w = rng.standard_normal((32, 64)).astype(kind), rng.standard_normal((16, 64)).astype(kind)
    right = x.astype(np.float64) @ w.astype(np.float64).T
    worst = {"fp64": 1e-12, "fp32": 1e-4, "bf16": 0.3, "int8": 0.0}[precision]
    assert np.abs(multiplied(precision, x, w) - right).max() <= worst
    found = list(gemm.products(precision, [Shape(8, 64, 16)], threads=1, cold_bytes=1 << 14))
    assert all(product.seconds > 0 and product.cold for product in found)


def test_attention_counts_its_work_and_numpy_attends_as_the_formula_says() -> None:
    prefill = Attention("numpy", "prefill", "fp32", 1, 64, 64, 1.0)
    decode = Attention("numpy", "decode", "bf16", 4, 1, 100, 1.0)
    assert prefill.flops == 4 * 8 * 64 * 64 * 64 / 2
    assert (decode.flops, decode.bytes) == (4 * 4 * 8 * 64 * 100, 2 * 4 * 100 * 8 * 64 * 2)
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((1, 2, 6, 4)) for _ in range(3))
    slow = np.zeros_like(q)
    for head in range(2):
        for i in range(6):
            weights = np.exp([q[0, head, i] @ k[0, head, j] / 2 for j in range(i + 1)])
            slow[0, head, i] = (weights / weights.sum()) @ v[0, head, : i + 1]
    np.testing.assert_allclose(attended(q, k, v, causal=True), slow, rtol=1e-12)


names = st.lists(st.sampled_from("abc"), min_size=1, max_size=30)


@given(names=names, length=st.integers(2, 4))
def test_proximity_scores_are_those_of_counting_by_hand(names: list[str], length: int) -> None:
    found = {chain.kernels: chain for chain in chains(names, length, least=0.0)}
    windows = [tuple(names[i : i + length]) for i in range(len(names) - length + 1)]
    assert set(found) == set(windows)
    for kernels, chain in found.items():
        assert chain.score == windows.count(kernels) / names.count(kernels[0])
        left = "".join(names).replace(
            "".join(kernels),
            "F",
        )
        assert chain.launches == len(left), "each fused chain is one launch"
        assert chain.times == left.count("F")
        assert chain.speedup == len(names) / len(left)


def test_what_is_advised_always_follows_its_first_kernel() -> None:
    step = ["embed", *["norm", "mm", "gelu", "mm2"] * 5, "norm", "head"]
    found = advice(step)
    assert [len(chain.kernels) for chain in found] == [2, 4, 8, 16]
    assert found[1].kernels == ("mm", "gelu", "mm2", "norm")
    assert (found[1].times, found[1].launches, found[1].score) == (5, len(step) - 15, 1.0)
    assert advice(list("abcdefa"))
    assert all(chain.score == 1.0 for chain in advice(list("abcdefa")))
    assert apart("aaaa", "aa") == 2
    assert Counter(step)["mm"] == 5


@given(flat=st.floats(1e-5, 1e-1), at=st.floats(1.5, 200), synchronous=st.booleans())
def test_the_knee_is_found_where_it_was_put(flat: float, at: float, synchronous: bool) -> None:
    batches = [1, 2, 4, 8, 16, 32, 64, 128, 256]
    seconds = [flat * (1 + b / at) if synchronous else flat * max(1.0, b / at) for b in batches]
    found = knee(batches, seconds, synchronous=synchronous)
    assert found.batch == pytest.approx(at, rel=0.05)
    assert found.flat_s == pytest.approx(flat, rel=0.05)
    assert found.error < 0.02


@given(compute=st.floats(0.1, 1.0), memory=st.floats(0.05, 1.0), half=st.sampled_from([0.0, 4.0, 32.0]))
@settings(max_examples=8, deadline=None)
def test_the_fit_of_products_gives_back_what_made_them(compute: float, memory: float, half: float) -> None:
    peaks, start = (1e12, 2e10), 2e-6
    shapes = [Shape(m, 2048, 2048) for m in (1, 4, 16, 64, 256, 1024, 4096)]
    bare = [Product("x", "bf16", 1, shape, 1.0, True) for shape in shapes]
    made = fit.product_seconds(fit.Reached(compute, memory, half, 0.0), bare, peaks, start)
    found = fit.fit_products([p._replace(seconds=s) for p, s in zip(bare, made, strict=True)], peaks, start)
    again = fit.product_seconds(found, bare, peaks, start)
    np.testing.assert_allclose(again, made, rtol=0.08)
    assert found.compute == pytest.approx(compute, rel=0.1)


def test_shares_of_attention_are_shares() -> None:
    found = [Attention("x", "decode", "bf16", 1, 1, 1000, 1e-3), Attention("x", "prefill", "bf16", 1, 64, 64, 1e-4)]
    compute, memory = fit.fit_decode(found, (1e12, 1e11), 0.0)
    assert memory == pytest.approx(found[0].bytes / 1e-3 / 1e11)
    assert compute == pytest.approx(found[0].flops / 1e-3 / 1e12)
    assert fit.fit_prefill(found, 1e12, 0.0) == pytest.approx(found[1].flops / 1e-4 / 1e12)


def test_a_clock_runs_what_it_times_and_waits_for_it() -> None:
    calls: list[str] = []
    found = clock.timing(lambda: calls.append("run"), repeats=3, warm=2, wait=lambda: calls.append("wait"))
    assert calls == ["run", "wait"] * 5
    assert found.best_s <= found.mean_s <= found.worst_s
    assert clock.each(lambda: None, seconds=1e-5, repeats=2) > 0


def test_a_parallel_region_counts_every_thread_once() -> None:
    counts = np.zeros(5)
    region()(counts)
    assert counts.tolist() == [1.0] * 5


def test_the_disk_is_read_past_the_page_cache_or_it_is_said(tmp_path: Path) -> None:
    found = disk(tmp_path, 5 << 20, np.random.default_rng(0), reads=5)
    assert found.file_bytes == 4 << 20, "whole chunks"
    assert min(found.write_bytes_per_s, found.read_bytes_per_s, found.latency_s) > 0
    assert found.how in ("O_DIRECT", "page cache told to forget", "through the page cache: not the disk")
    assert not list(tmp_path.iterdir()), "the file is gone"
    with pytest.raises(OSError, match="absent"):
        disk(tmp_path / "absent", 1 << 20, np.random.default_rng(0))


def test_loopback_reaches_another_process() -> None:
    found = loopback(3 << 20, rounds=5)
    assert found.bytes_per_s > 0
    assert found.latency_s > 0


def test_what_a_gpu_would_need_is_said_in_words() -> None:
    why = missing()
    assert why == "" or "GPU" in why or "torch" in why
    assert triton_missing() == "" or any(word in triton_missing() for word in ("GPU", "torch", "triton"))


_INTERPRETED = """
import numpy as np, torch
from sonde.calibrate.machine import programs
from sonde.calibrate.machine.chase import cycle
n = 3000
x, y, out = (torch.full((n,), value, dtype=torch.float64) for value in (5.0, 1.0, 0.0))
grid = (-(-n // programs.BLOCK.value),)
programs.linear[grid](out, x, y, 3.0, n, True)
assert torch.equal(out, x + 3 * y)
programs.linear[grid](out, x, x, 3.0, n, False)
assert torch.equal(out, 3 * x)
following, at, slow = torch.from_numpy(cycle(64, np.random.default_rng(0))), torch.zeros(1, dtype=torch.int64), 0
programs.walk[(1,)](following, at, 10)
for _ in range(10):
    slow = int(following[slow])
assert int(at[0]) == slow
"""


def test_the_programs_of_a_gpu_compute_the_same_in_their_interpreter() -> None:
    pytest.importorskip("torch")
    pytest.importorskip("triton")
    done = subprocess.run(
        [sys.executable, "-c", _INTERPRETED], env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
