"""Overlap inside a replica, against slow twins: a timeline in small ticks, fetches one by one, tables by operator."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sonde.catalogue.devices import device
from sonde.catalogue.interference import KINDS, curves, interference, profiles
from sonde.catalogue.models import model
from sonde.cost.compile import compile_shard
from sonde.cost.explain import step_rows
from sonde.cost.served import served
from sonde.cost.shard import shard
from sonde.cost.table import coefficients
from sonde.deployment.load import load
from sonde.deployment.tree import Batching, Replica
from sonde.errors import CannotError, InputError
from sonde.sim.simulate import simulate
from sonde.techniques import nano_batches, nano_search, peer_memory
from sonde.techniques.compose import chosen, compiled
from sonde.techniques.layer import Point, Stage, sequential, stages
from sonde.techniques.nano_batches import NanoBatches, overlapped, pipeline, saved, working_point
from sonde.techniques.timeline import Device, Order, makespan, timeline
from sonde.workload.requests import requests

LLAMA70 = Replica(
    model="llama-2-70b", device="a100-sxm-80gb", tensor_parallel=8, engine="generic",
    batching=Batching(max_batch=1024, token_budget=2048),
)  # fmt: skip
LLAMA8 = Replica(model="llama-3-8b", device="a100-sxm-80gb", engine="generic", batching=Batching(max_batch=256))
STAGED = Replica(model="llama-2-13b", device="a100-sxm-80gb", pipeline_parallel=4, engine="generic")


def cut(replica):
    return shard(model(replica.model), device(replica.device), replica, served(device(replica.device), replica))


def engine(replica, *techniques):
    return compiled(model(replica.model), device(replica.device), replica, chosen(techniques))


def step(table, point):
    prompt = int(point.tokens - point.batch)
    return coefficients(table, prompt, int(point.batch), point.pairs, point.read)


# --- a layer as stages


@pytest.mark.parametrize("replica", [LLAMA70, LLAMA8, LLAMA8.model_copy(update={"model": "gemma-3-27b"})])
@pytest.mark.parametrize(("prompt", "batch"), [(0, 1), (0, 200), (1000, 0), (800, 200)])
def test_stages_hold_every_operator_within_layers(replica, prompt, batch):
    part = cut(replica)
    window = compile_shard(part).table.window
    context = min(512, window or 512)
    rows = step_rows(part, prompt, batch, context)
    inside = sum(row.seconds for row in rows if not row.operator.startswith(("embedding", "head", "engine")))
    near = min(prompt, window) if window else prompt
    point = Point(prompt + batch, batch, batch * context, near * near / 2 + (prompt - near) * (window or 0))
    if window and prompt > window:
        pytest.skip("two kinds of pairs, which a point holds one of")
    assert sequential(part, point) == pytest.approx(inside, rel=1e-9)


def test_stages_run_in_order_and_neighbours_of_a_kind_are_one():
    found = stages(cut(LLAMA70), Point(2048, 1024, 1024 * 768, 1024 * 384))
    assert [stage.name for stage in found] == [
        "projections", "attention", "output", "attention sum", "norm", "up", "activation", "down", "feed-forward sum",
    ]  # fmt: skip
    assert all(one.kind != two.kind for one, two in pairwise(found))
    assert not any(stage.kind == "network" for stage in stages(cut(LLAMA8), Point(2048, 0, 0, 0)))


@pytest.mark.parametrize("replica", [LLAMA70, LLAMA8])
def test_nano_batches_load_weights_again(replica):
    part = cut(replica)
    for tokens in (16, 256, 2048):
        point = Point(tokens, tokens, tokens * 512, 0)
        twice = 2 * sequential(part, point.share(0.5))
        assert twice > sequential(part, point)
    weights = sum(m.parameters for mixer in part.model.mixers for m in mixer.matrices) * 2.0 * part.model.layers
    small = Point(2, 2, 2 * 64, 0)
    again = 2 * sequential(part, small.share(0.5)) - sequential(part, small)
    assert again > weights / part.tensor / part.device.memory[0].bandwidth


# --- interference


def test_interference_rises_from_nothing_to_all():
    for name in profiles():
        for kind in KINDS:
            speeds = [interference(name).speed(kind, share) for share in np.linspace(0, 1, 21)]
            assert speeds[0] == 0
            assert speeds[-1] == 1
            assert all(a < b for a, b in pairwise(speeds))
    assert interference("gpu").speed("memory", 0.35) == 0.8
    assert interference("gpu").speed("compute", 0.35) == pytest.approx(0.35)


@pytest.mark.parametrize("points", [[(0, 0)], [(0.0, 0.0), (0.5, 0.8), (0.7, 0.6), (1.0, 1.0)], [(0, 0.1), (1, 1)]])
def test_what_is_no_curve_is_refused(points):
    whole = [(0.0, 0.0), (1.0, 1.0)]
    with pytest.raises(InputError, match="memory"):
        curves({"compute": whole, "memory": points, "network": whole})
    with pytest.raises(InputError, match="profile"):
        interference("gpus")


# --- the timeline


def ticks(nanos, order, device, layers, tick):
    """The same rules, in equal small ticks of time."""
    queues = {kind: [] for kind in KINDS}
    for nano, chain in enumerate(nanos):
        for i, stage in enumerate(chain):
            for layer in range(layers):
                queues[stage.kind].append((layer + order.starts[nano][i], layer, nano, i))
    queues = {kind: sorted(queue) for kind, queue in queues.items()}
    left = {(layer, nano, i): stage.seconds for nano, chain in enumerate(nanos) for i, stage in enumerate(chain)
            for layer in range(layers)}  # fmt: skip
    now = 0.0
    while any(queues.values()):
        active = []
        for queue in queues.values():
            if queue:
                _, layer, nano, i = queue[0]
                before = (layer, nano, i - 1) if i else (layer - 1, nano, len(nanos[nano]) - 1)
                if before not in left:
                    active.append((queue, layer, nano, i))
        given = {id(a): device.shares.get(nanos[a[2]][a[3]].kind, 1.0) for a in active if a[0] is not queues["compute"]}
        speeds = []
        for a in active:
            share = given.get(id(a), max(1 - sum(given.values()), 0))
            speeds.append(device.interference.speed(nanos[a[2]][a[3]].kind, share))
        asked = sum(s * nanos[a[2]][a[3]].bandwidth for s, a in zip(speeds, active, strict=True))
        for speed, (queue, layer, nano, i) in zip(speeds, active, strict=True):
            slowed = speed / max(asked, 1.0) if nanos[nano][i].bandwidth else speed
            left[layer, nano, i] -= tick * slowed
            if left[layer, nano, i] <= 0:
                del left[layer, nano, i]
                queue.pop(0)
        now += tick
    return now


CHAIN = (("a", "compute"), ("b", "memory"), ("c", "compute"), ("d", "network"))
drawn_chain = st.tuples(*[st.tuples(st.floats(0.2, 2.0), st.floats(0.0, 1.0)) for _ in CHAIN])


@settings(deadline=None, max_examples=25)
@given(chains=st.lists(drawn_chain, min_size=1, max_size=3), memory=st.floats(0.1, 0.5), network=st.floats(0.1, 0.4))
def test_the_timeline_is_what_small_ticks_come_to(chains, memory, network):
    nanos = [
        [Stage(name, kind, seconds, 0.0 if kind == "network" else bandwidth)
         for (name, kind), (seconds, bandwidth) in zip(CHAIN, chain, strict=True)]
        for chain in chains
    ]  # fmt: skip
    order = Order(tuple(tuple(nano / 4 + i / 4 for i in range(4)) for nano in range(len(nanos))))
    shared = Device(interference("gpu"), {"memory": memory, "network": network})
    spans = timeline(nanos, order, shared, 2)
    assert len(spans) == 2 * sum(map(len, nanos))
    end = max(span.end for span in spans)
    assert ticks(nanos, order, shared, 2, 2e-3) == pytest.approx(end, abs=2e-3 * (len(spans) + 1))
    assert makespan(nanos, order, shared, 2) == pytest.approx(end)
    for one in spans:
        for two in spans:
            if one is not two and one.kind == two.kind:
                assert one.end <= two.begin + 1e-9 or two.end <= one.begin + 1e-9
            if (one.layer, one.nano) == (two.layer, two.nano) and CHAIN.index((one.stage, one.kind)) < CHAIN.index(
                (two.stage, two.kind)
            ):
                assert one.end <= two.begin + 1e-9


def test_one_nano_batch_takes_the_sum_of_its_stages():
    chain = [Stage("a", "compute", 2.0, 0.2), Stage("b", "memory", 1.0, 1.0), Stage("c", "network", 0.5, 0.0)]
    alone = Device(interference("gpu"), {})
    assert makespan([chain], Order(((0.0, 0.5, 0.9),)), alone, 40) == pytest.approx(40 * 3.5)


def test_two_that_want_all_of_the_bandwidth_gain_nothing():
    """A product that waits for its weights beside attention that reads its cache: one memory, the sum of both."""
    chain = [Stage("a", "compute", 1.0, 1.0), Stage("b", "memory", 1.0, 1.0)]
    order = Order(((0.0, 0.5), (0.5, 1.0)))
    for share in (0.2, 0.35, 0.6):
        found = makespan([chain, chain], order, Device(interference("gpu"), {"memory": share}), 60)
        assert found >= 60 * 4.0 * 0.999


def test_a_long_run_goes_on_at_its_pace():
    part, nano = cut(LLAMA70), NanoBatches(count=2, context=768)
    pipe = pipeline(part, nano)
    nanos = [stages(part, working_point(part, nano, 2048).share(share)) for share in pipe.split]
    whole = max(span.end for span in timeline(nanos, pipe.order, pipe.device, 80))
    assert makespan(nanos, pipe.order, pipe.device, 80) == pytest.approx(whole, rel=2e-3)


# --- the search


def stage_lists(*chains):
    return [[Stage(f"{kind}{i}", kind, seconds, 0.0) for i, (kind, seconds) in enumerate(chain)] for chain in chains]


C, M, N = "compute", "memory", "network"


@pytest.mark.parametrize(
    ("chain", "count", "period"),
    [
        ([(C, 1), (M, 1)], 2, 2),  # both units always busy
        ([(C, 2), (M, 1)], 2, 4),  # products always busy
        ([(C, 1), (M, 1), (N, 1)], 2, 3),  # a nano-batch's own chain is the limit
        ([(C, 1), (M, 1), (N, 1)], 3, 3),  # three fill all units
        ([(C, 1), (M, 0.5), (C, 1), (N, 0.5)], 2, 4),
        ([(C, 1)], 2, 2),  # nothing to overlap
    ],
)
def test_the_first_stage_finds_the_shortest_period(chain, count, period):
    found, order = nano_search.shortest(stage_lists(*[chain] * count))
    assert found == pytest.approx(period, rel=0.011)
    undisturbed = Device(curves({kind: [(0.0, 0.0), (1e-6, 1 - 1e-6), (1.0, 1.0)] for kind in KINDS}),
                         {M: 1e-5, N: 1e-5})  # fmt: skip
    nanos = stage_lists(*[chain] * count)
    long, short = (makespan(nanos, order, undisturbed, layers) for layers in (8, 4))
    assert (long - short) / 4 == pytest.approx(period, rel=0.02)


def test_nothing_beats_what_was_tried_at_the_second_stage():
    part, nano = cut(LLAMA8), NanoBatches(count=2, context=512)
    pipe = pipeline(part, nano)
    nanos = [stages(part, working_point(part, nano, 2048).share(share)) for share in pipe.split]
    best = makespan(nanos, pipe.order, pipe.device, part.model.layers)
    for share in (0.1, 0.3, 0.5, 0.7):
        other = Device(pipe.device.interference, {"memory": share})
        assert makespan(nanos, pipe.order, other, part.model.layers) >= best * 0.999


# --- nano-batches in the step table


def test_nano_batches_help_where_products_are_the_limit_and_not_where_memory_is():
    part, nano = cut(LLAMA70), NanoBatches(count=2, context=768)
    found = saved(part, nano)
    full = sequential(part, working_point(part, nano, 2048))
    assert 0.1 < found.seconds[-1] / full < 0.3
    assert (found.seconds[found.tokens <= 256] == 0).all()
    assert (found.seconds >= 0).all()
    assert sum(stage.seconds for share in pipeline(part, nano).split for stage in stages(
        part, working_point(part, nano, 2048).share(share)) if stage.kind == "compute"
    ) * part.model.layers < full - found.seconds[-1]  # fmt: skip


def test_cutting_without_overlap_only_costs():
    found = saved(cut(LLAMA70), NanoBatches(count=2, context=768, overlap=False))
    assert (found.seconds[found.tokens >= 4] < 0).all()


def test_where_half_of_a_device_does_half_of_the_work_overlap_brings_nothing():
    for replica in (LLAMA70, LLAMA8):
        assert (saved(cut(replica), NanoBatches(count=2, interference="none")).seconds == 0).all()


ERROR = 0.15  # what docs/techniques.md states


@pytest.mark.parametrize("replica", [LLAMA70, LLAMA8])
def test_the_table_is_the_timeline_at_the_working_point_and_near_it_elsewhere(replica):
    part, nano = cut(replica), NanoBatches(count=2, context=768)
    table, before = (engine(replica, *use).table.time for use in ([{"nano-batches": {"count": 2, "context": 768}}], []))
    pipe = pipeline(part, nano)

    def error(point):
        alone = sequential(part, point)
        run = step(before, point) - alone + min(overlapped(part, pipe, point), alone)
        return step(table, point) / run - 1

    for tokens in saved(part, nano).tokens[5:]:
        assert abs(error(working_point(part, nano, float(tokens)))) < 1e-6
    worst = max(
        abs(error(Point(tokens, batch, batch * context, (tokens - batch) * context / 2)))
        for tokens in (64, 512, 1024, 2048)
        for batch in (0, 32, 128, 256, 1024)
        if batch <= min(tokens, replica.batching.max_batch)
        for context in (256, 768, 2048)
    )
    assert 0.01 < worst < ERROR


def test_a_step_that_is_shorter_draws_what_runs_draw_for_less_long():
    one, two = engine(LLAMA8), engine(LLAMA8, {"nano-batches": {"count": 2}})
    time, joules = (one.table.time.linear - two.table.time.linear, one.table.energy.linear - two.table.energy.linear)
    assert time[2048] > 0
    np.testing.assert_allclose(joules, time * joules[2048] / time[2048], atol=1e-9)
    assert two.memory == one.memory


@pytest.mark.parametrize(
    ("update", "path"),
    [({"pipeline_parallel": 2}, "replica.pipeline_parallel"), ({"power_cap": 300.0}, "replica.power_cap")],
)
def test_nano_batches_are_refused_where_they_make_no_sense(update, path):
    with pytest.raises(InputError) as caught:
        engine(LLAMA8.model_copy(update=update), "nano-batches")
    assert caught.value.path == path


def test_two_overlaps_of_one_batch_are_refused():
    with pytest.raises(InputError, match="two-microbatches"):
        chosen(["nano-batches", "two-microbatches"])


@pytest.mark.parametrize(
    "uses",
    [
        ["w4a8", "nano-batches"],
        ["peer-memory", "nano-batches", {"padding-elimination": {"fill": 0.6}}, "async-scheduling"],
        ["lambda-attention", "nano-batches", "async-scheduling"],
    ],
)
def test_together_they_leave_a_table_that_can_be_run(uses):
    for replica in (LLAMA8, LLAMA8.model_copy(update={"engine": "vllm"})):
        for table in engine(replica, *uses).table[:2]:
            assert table.linear[0] == 0
            assert (table.linear[1:] > 0).all()
            assert table.slope > 0
            decoding = [step(table, Point(n, n, 1024 * n, 0)) for n in range(1, 257)]
            assert (np.diff(decoding) > -1e-3 * decoding[0]).all()


def test_nano_batches_serve_more_when_full_and_the_same_when_idle():
    def tree(*techniques):
        return load({"sites": [{"pools": [{"replica": LLAMA70.model_dump()}]}], "techniques": list(techniques)})

    use = {"nano-batches": {"count": 2, "context": 768}}
    many = requests(np.zeros(3000), np.full(3000, 512), np.full(3000, 256))
    one, two = (simulate(tree(*t), many).end_s for t in ([], [use]))
    assert 1.1 < one / two < 1.35
    few = requests(np.arange(5) * 100.0, np.full(5, 200), np.full(5, 64))
    one, two = (simulate(tree(*t), few).end_s for t in ([], [use]))
    assert one == pytest.approx(two)


# --- scheduling ahead


def test_a_step_takes_the_device_or_the_scheduler_whichever_is_longer():
    replica = LLAMA8.model_copy(update={"engine": "vllm"})
    part = cut(replica)
    adds = part.efficiencies.engine
    before, after = engine(replica).table.time, engine(replica, {"async-scheduling": {"output": 1e9}}).table.time
    for tokens, batch in ((1, 0), (64, 64), (2048, 0), (2048, 256)):
        point = Point(tokens, batch, batch * 700.0, 0.0)
        host = adds.step_s + adds.token_s * tokens
        device_s = step(before, point) - host - adds.sequence_s * batch
        assert step(after, point) == pytest.approx(max(device_s, host), rel=1e-6)
    assert engine(LLAMA8, "async-scheduling").table.time.fixed <= engine(LLAMA8).table.time.fixed


def test_a_scheduler_slower_than_the_device_is_what_a_step_takes():
    part = cut(LLAMA8)
    slow = replace(part.efficiencies, engine=replace(part.efficiencies.engine, step_s=0.5, sequence_s=0.0))
    technique = chosen(["async-scheduling"])[0]
    slowed = replace(part, efficiencies=slow)
    time = technique.technique.engine(compile_shard(slowed), slowed, technique.parameters).table.time
    assert step(time, Point(1, 0, 0, 0)) == pytest.approx(0.5, rel=1e-3)


def test_the_token_too_many_is_charged():
    short, long = (engine(LLAMA8, {"async-scheduling": {"output": output}}).table.time for output in (4.0, 1e9))
    point = Point(200, 200, 200 * 1000.0, 0)
    read = 200 * 1000.0 * long.read[200]
    assert step(short, point) - step(long, point) >= read / 4
    assert step(short, Point(500, 0, 0, 0)) == pytest.approx(step(long, Point(500, 0, 0, 0)))


# --- pipelines


def staged(*techniques, replica=STAGED):
    return load({"sites": [{"pools": [{"name": "a", "replica": replica.model_dump()}]}], "techniques": techniques})


def test_batches_in_flight_share_devices_memory_and_money():
    whole = engine(STAGED)
    for lanes in (1, 2, 4):
        lane = engine(STAGED, {"non-blocking-pipeline": {"in_flight": lanes}})
        assert lane.devices * lanes == 4
        assert lane.usd_per_hour * lanes == pytest.approx(whole.usd_per_hour)
        assert lane.idle_w * lanes == pytest.approx(whole.idle_w)
        assert abs(lane.memory.capacity_bytes * lanes - whole.memory.capacity_bytes) < lanes
        assert lane.max_batch == 256 // lanes
        assert len(lane.table.time.decode) == lane.max_batch + 1
        assert step(lane.table.time, Point(1000, 0, 0, 5e5)) == pytest.approx(
            step(whole.table.time, Point(1000, 0, 0, 5e5)), rel=1e-6
        )  # a lone prompt passes all stages, whatever else is in the pipeline


def test_full_pipelines_draw_what_one_batch_and_idle_stages_draw():
    """Four batches in flight: each stage works a quarter of a batch's step, so that a step draws a quarter a stage."""
    one, four = (engine(STAGED, {"non-blocking-pipeline": {"in_flight": n}}).table for n in (1, 4))
    point = Point(1000, 0, 0, 5e5)
    saved_j = step(one.energy, point) - step(four.energy, point)
    part = cut(STAGED)
    from sonde.cost.power import running_w

    assert saved_j == pytest.approx(3 * running_w(part) * step(one.time, point), rel=1e-6)


