"""Energy: what is fitted is found again, caps slow compute and spare memory, idle power and PUE are charged."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from cost_models import H100, LLAMA_8B, dense
from hypothesis import given, settings
from hypothesis import strategies as st

import sonde.calibrate.power as module
from sonde.calibrate.power import (
    FITTED,
    Slowed,
    clock_power,
    drawn,
    fit_power,
    fitted,
    judge_caps,
    judge_power,
    published,
    slowdowns,
    write_power,
)
from sonde.calibrate.runs import Runs, prompt_seconds, prompt_use, runs, token_use
from sonde.catalogue.devices import device, device_names
from sonde.catalogue.efficiencies import efficiencies
from sonde.catalogue.models import model
from sonde.catalogue.power import CONSTANTS, RANGES, SCOPES, power_rows, read_power, spread
from sonde.cost.compile import compile_replica, step_table
from sonde.cost.explain import explain
from sonde.cost.power import running_w, spent
from sonde.cost.roofline import Operator, bound
from sonde.cost.shard import Shard, shard
from sonde.cost.table import Coefficients, coefficients
from sonde.deployment.check import check, power_cap_w
from sonde.deployment.load import dump, load
from sonde.deployment.tree import Batching, Replica
from sonde.errors import InputError
from sonde.sim.simulate import fleet, simulate
from sonde.techniques.compose import arranged
from sonde.workload.requests import requests

DATA = Path(__file__).parents[1].parent / "shared" / "data"
needs_data = pytest.mark.skipif(not (DATA / "steps").is_dir(), reason="no measurements under shared/data/steps")

SMALL = dense("small", 4, 2048, 16, 8, 8192, 32000)
PREFILL = (1024, 0, 1024**2 / 2, 0.0)
DECODE = (0, 16, 0.0, 16 * 1000.0)


def capped(cap: float | str | None, **change: object) -> Shard:
    replica = Replica.model_validate(
        {"model": SMALL.name, "device": H100.name, "power_cap": cap, "batching": Batching(max_batch=32)} | change
    )
    return shard(SMALL, H100, replica, efficiencies(H100))


def step(part: Shard, of: tuple[int, int, float, float]) -> tuple[float, float]:
    """Return the seconds and the watts of one device of a step."""
    table = step_table(part)
    seconds = coefficients(table.time, *of)
    return seconds, coefficients(table.energy, *of) / seconds / part.replica.devices


def alone(part: Shard, operator: Operator) -> tuple[float, float]:
    """Return the seconds of an operator, and the watts of one device meanwhile."""
    seconds, joules = (float(np.ravel(value)[0]) for value in spent(part, operator))
    return seconds, running_w(part) + joules / seconds


def product(flops: float, moved: float, sent: float = 0.0) -> Operator:
    return Operator("a product", "gemm", 1, "bf16", flops, moved, rows=1e6, columns=1e4, sent=sent)


# ------------------------------------------------------------------------------------------------ caps, by physics


def test_a_cap_slows_arithmetic_as_the_closed_form_says() -> None:
    """All switched power: idle + (static - idle + chip)·c^v = cap, and seconds grow by 1/c."""
    free, under = capped(None), capped("50 %")
    power = replace(free.efficiencies.power, voltage=3.0, slowest=0.05)
    curves = dict(free.efficiencies.curves)
    curves["gemm/bf16"] = replace(curves["gemm/bf16"], overhead_s=0.0, half_outputs=0.0, half_rows=0.0, blend=0.0)
    reached = replace(free.efficiencies, power=power, curves=curves)
    operator = product(1e14, 0.0)
    before_s, full = alone(replace(free, efficiencies=reached), operator)
    after_s, watts = alone(replace(under, efficiencies=reached), operator)
    clock = ((350.0 - H100.idle_w) / (full - H100.idle_w)) ** (1 / 3)
    assert after_s / before_s == pytest.approx(1 / clock, rel=1e-6)
    assert watts == pytest.approx(350.0, rel=1e-6)


def naive(part: Shard, operator: Operator, cap: float) -> tuple[float, float]:
    """Return seconds and watts by trying clocks in small steps, from the fastest down."""
    power, idle = part.efficiencies.power, part.device.idle_w
    took, (free_s, free_w), static = bound(part, operator), alone(part, operator), running_w(part)
    device_ = part.device
    each = (
        power.compute * float(operator.flops) / device_.flops["bf16"],
        power.memory * float(operator.bytes) / device_.memory[0].bandwidth,
        power.network * float(operator.sent) / device_.node.bandwidth,
    )
    joules, whole = (free_w - static) * free_s, sum(each)
    chip = joules * (each[0] + each[1] * (1 - power.dram)) / whole
    for clock in np.linspace(1.0, power.slowest, 20001):
        slowed = float(np.ravel(took._replace(compute=took.compute / clock).seconds)[0])
        above = (static - idle) * clock**power.voltage * slowed + chip * clock ** (power.voltage - 1) + joules - chip
        if above <= (cap - idle) * slowed:
            return slowed, idle + above / slowed
    return above / (cap - idle), cap


@settings(max_examples=60, deadline=None)
@given(
    flops=st.floats(1e9, 1e15), moved=st.floats(1e6, 1e12), sent=st.floats(0.0, 1e11), cap=st.floats(80.0, 700.0)
)  # fmt: skip
def test_a_cap_agrees_with_trying_every_clock(flops: float, moved: float, sent: float, cap: float) -> None:
    operator = product(flops, moved, sent)
    seconds, watts = naive(capped(None), operator, cap)
    assert alone(capped(cap), operator) == pytest.approx((seconds, watts), rel=2e-3)


@settings(max_examples=60, deadline=None)
@given(
    flops=st.floats(1e9, 1e15), moved=st.floats(1e6, 1e12), one=st.floats(80.0, 700.0), two=st.floats(80.0, 700.0)
)  # fmt: skip
def test_a_lower_cap_is_never_faster_and_never_draws_more(flops: float, moved: float, one: float, two: float) -> None:
    low, high = sorted((one, two))
    operator = product(flops, moved)
    (slow_s, slow_w), (fast_s, fast_w) = (alone(capped(cap), operator) for cap in (low, high))
    assert slow_s >= fast_s * (1 - 1e-7)
    assert fast_s >= alone(capped(None), operator)[0] * (1 - 1e-7)
    assert slow_w <= fast_w * (1 + 1e-7)
    assert slow_w <= low * (1 + 1e-7)


@pytest.mark.parametrize("change", [{}, {"tensor_parallel": 4}, {"pipeline_parallel": 2}])
def test_steps_under_lower_caps_are_slower_and_draw_less(change: dict[str, object]) -> None:
    for of in (PREFILL, DECODE, (512, 16, 512**2 / 2, 16 * 800.0)):
        found = [step(capped(cap, **change), of) for cap in (None, 700.0, "80 %", 400.0, "40 %", 200.0, 120.0)]
        times, watts = np.array(found).T
        assert (np.diff(times) >= -1e-12).all()
        assert (np.diff(watts) <= 1e-9).all()
        assert times[0] == pytest.approx(times[1], rel=1e-9)  # a cap at the peak changes nothing
        assert watts[0] == pytest.approx(watts[1], rel=1e-9)
        for cap, drawn_w in zip((700, 700, 560, 400, 280, 200, 120), watts, strict=True):
            assert drawn_w <= cap * (1 + 1e-9)


def test_a_cap_hurts_decoding_less_than_prompts_and_saves_energy_down_to_an_optimum() -> None:
    caps = (700.0, 550.0, 450.0, 350.0, 280.0, 220.0, 160.0, 120.0, 100.0)
    for of in (PREFILL, DECODE):
        joules = [seconds * watts for seconds, watts in (step(capped(cap), of) for cap in caps)]
        best = int(np.argmin(joules))
        assert 0 < best < len(caps) - 1  # below the peak, and above the lowest cap
        assert joules[best] < 0.8 * joules[0]
    for cap in caps[1:5]:
        slower = [step(capped(cap), of)[0] / step(capped(None), of)[0] for of in (PREFILL, DECODE)]
        assert slower[1] < slower[0]
        assert slower[1] < 1.1


def test_the_rows_of_a_step_add_up_under_a_cap() -> None:
    replica = Replica(model="llama-3.1-8b", device="h100-sxm", power_cap="45 %", batching=Batching(max_batch=32))
    rows = explain(LLAMA_8B, H100, replica, 0, 16, 1000)
    engine = compile_replica(LLAMA_8B, H100, replica)
    for quantity, total in (
        (engine.table.time, sum(row.seconds for row in rows)), (engine.table.energy, sum(row.joules for row in rows))
    ):  # fmt: skip
        assert isinstance(quantity, Coefficients)
        assert coefficients(quantity, *DECODE) == pytest.approx(total, rel=1e-9)


def test_every_device_runs_at_half_its_power() -> None:
    for name in device_names():
        at = device(name)
        replica = Replica(model=SMALL.name, device=name, power_cap="60 %", batching=Batching(max_batch=8))
        free = replica.model_copy(update={"power_cap": None})
        under, usual = (step_table(shard(SMALL, at, one, efficiencies(at))) for one in (replica, free))
        of = (512, 0, 512**2 / 2, 0.0)
        seconds = coefficients(under.time, *of)
        assert coefficients(under.energy, *of) / seconds <= 0.6 * at.peak_w * (1 + 1e-9), name
        assert seconds >= coefficients(usual.time, *of), name


# ------------------------------------------------------------------------------------------------- caps, as written


def deployment(cap: object, **site: object) -> dict[str, object]:
    replica = {"model": "llama-3.1-8b", "device": "h100-sxm", "power_cap": cap}
    return {"sites": [{"pools": [{"replica": replica}]} | site]}


@pytest.mark.parametrize(("cap", "watts"), [("400 W", 400.0), (400, 400.0), ("60 %", 420.0), ("0.5 kW", 500.0)])
def test_a_cap_is_watts_or_a_share_of_the_peak(cap: object, watts: float) -> None:
    found = load(deployment(cap))
    assert load(dump(found)) == found
    assert power_cap_w(H100, found.pools[0].replica) == pytest.approx(watts)
    check(found)


@pytest.mark.parametrize(
    ("cap", "text"),
    [
        ("60 W", "which h100-sxm draws when idle"),
        ("75 W", "no power would be left"),
        ("1 kW", "at most 700 W"),
        ("120 %", "at most 700 W"),
        ("5 kg", "no unit of power"),
        (-3, "power_cap"),
        ("much", "a share of peak power"),
    ],
)
def test_a_cap_that_cannot_be_is_refused(cap: object, text: str) -> None:
    with pytest.raises(InputError, match=text) as error:
        check(load(deployment(cap)))
    assert error.value.path == "sites[0].pools[0].replica.power_cap"


def test_compiling_refuses_it_too() -> None:
    with pytest.raises(InputError, match="power_cap"):
        compile_replica(LLAMA_8B, H100, Replica(model="llama-3.1-8b", device="h100-sxm", power_cap=60.0))


# ----------------------------------------------------------------------------------------- idle power, PUE and carbon


def test_idle_devices_draw_idle_power_and_sites_scale_what_is_drawn() -> None:
    site = {"pue": 1.5, "carbon_g_per_kwh": 300.0, "usd_per_kwh": 0.2}
    made = load(deployment(None, **site))
    trace = requests(np.array([0.0, 100.0]), np.array([512, 512]), np.array([64, 64]))
    outcome = simulate(made, trace)
    engine = compile_replica(model("llama-3.1-8b"), device("h100-sxm"), made.pools[0].replica)
    rest = (outcome.end_s - outcome.start_s) - float(outcome.busy_s[0])
    active = float(outcome.energy_j[0]) - rest * engine.idle_w
    watts = active / float(outcome.busy_s[0])
    assert rest > 95.0
    assert 0.27 * device("h100-sxm").peak_w < watts < device("h100-sxm").peak_w
    kwh = float(outcome.energy_j.sum()) / 3.6e6
    assert outcome.carbon_g == pytest.approx(kwh * 1.5 * 300.0)
    assert outcome.electricity_usd == pytest.approx(kwh * 1.5 * 0.2)
    summary = outcome.summary()
    assert summary["joules_per_token"] == pytest.approx(float(outcome.energy_j.sum()) / 128)
    assert summary["carbon_g"] == outcome.carbon_g


def test_a_simulated_fleet_under_a_cap_is_slower_and_uses_less_energy() -> None:
    rng = np.random.default_rng(3)
    arrivals = np.sort(rng.uniform(0, 60, 400))
    trace = requests(arrivals, rng.integers(100, 3000, 400), rng.integers(20, 200, 400))
    free, under = (simulate(load(deployment(cap)), trace) for cap in (None, "300 W"))
    assert under.quantile("ttft", 0.5) > free.quantile("ttft", 0.5)
    assert under.quantile("tpot", 0.5) > free.quantile("tpot", 0.5)
    assert float(under.energy_j.sum()) < 0.85 * float(free.energy_j.sum())


# --------------------------------------------------------------------------------------------------------- the table


def test_every_constant_of_every_device_is_stated_and_sourced() -> None:
    assert {row.scope for row in power_rows()} <= set(SCOPES)
    for name in device_names():
        power = efficiencies(device(name)).power
        for constant in CONSTANTS:
            low, high = RANGES[constant]
            assert low <= getattr(power, constant) <= high
        low, high = spread(device(name))
        assert 0 < low <= 1 <= high


def test_a_family_that_was_measured_has_a_narrower_interval() -> None:
    seen, unseen = spread(device("a100-sxm-80gb")), spread(device("b200-sxm"))
    assert unseen[0] < seen[0] < seen[1] < unseen[1]


HEAD = "scope,name,attribute,value,points,source,date\n"


@pytest.mark.parametrize(
    ("row", "text"),
    [
        ("famly,ampere,static,0.3,4,a test,2026-11-24", "did you mean 'family'"),
        ("family,ampere,statc,0.3,4,a test,2026-11-24", "did you mean 'static'"),
        ("family,ampere,static,1.3,4,a test,2026-11-24", "between 0 and 1"),
        ("family,ampere,static,x,4,a test,2026-11-24", "between 0 and 1"),
        ("family,ampere,static,0.3,4,,2026-11-24", "needs a source"),
    ],
)
def test_a_bad_row_is_refused(row: str, text: str) -> None:
    with pytest.raises(InputError, match=text):
        read_power(HEAD + row, "power.csv")


# ----------------------------------------------------------------------------------------------------------- the fit


def made_runs(change: dict[str, float], name: str = "llama-2-70b", ranks: int = 4) -> Runs:
    """Return runs whose powers follow the model, with the constants of `published` and `change`."""
    lengths, batches = (grid.ravel() for grid in np.meshgrid([128.0, 256.0, 512.0, 1024.0], [1.0, 4.0, 16.0]))
    tokens = np.full(len(lengths), 128.0)
    prompt_s = 0.05 + lengths * batches * 2e-4
    token_s = np.full(len(lengths), 0.045)
    nothing = np.ones(len(lengths))
    of = Runs(name, "a100-sxm-80gb", ranks, None, lengths, batches, tokens, prompt_s, token_s,
              prompt_s + 127 * token_s, nothing, nothing)  # fmt: skip
    average, highest = drawn(of, replace(published(), **change))
    return replace(of, average=average, highest=highest)


TRUTH = {"static": 0.22, "compute": 0.9, "memory": 0.6}


def test_shares_are_found_again_among_runs_that_are_far_off() -> None:
    groups = [made_runs(TRUTH, ranks=ranks) for ranks in (2, 4, 8)]
    groups[0].average[::5] *= 0.3
    found = fitted(groups, published())
    for name, value in TRUTH.items():
        assert getattr(found, name) == pytest.approx(value, rel=0.05)


def test_what_nothing_speaks_of_stays_with_its_kin() -> None:
    alone = [made_runs(TRUTH, "llama-2-7b", 1)]  # one device: no links are in use
    prior = published()
    assert prompt_use(alone[0], alone[0].part())[:, 2].max() == 0.0
    assert fitted(alone, prior).network == pytest.approx(prior.network, rel=1e-3)


def test_use_counts_weights_and_flops_by_hand() -> None:
    of = made_runs({})
    part = of.part()
    weights = 68.7e9 / 4  # less the token table, of which a step reads a row
    moved = token_use(of, part)[0, 1] * of.token_s[0] * part.device.memory[0].bandwidth
    assert moved == pytest.approx(2 * weights, rel=0.02)
    computed = prompt_use(of, part)[2, 0] * of.prompt_s[2] * part.device.flops["bf16"]
    assert computed == pytest.approx(2 * weights * of.length[2] * of.batch[2], rel=0.03)


def test_a_clock_is_found_again() -> None:
    truth = replace(published(), voltage=2.4)
    free = replace(made_runs({}), device="h100-sxm")
    reached = replace(efficiencies(device("h100-sxm")), power=truth)
    slow = prompt_seconds(free, free.part(reached=reached, power_cap="50 %")) / prompt_seconds(
        free, free.part(reached=reached)
    )
    under = replace(free, power_cap="50 %", prompt_s=free.prompt_s * slow)
    pair = Slowed(under, free)
    assert clock_power([pair], truth) == pytest.approx(2.4, rel=0.02)
    predicted, seen = slowdowns(pair, truth)[0]
    assert predicted == pytest.approx(seen, rel=1e-9)


@pytest.mark.data
@needs_data
def test_a_slice_is_refitted_to_the_catalogues_constants(tmp_path: Path) -> None:
    rows = fit_power(DATA)
    assert [row.record("2026-11-24") for row in rows] == [row.record("2026-11-24") for row in fit_power(DATA)]
    shipped = {(row.scope, row.name, row.attribute): row.value for row in power_rows()}
    for row in rows:
        assert shipped[row.scope, row.name, row.attribute] == pytest.approx(row.value, rel=0.01)
    written = write_power(rows, tmp_path, "2026-11-24")
    assert set(read_power(written.read_text("utf-8"), "power.csv")) == set(power_rows())


@pytest.mark.data
@needs_data
def test_models_left_out_are_predicted() -> None:
    whole = judge_power(DATA)[-1]
    assert whole.runs == 44
    assert whole.left_out[0] < 0.06
    assert whole.running[1] < 0.08
    assert whole.left_out[0] < whole.published[0] / 4
    for row in judge_caps(DATA):
        assert row.prompt[0] == pytest.approx(1.3)
        assert row.prompt[1] < 1.3 < row.prompt[2] * 1.05
        assert row.token[2] < 1.1


@pytest.mark.data
@needs_data
def test_intervals_cover_four_fifths_of_what_was_left_out() -> None:
    groups = module.measured(DATA)
    ratio = np.concatenate([1.0 / (1.0 + errors) for errors in module.left_out(groups)])
    low, high = spread(device("a100-sxm-80gb"))
    assert 0.75 <= float(np.mean((ratio >= low) & (ratio <= high))) <= 0.85
    low, high = spread(device("h100-sxm"))
    assert float(np.mean((ratio >= low) & (ratio <= high))) > 0.9


@pytest.mark.data
@needs_data
def test_fewer_runs_are_pulled_further_to_what_is_published() -> None:
    groups = module.measured(DATA)
    every = fitted(groups, published())
    few = fitted([group.where(np.arange(len(group)) < 1) for group in groups[:1]], published())
    for name in FITTED[1:3]:
        far = abs(np.log(getattr(every, name) / getattr(published(), name)))
        assert abs(np.log(getattr(few, name) / getattr(published(), name))) < far


def test_a_file_without_a_column_is_named(tmp_path: Path) -> None:
    (tmp_path / "steps").mkdir()
    (tmp_path / "steps" / "mine.csv").write_text("model,hardware\nllama2-70b,a100-80gb\n", "utf-8")
    with pytest.raises(InputError, match="lacks the column"):
        runs(tmp_path)
    assert runs(tmp_path / "steps") == []


def test_the_technique_caps_the_replicas_of_its_pools() -> None:
    tree = deployment(None) | {"techniques": [{"power-cap": {"cap": "350 W"}}]}
    assert arranged(load(tree)).pools[0].replica.power_cap == 350.0
    under, written = (fleet(arranged(load(one)))[0][0] for one in (tree, deployment("350 W")))
    assert under.table.time.prefill == written.table.time.prefill
    assert (under.table.energy.linear == written.table.energy.linear).all()
    assert under.table.energy.linear[2048] < fleet(load(deployment(None)))[0][0].table.energy.linear[2048]
    with pytest.raises(InputError, match="power_cap"):
        fleet(arranged(load(deployment(None) | {"techniques": [{"power-cap": {"cap": "5 %"}}]})))


def test_what_a_step_waits_for_is_told_under_the_cap() -> None:
    replica = Replica(model="llama-3.1-8b", device="h100-sxm", batching=Batching(max_batch=32))
    under = replica.model_copy(update={"power_cap": "20 %"})
    free, slow = (explain(LLAMA_8B, H100, one, 192, 0) for one in (replica, under))
    names = [row.operator for row in free if row.bound == "memory"]
    assert {row.bound for row in slow if row.operator in names} >= {"compute"}  # a slower clock, the same bandwidth
    for one, two in zip(free, slow, strict=True):
        assert two.seconds >= one.seconds
