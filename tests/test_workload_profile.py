"""Profiles and generators: what is fitted comes back, what is drawn is like the trace, a seed fixes every byte."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from sonde.errors import InputError
from sonde.workload.arrivals import Arrivals, fit_arrivals
from sonde.workload.chains import _chain, chain
from sonde.workload.describe import describe
from sonde.workload.generate import at_once, evenly, gamma, generate, poisson, retime
from sonde.workload.lengths import fit_quantiles
from sonde.workload.profile import Profile, dump, fit, load, profile, profile_names, text
from sonde.workload.requests import Requests, requests
from sonde.workload.sessions import Sessions, fit_sessions
from sonde.workload.statistics import gamma_shape, prefix_hits, rank_correlation, tick, turn_gaps, variation

NAMES = ("azure-code-2023", "azure-conv-2023", "mooncake-conversation", "mooncake-synthetic")


def lognormal_pair(n: int, correlation: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    a, b = rng.multivariate_normal((0, 0), ((1, correlation), (correlation, 1)), n).T
    return np.ceil(500 * np.exp(a)), np.ceil(100 * np.exp(0.7 * b))


# fits


@pytest.mark.parametrize("shape", [0.25, 0.5, 1.0, 4.0])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_shape_and_rate_of_gamma_arrivals_are_recovered(shape: float, seed: int) -> None:
    trace = gamma(5.0, shape, 20_000, 100, 100, seed)
    found = fit_arrivals(trace)
    assert found.shape == pytest.approx(shape, rel=0.1)
    assert found.mean_per_s == pytest.approx(5.0, rel=0.1)


def test_a_rate_curve_is_recovered_and_followed() -> None:
    day = Arrivals(edges_s=(0.0, 600.0, 1200.0, 1800.0), per_s=(2.0, 20.0, 8.0), shape=0.5)
    known = profile("azure-conv-2023").model_copy(update={"arrivals": day})
    trace = generate(known, duration_s=1800.0, seed=1)
    found = fit_arrivals(trace)
    for start, rate in ((0, 2.0), (600, 20.0), (1200, 8.0)):
        assert float(found.expected(start + 600.0) - found.expected(float(start))) / 600 == pytest.approx(rate, rel=0.1)
    assert found.shape == pytest.approx(0.5, rel=0.1)


def test_a_long_trace_gives_the_curve_of_its_mean_day() -> None:
    hours = np.arange(25) * 3600.0
    rates = 0.05 * (1.5 + np.sin(np.arange(24) / 24 * 2 * np.pi))
    known = profile("azure-conv-2023").model_copy(
        update={"arrivals": Arrivals(edges_s=tuple(hours), per_s=tuple(rates), shape=1.0)}
    )
    trace = generate(known, duration_s=5.5 * 86_400, seed=0)
    found = fit_arrivals(trace)
    assert found.period_s == 86_400
    assert found.mean_per_s == pytest.approx(0.075, rel=0.05)
    six = found.expected(np.asarray([0.0, 6, 12, 18, 24]) * 3600)
    assert np.diff(six) == pytest.approx(np.add.reduceat(rates, [0, 6, 12, 18]) * 3600, rel=0.1)
    assert found.shape == pytest.approx(1.0, rel=0.1)


def test_silences_come_back_as_long_as_they_were() -> None:
    burst = np.arange(2000) * 0.01
    trace = requests(np.concatenate((burst, burst + 500, burst + 2000)), np.full(6000, 9), np.full(6000, 9))
    drawn = generate(fit(trace, "t", "s"), seed=0)
    assert variation(np.diff(drawn.arrival_s)) == pytest.approx(variation(np.diff(trace.arrival_s)), rel=0.05)
    assert np.sort(np.diff(drawn.arrival_s))[-2:] == pytest.approx([480, 1480], rel=0.01)


@pytest.mark.parametrize(("shape", "step"), [(1.0, 3.0), (0.5, 3.0), (1.0, 0.001)])
def test_times_on_a_grid_keep_their_grid_and_burstiness(shape: float, step: float) -> None:
    fine = gamma(3.4, shape, 20_000, 100, 100, 3)
    trace = fine._replace(arrival_s=np.round(np.floor(fine.arrival_s / step) * step, 9))
    found = fit_arrivals(trace)
    assert found.tick_s == pytest.approx(step)
    assert found.shape == pytest.approx(shape, rel=0.1)
    drawn = generate(fit(trace, "t", "s"), seed=0)
    assert np.allclose(drawn.arrival_s / step, np.round(drawn.arrival_s / step), atol=1e-6)
    assert variation(np.diff(drawn.arrival_s)) == pytest.approx(variation(np.diff(trace.arrival_s)), rel=0.05)


@pytest.mark.parametrize("correlation", [-0.8, 0.0, 0.5, 0.95])
def test_lengths_and_their_correlation_come_back(correlation: float) -> None:
    rng = np.random.default_rng(0)
    prompt, output = lognormal_pair(20_000, correlation, rng)
    output[rng.random(20_000) < 0.2] = 17  # an atom
    trace = requests(poisson(10.0, 20_000, 1, 1).arrival_s, prompt, output)
    fitted = fit(trace, "t", "s")
    assert len(text(fitted)) < 30_000
    for seed in range(3):
        drawn = generate(fitted, seed=seed)
        assert_alike(trace, drawn)
        assert np.mean(drawn.output_tokens == 17) == pytest.approx(np.mean(output == 17), rel=0.02)


def test_parameters_of_a_fitted_trace_are_those_it_was_drawn_with() -> None:
    think = Sessions(share=0.6, turns=fit_quantiles(np.asarray([1, 2, 2, 3, 5, 8])), think_s=40.0, think_sigma=0.8,
                     grows=True)  # fmt: skip
    curve = Arrivals(edges_s=(0.0, 3600.0, 7200.0), per_s=(2.0, 6.0), shape=0.4)
    known = profile("azure-conv-2023").model_copy(update={"arrivals": curve, "sessions": think})
    trace = generate(known, duration_s=7200.0, seed=5)
    found = fit(trace, "again", "drawn")
    assert found.sessions is not None
    assert found.sessions.share == pytest.approx(0.6, rel=0.1)
    assert found.sessions.think_s == pytest.approx(40.0, rel=0.1)
    assert found.sessions.think_sigma == pytest.approx(0.8, rel=0.1)
    assert found.sessions.grows
    turns = think.turns.at((np.arange(1000) + 0.5) / 1000).mean()
    assert found.sessions.turns.at((np.arange(1000) + 0.5) / 1000).mean() == pytest.approx(turns, rel=0.1)
    assert found.arrivals.shape == pytest.approx(0.4, rel=0.1)
    assert found.arrivals.mean_per_s == pytest.approx(4.0, rel=0.1)
    assert_alike(trace, generate(found, seed=0))


def assert_alike(trace: Requests, drawn: Requests) -> None:
    a, b = describe(trace), describe(drawn)
    for column in ("prompt_tokens", "output_tokens"):
        for figure in ("mean", "p50", "p90", "p99"):
            assert b[column][figure] == pytest.approx(a[column][figure], rel=0.03), (column, figure)
    assert b.rank_correlation == pytest.approx(a.rank_correlation, abs=0.05)
    assert b.burstiness["cv"] == pytest.approx(a.burstiness["cv"], rel=0.1)


def test_sessions_of_lone_turns_are_none_at_all() -> None:
    trace = requests([0, 1, 2], [1, 1, 1], [1, 1, 1], session=[0, 1, 2])
    assert fit_sessions(trace) is None


def test_turns_of_a_drawn_session_grow_in_time() -> None:
    think = Sessions(share=1.0, turns=fit_quantiles(np.asarray([4])), think_s=5.0, think_sigma=0.5, grows=True)
    drawn = generate(profile("azure-conv-2023").model_copy(update={"sessions": think}), count=2000, seed=0)
    turns, gaps, growth = turn_gaps(drawn)
    assert (turns == 4).all()
    assert (gaps >= 0).all()
    assert (growth >= 0).all()


@pytest.mark.parametrize("name", ["mooncake-conversation", "mooncake-synthetic"])
def test_drawn_hashes_share_prefixes_as_the_profile_says(name: str) -> None:
    known = profile(name)
    assert known.prefix is not None
    drawn = generate(known, seed=1, hashes=True)
    assert drawn.block_tokens == known.prefix.block_tokens
    assert np.array_equal(np.diff(drawn.block_start), -(-drawn.prompt_tokens // drawn.block_tokens))
    assert describe(drawn).prefix["seen_before_share"] == pytest.approx(known.prefix.seen_share, abs=0.03)  # type: ignore[index]
    assert generate(known, seed=1).block_tokens == 0


def test_arrivals_without_ticks_share_no_instant() -> None:
    known = profile("mooncake-conversation")
    assert np.mean(np.diff(generate(known, seed=0).arrival_s) == 0) > 0.8
    smooth = generate(known.without_ticks(), seed=0)
    assert (np.diff(smooth.arrival_s) > 0).all()
    assert variation(np.diff(smooth.arrival_s)) == pytest.approx(1.0, rel=0.1)


# profile files


def test_every_profile_is_small_named_and_comes_back_from_its_text(tmp_path: Path) -> None:
    assert profile_names() == NAMES
    for name in NAMES:
        known = profile(name)
        assert known.name == name
        assert len(text(known)) < 30_000
        dump(known, tmp_path / "mine.yaml")
        assert load(tmp_path / "mine.yaml") == known
        assert profile(tmp_path / "mine.yaml") == known


def test_an_unknown_profile_suggests_the_nearest() -> None:
    with pytest.raises(InputError, match="did you mean 'azure-conv-2023'"):
        profile("azure-conv")
    with pytest.raises(InputError, match=r"mine.yaml = .*must be a profile"):
        profile("mine.yaml")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shpae": 1}, r"p.yaml.shpae = '1': unknown key"),
        ({"arrivals": {"shap": 2}}, r"p.yaml.arrivals.shap = '2': unknown key \(did you mean 'shape'\?\)"),
        ({"arrivals": {"shape": -1}}, r"p.yaml.arrivals.shape = '-1'"),
        ({"arrivals": {"per_s": [1.0]}}, r"p.yaml.arrivals = .*one edge more than rates"),
        ({"arrivals": {"edges_s": [0.0, 1.0], "per_s": [0.0]}}, "not all zero"),
        ({"arrivals": {"edges_s": [0.0, 2.0, 1.0], "per_s": [1.0, 1.0]}}, "must start at 0 and increase"),
        ({"lengths": {"counts": [[1]]}}, "rows and columns"),
        ({"lengths": {"prompt": {"share": [0.5, 0.4], "value": [1, 2]}}}, "share must increase"),
        ({"lengths": {"prompt": {"share": [0.4, 0.5], "value": [0, 2]}}}, "at least 1"),
        ({"date": "today"}, r"p.yaml.date = 'today'"),
        ({"name": None}, r"p.yaml.name = 'missing'"),
    ],
)
def test_a_bad_profile_is_refused_with_its_key(tmp_path: Path, change: dict[str, object], message: str) -> None:
    tree = yaml.safe_load(text(profile("azure-conv-2023")))

    def merge(into: dict[str, object], new: dict[str, object]) -> None:
        for key, value in new.items():
            old = into.get(key)
            if isinstance(value, dict) and isinstance(old, dict):
                merge(old, value)
            elif value is None:
                del into[key]
            else:
                into[key] = value

    merge(tree, change)
    path = tmp_path / "p.yaml"
    path.write_text(yaml.safe_dump(tree))
    with pytest.raises(InputError, match=message):
        load(path)


def test_a_profile_that_is_no_yaml_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "p.yaml"
    path.write_text("a: [1,\nb: 2")
    with pytest.raises(InputError, match=r"p.yaml:\d.*must be YAML"):
        load(path)
    path.write_text("just words")
    with pytest.raises(InputError, match="must be a profile"):
        load(path)


def test_traces_without_times_have_no_profile() -> None:
    with pytest.raises(InputError, match="arrivals at two moments"):
        fit(at_once(10, 5, 5), "t", "s")


# generators


@settings(deadline=None, max_examples=40)
@given(
    st.sampled_from(NAMES),
    st.integers(0, 2**40),
    st.one_of(st.none(), st.floats(0.1, 100)),
    st.one_of(st.none(), st.floats(1, 500)),
    st.one_of(st.none(), st.integers(1, 3000)),
)
def test_what_is_drawn_is_sound_and_the_same_for_the_same_seed(
    name: str, seed: int, rate: float | None, duration: float | None, count: int | None
) -> None:
    drawn = generate(name, rate=rate, duration_s=duration, count=count, seed=seed)
    again = generate(name, rate=rate, duration_s=duration, count=count, seed=seed)
    assert all(a.tobytes() == b.tobytes() for a, b in zip(drawn[:7], again[:7], strict=True))
    assert drawn.n <= (count or np.inf)
    assert drawn.arrival_s[0] == 0
    assert (np.diff(drawn.arrival_s) >= 0).all()
    assert drawn.arrival_s[-1] < (duration or np.inf)
    assert drawn.prompt_tokens.min() >= 1
    assert drawn.output_tokens.min() >= 1
    if duration is None:
        assert drawn.n == (count or profile(name).requests)


def test_another_seed_is_other_traffic() -> None:
    a, b = (generate("azure-conv-2023", count=100, seed=seed) for seed in (0, 1))
    assert not np.array_equal(a.arrival_s, b.arrival_s)
    assert not np.array_equal(a.prompt_tokens, b.prompt_tokens)


@pytest.mark.parametrize("name", NAMES)
def test_rate_is_the_mean_over_what_is_drawn(name: str) -> None:
    counts = [generate(name, rate=50.0, duration_s=600.0, seed=seed).n for seed in range(5)]
    assert np.mean(counts) == pytest.approx(30_000, rel=0.03)
    assert generate(name, rate=50.0, count=30_000).span_s == pytest.approx(600.0, rel=0.06)


def test_traffic_longer_than_the_curve_repeats_it() -> None:
    known = profile("azure-conv-2023")
    drawn = generate(known, duration_s=3 * known.arrivals.period_s, seed=0)
    assert drawn.n == pytest.approx(3 * known.requests, rel=0.02)
    third = np.histogram(drawn.arrival_s % known.arrivals.period_s, known.arrivals.edges_s)[0]
    wanted = np.diff(known.arrivals.cumulative()) * 3
    big = wanted > 500
    assert third[big] == pytest.approx(wanted[big], rel=0.15)


def test_simple_generators_have_the_gaps_they_say() -> None:
    assert stats.kstest(np.diff(poisson(5.0, 5000, 1, 1, seed=2).arrival_s), stats.expon(scale=0.2).cdf).pvalue > 0.01
    gaps = np.diff(gamma(5.0, 0.25, 5000, 1, 1, seed=2).arrival_s)
    assert stats.kstest(gaps, stats.gamma(0.25, scale=0.8).cdf).pvalue > 0.01
    assert evenly(4.0, 3, 7, 9).arrival_s.tolist() == [0.0, 0.25, 0.5]
    assert at_once(3, 7, 9).arrival_s.tolist() == [0.0] * 3
    own = poisson(1.0, 3, np.asarray([1, 2, 3]), 4)
    assert own.prompt_tokens.tolist() == [1, 2, 3]
    assert own.output_tokens.tolist() == [4, 4, 4]
    again = retime(at_once(3, 7, 9), 1.0, seed=0)
    assert again.arrival_s.tolist() == own.arrival_s.tolist()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rate": 0.0}, "rate = 0.0: must be above zero"),
        ({"rate": float("nan")}, "rate = nan"),
        ({"duration_s": -1.0}, "duration = -1.0"),
        ({"duration_s": float("inf")}, "duration = inf"),
        ({"count": 0}, "count = 0"),
        ({"seed": -1}, "seed = -1"),
    ],
)
def test_impossible_traffic_is_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        generate("azure-conv-2023", **options)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="shape"):
        gamma(1.0, 0.0, 5, 1, 1)


# statistics against slow or other people's twins


@settings(deadline=None, max_examples=30)
@given(st.floats(0.1, 50), st.integers(0, 1000))
def test_gamma_shape_is_that_of_scipy(shape: float, seed: int) -> None:
    gaps = np.random.default_rng(seed).gamma(shape, 1, 300)
    assert gamma_shape(gaps) == pytest.approx(stats.gamma.fit(gaps, floc=0)[0], rel=1e-4)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=3, max_size=50))
def test_rank_correlation_is_that_of_scipy(pairs: list[tuple[int, int]]) -> None:
    a, b = np.asarray(pairs, np.int32).T
    if len(np.unique(a)) == 1 or len(np.unique(b)) == 1:
        assert rank_correlation(a, b) == 0
    else:
        assert rank_correlation(a, b) == pytest.approx(stats.spearmanr(a, b)[0], abs=1e-9)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(1, 400), min_size=1, max_size=300))
def test_a_quantile_table_stays_within_its_tolerance(values: list[int]) -> None:
    table = fit_quantiles(np.asarray(values, np.int32))
    ordered = np.sort(values)
    found = table.at((np.arange(len(values)) + 0.5) / len(values))
    assert (np.abs(found - ordered) <= np.maximum(0.5, 0.004 * ordered + 0.5)).all()


def hits_naively(chains: list[list[int]]) -> list[int]:
    seen: set[int] = set()
    hits = []
    for blocks in chains:
        hits.append(next((i for i, block in enumerate(blocks) if block not in seen), len(blocks)))
        seen.update(blocks)
    return hits


@settings(deadline=None, max_examples=60)
@given(st.lists(st.lists(st.integers(0, 12), max_size=6, unique=True), min_size=1, max_size=12))
def test_prefix_hits_are_those_of_a_set_of_seen_blocks(chains: list[list[int]]) -> None:
    n = len(chains)
    trace = requests(np.arange(n), np.ones(n), np.ones(n))._replace(
        block_start=np.concatenate(([0], np.cumsum([len(c) for c in chains]))).astype(np.int64),
        block_hash=np.asarray([block for c in chains for block in c], np.int64),
        block_tokens=16,
    )
    blocks, hits = prefix_hits(trace)
    assert blocks.tolist() == [len(c) for c in chains]
    assert hits.tolist() == hits_naively(chains)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(st.integers(1, 8), st.integers(0, 8), st.integers(-1, 20)), min_size=1, max_size=20))
def test_chains_are_paths_of_a_tree(rows: list[tuple[int, int, int]]) -> None:
    size, depth, near = (np.asarray(column, np.int64) for column in zip(*rows, strict=True))
    start = np.concatenate(([0], np.cumsum(size))).astype(np.int64)
    depth = np.minimum(depth, size)
    hashes = chain(start, depth, near)
    plain = np.empty_like(hashes)
    getattr(_chain, "py_func", _chain)(start, depth, near, plain)
    assert hashes.tolist() == plain.tolist()
    parent: dict[int, int] = {}
    longest = 0
    for i in range(len(size)):
        blocks = hashes[start[i] : start[i + 1]].tolist()
        shared = sum(block in parent for block in blocks)
        assert shared == min(depth[i], longest)
        for before, block in zip([-1, *blocks], blocks, strict=False):
            assert parent.setdefault(block, before) == before
        longest = max(longest, int(size[i]))


def test_a_tick_is_found_only_where_there_is_one() -> None:
    rng = np.random.default_rng(0)
    times = np.cumsum(rng.exponential(1.0, 500))
    assert tick(times) == 0
    assert tick(np.floor(times)) == pytest.approx(1.0)
    assert tick(np.round(times, 3)) == pytest.approx(0.001)
    assert tick(np.floor(times / 60) * 60) == 0  # fewer than ten different times say nothing
    batch = np.floor(times / 3).astype(int)
    assert tick(batch * 3 + rng.choice([-0.002, 0, 0.003], batch.max() + 1)[batch]) == pytest.approx(3.0, rel=0.002)


def test_a_description_says_what_is_in_the_trace() -> None:
    trace = requests(
        [0, 10, 20, 100], [100, 200, 300, 400], [4, 3, 2, 1], session=[5, 5, -1, 5]
    )._replace(
        block_start=np.asarray([0, 1, 3, 4, 6]), block_hash=np.asarray([1, 1, 2, 9, 1, 2]), block_tokens=100
    )  # fmt: skip
    found = describe(trace)
    assert found.requests == 4
    assert found.span_s == 100
    assert found.rate["mean_per_s"] == pytest.approx(0.03)
    assert sum(found.rate_per_s) * found.rate["window_s"] == pytest.approx(4)
    assert found.rank_correlation == pytest.approx(-1)
    assert found.prompt_tokens == {"mean": 250, "p50": 250, "p90": 370, "p99": 397, "max": 400}
    assert found.sessions is not None
    assert (found.sessions["share"], found.sessions["sessions"], found.sessions["turns"]["max"]) == (0.75, 1, 3)
    assert found.sessions["think_s"]["p50"] == 50
    assert found.sessions["prompts_grow_share"] == 1
    assert found.prefix is not None
    assert found.prefix["seen_before_share"] == pytest.approx(0.5)
    assert found.prefix["requests_sharing_share"] == 0.5
    assert dict(found) == found.as_dict()


def test_a_profile_is_one_frozen_value() -> None:
    known = profile("azure-conv-2023")
    assert isinstance(known, Profile)
    with pytest.raises(ValueError, match="frozen"):
        known.name = "other"