def test_as_many_batches_as_stages_prefill_as_many_times_faster():
    prompts = requests(np.zeros(400), np.full(400, 1000), np.ones(400, np.int64))
    ends = {
        lanes: simulate(staged({"non-blocking-pipeline": {"in_flight": lanes}}), prompts).end_s for lanes in (1, 2, 4)
    }
    assert ends[1] / ends[2] == pytest.approx(2, rel=0.05)
    assert ends[1] / ends[4] == pytest.approx(4, rel=0.05)
    lone = requests([0.0], [1000], [1])
    alone = [simulate(staged({"non-blocking-pipeline": {"in_flight": lanes}}), lone).end_s for lanes in (1, 4)]
    assert alone[0] == pytest.approx(alone[1])


def test_a_pipeline_that_cannot_be_filled_so_is_refused():
    with pytest.raises(InputError, match=r"1, 2, 4"):
        simulate(staged({"non-blocking-pipeline": {"in_flight": 3}}), requests([0.0], [1], [1]))
    with pytest.raises(InputError, match="at least 2"):
        simulate(staged("non-blocking-pipeline", replica=LLAMA8), requests([0.0], [1], [1]))


# --- padding


def test_padded_prompts_cost_what_full_ones_would_and_packing_takes_that_back():
    plain = engine(LLAMA8).table.time
    padded = engine(LLAMA8, {"padding-elimination": {"fill": 0.5, "linear": False}}).table.time
    packed = engine(LLAMA8, {"padding-elimination": {"fill": 0.5}}).table.time
    point, twice = Point(1000, 0, 0, 0), Point(2000, 0, 0, 0)
    assert step(padded, point) == pytest.approx(step(plain, twice))
    assert step(plain, point) < step(packed, point) < 1.03 * step(plain, point)
    assert padded.prefill == pytest.approx(4 * plain.prefill)
    assert packed.prefill == pytest.approx(4 * plain.prefill)
    decoding = Point(100, 100, 100 * 500.0, 0)
    assert step(padded, decoding) == pytest.approx(step(plain, decoding))
    full = engine(LLAMA8, {"padding-elimination": {"fill": 1.0}}).table.time
    assert step(full, point) == pytest.approx(step(plain, point))


@pytest.mark.parametrize("given", [{"fill": 0.0}, {"fill": 1.1}, {"fill": 0.5, "fill_pairs": 0.6}, {}])
def test_fills_that_no_lengths_have_are_refused(given):
    with pytest.raises(InputError):
        chosen([{"padding-elimination": given}])


# --- peer memory


def waits(layers, every, ahead, fetch, layer, steps=6):
    """Fetch by fetch: the time that steps take beyond their layers, per step, once the first has gone by."""
    free, now, arrived, begun, ends = 0.0, 0.0, {}, {}, []
    order = [(s, i) for s in range(steps) for i in range(layers)]
    lent = {at for at, (_, i) in enumerate(order) if i % every == every - 1 and i // every < layers // every}
    for at in range(len(order)):
        begun[at] = now
        for target in sorted(lent):  # what may be asked for when this layer starts
            if target not in arrived and target - ahead <= at:
                free = max(free, now) + fetch
                arrived[target] = free
        if at in lent:
            now = max(now, arrived[at])
        now += layer
        if order[at][1] == layers - 1:
            ends.append(now)
    return (ends[-1] - ends[1]) / (len(ends) - 2) - layers * layer


@settings(deadline=None, max_examples=60)
@given(every=st.integers(1, 6), ahead=st.integers(0, 8), fetch=st.floats(0.1, 12.0))
def test_a_step_waits_as_fetch_by_fetch(every, ahead, fetch):
    layers = 4 * every  # so that the same number of layers lies between any two, from step to step too
    formula = layers // every * max(fetch - min(ahead, every) * 1.0, 0.0)
    assert waits(layers, every, ahead, fetch, 1.0) == pytest.approx(formula, abs=1e-9)


def test_the_wait_of_a_step_is_the_formula_of_its_layer():
    part = cut(LLAMA8)
    point = Point(8, 8, 8 * 1000.0, 0)
    layer = sequential(part, point) / 32
    for link, at in (("node", part.device.node), ("host", part.device.host)):
        for ahead in range(5):
            lent = peer_memory.Lent(every=4, ahead=ahead, link=link)
            fetch = at.latency_s + peer_memory.layer_bytes(part) / at.bandwidth
            assert peer_memory.wait(part, lent, point) == pytest.approx(
                waits(32, 4, ahead, fetch, layer), rel=1e-6, abs=1e-9
            )


def test_layer_bytes_add_up():
    part = cut(LLAMA8)
    assert peer_memory.layer_bytes(part) * 32 == pytest.approx(
        2 * (part.model.total_parameters - 2 * part.model.embedding_parameters), rel=1e-3
    )


def test_peers_lend_memory_for_caches_time_and_money():
    before, after = engine(LLAMA8), engine(LLAMA8, {"peer-memory": {"every": 4, "ahead": 3}})
    part = cut(LLAMA8)
    gained = after.memory.capacity_bytes - before.memory.capacity_bytes
    assert gained == pytest.approx((8 - 1) * peer_memory.layer_bytes(part), rel=1e-3)
    lent = 8 * peer_memory.layer_bytes(part) / part.device.memory[0].bytes
    assert after.usd_per_hour == pytest.approx(before.usd_per_hour * (1 + lent), rel=1e-6)
    slow = engine(LLAMA8, {"peer-memory": {"every": 4, "ahead": 0, "link": "host"}})
    assert slow.usd_per_hour == before.usd_per_hour
    assert slow.table.time.linear[1] > after.table.time.linear[1] >= before.table.time.linear[1]
    large = Point(2048, 0, 0, 0)
    assert step(after.table.time, large) == pytest.approx(step(before.table.time, large))


def test_a_model_fits_with_a_peer_that_did_not():
    tight = LLAMA8.model_copy(update={"model": "qwen2.5-32b", "memory_fraction": 0.7})
    with pytest.raises(CannotError):
        engine(tight)
    assert engine(tight, {"peer-memory": {"every": 2}}).memory.capacity_bytes > 0


@pytest.mark.parametrize(
    ("update", "given"), [({"pipeline_parallel": 2}, {}), ({}, {"every": 33}), ({}, {"every": 16, "ahead": 32})]
)
def test_memory_that_frees_nothing_is_refused(update, given):
    with pytest.raises(InputError):
        engine(LLAMA8.model_copy(update=update), {"peer-memory": given})


def test_the_module_names_its_working_point():
    part, nano = cut(LLAMA70), NanoBatches(context=100)
    assert working_point(part, nano, 2048) == Point(2048, 1024, 102400, 51200)
    assert working_point(part, nano, 64) == Point(64, 64, 6400, 0)
    apart = cut(LLAMA70.model_copy(update={"batching": Batching(policy="prefill-first", max_batch=512)}))
    assert working_point(apart, nano, 2048).batch == 0
    assert nano_batches.MIXED == ("chunked", "iteration")
