"""Models that take turns: LRU and queue against plain twins and closed forms, nodes by capacity, fused layers."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import brentq

from sonde.catalogue.devices import device
from sonde.catalogue.models import model
from sonde.catalogue.nodes import Node, node, node_names
from sonde.cost.compile import compile_replica
from sonde.cost.operators import token_operators
from sonde.cost.served import served
from sonde.cost.shard import shard
from sonde.cost.switching import misses, popularity, switched
from sonde.deployment.tree import Replica
from sonde.errors import CannotError, InputError
from sonde.plan.coe import Question, compose
from sonde.techniques.compose import chosen, compiled
from sonde.techniques.fused_layers import Fused, operators


def naive_misses(asked, resident):
    """Look, for every request, at the models asked for before it, one by one backwards."""
    history = list(range(resident - 1, -1, -1))  # what is there at first, the lowest used last
    found = []
    for wanted in asked:
        recent = []
        for one in reversed(history):
            if one not in recent:
                recent.append(one)
            if len(recent) == resident:
                break
        found.append(wanted not in recent)
        history.append(wanted)
    return found


@given(asked=st.lists(st.integers(0, 7), max_size=60), resident=st.integers(1, 9))
def test_the_cache_is_a_list_of_what_was_used_last(asked, resident):
    assert misses(np.array(asked, dtype=np.int64), resident).tolist() == naive_misses(asked, resident)


@given(
    gaps=st.lists(st.floats(0, 3), min_size=1, max_size=40), seed=st.integers(0, 99), switch=st.floats(0, 4),
    service=st.floats(0.01, 3), resident=st.integers(1, 4),
)  # fmt: skip
def test_the_queue_is_one_request_after_another(gaps, seed, switch, service, resident):
    arrival = np.cumsum(gaps)
    asked = np.random.default_rng(seed).integers(0, 6, len(arrival))
    found = switched(arrival, asked, resident, switch, service)
    free = 0.0
    for i, came in enumerate(arrival):
        begin = max(came, free)
        free = begin + service + (switch if found.missed[i] else 0.0)
        assert found.start_s[i] == pytest.approx(begin, abs=1e-9)
        assert found.finish_s[i] == pytest.approx(free, abs=1e-9)


def test_alike_models_miss_by_what_is_not_loaded():
    asked = np.random.default_rng(0).integers(0, 50, 200_000)
    assert misses(asked, 20).mean() == pytest.approx(1 - 20 / 50, abs=0.01)


@pytest.mark.parametrize("alpha", [0.6, 1.0, 1.4])
def test_misses_are_those_of_the_characteristic_time(alpha):
    """Che's approximation of an LRU under independent requests, which is known to be within a percent or so."""
    share, resident = popularity(150, alpha), 32
    asked = np.random.default_rng(1).choice(150, 200_000, p=share)
    moment = brentq(lambda t: (1 - np.exp(-share * t)).sum() - resident, 1e-6, 1e9)
    assert misses(asked, resident).mean() == pytest.approx((share * np.exp(-share * moment)).sum(), abs=0.01)


def test_popularity_is_zipf():
    share = popularity(10, 1.0)
    assert share.sum() == pytest.approx(1)
    assert share[0] / share[4] == pytest.approx(5)
    assert popularity(4, 0.0).tolist() == [0.25] * 4
    for models, alpha in ((0, 1.0), (3, -0.1), (3, float("nan"))):
        with pytest.raises(InputError):
            popularity(models, alpha)
    with pytest.raises(InputError, match="resident"):
        misses(np.array([0]), 0)


def test_nodes_are_rows_with_sources():
    assert {"sn40l-node", "dgx-a100", "dgx-h100"} <= set(node_names())
    for name in node_names():
        found = node(name)
        assert found.source
        assert found.date
        assert device(found.device)
    with pytest.raises(InputError, match="dgx-a100"):
        node("dgx-a10")


def test_loading_is_bytes_over_the_link():
    one = compose(Question("llama-2-7b", 60, one_link=True, requests=2000), node("dgx-a100"))
    all_ = compose(Question("llama-2-7b", 60, requests=2000), node("dgx-a100"))
    assert one.expert_bytes == pytest.approx(2 * 6_738_415_616, rel=1e-3)
    assert one.switch_s == pytest.approx(one.expert_bytes / 32e9)
    assert one.switch_s == pytest.approx(8 * all_.switch_s)
    assert one.miss_rate == all_.miss_rate > 0
    service = one.router_s + one.prefill_s + one.decode_s
    assert one.mean_s == pytest.approx(service + one.miss_rate * one.switch_s)


def test_latency_follows_the_rate_and_popularity_and_capacity():
    def at(name="dgx-h100", **more):
        return compose(Question("llama-2-7b", 100, requests=4000)._replace(**more), node(name))

    assert at(alpha=0.0).miss_rate > at(alpha=0.8).miss_rate > at(alpha=1.6).miss_rate
    calm, busy = at(rate=1.0), at(rate=9.0)
    assert calm.utilisation < busy.utilisation <= 1.0
    assert calm.p99_s < busy.p99_s
    assert calm.utilisation == pytest.approx(1.0 * at().mean_s, rel=0.05)  # Little's law
    few = at(experts=10)
    assert few.miss_rate == 0.0
    assert (few.resident, few.nodes, few.nodes_loaded) == (10, 1, 1)
    many = at(experts=900)
    assert many.nodes == -(-900 * many.expert_bytes // node("dgx-h100").store_bytes)
    assert many.nodes_loaded == -(-900 // many.resident)
    assert at("sn40l-node", experts=900).nodes == 1


def test_what_cannot_be_is_refused():
    for bad in ({"experts": 0}, {"prompt": 0}, {"rate": 0.0}, {"alpha": -1.0}):
        with pytest.raises(InputError):
            compose(Question("llama-2-7b", 10)._replace(**bad), node("dgx-a100"))
    small = Node("one", "One", "t4", 1, 1e12, 1e10, 1, "", "", "")
    with pytest.raises(CannotError):
        compose(Question("llama-2-7b", 10), small)


SN40L, LLAMA = "sn40l", "llama-2-7b"


def tables():
    replica = Replica(model=LLAMA, device=SN40L, tensor_parallel=8, engine="generic")
    plain = compile_replica(model(LLAMA), device(SN40L), replica)
    fused = compiled(model(LLAMA), device(SN40L), replica, chosen(["fused-layers"]))
    return plain, fused


def test_fused_layers_read_the_same_weights_and_start_once():
    replica = Replica(model=LLAMA, device=SN40L, tensor_parallel=8, engine="generic")
    part = shard(model(LLAMA), device(SN40L), replica, served(device(SN40L), replica))
    tokens = np.array([0.0, 1.0, 64.0])
    before = token_operators(part, tokens)
    after = operators(part, before, Fused())
    assert [one.name for one in after] == [one.name for one in before]
    inside = [(a, b) for a, b in zip(before, after, strict=True) if a.kind not in ("collective", "engine")
              and a.name not in ("embedding", "head")]  # fmt: skip
    assert sum(float(b.launches) for _, b in inside) == 1
    weights = sum(b.layers * np.broadcast_to(b.bytes, 3) for _, b in inside if b.kind == "gemm")
    assert weights == pytest.approx(np.full(3, 32 * (4 * 4096**2 + 3 * 4096 * 11008) * 2 / 8), rel=1e-6)
    assert [a.flops is b.flops for a, b in inside] == [True] * len(inside)


def test_fused_layers_are_never_slower_and_change_no_caches():
    plain, fused = tables()
    assert (fused.table.time.linear[1:] < plain.table.time.linear[1:]).all()
    assert (fused.table.time.read == plain.table.time.read).all()
    assert fused.memory == plain.memory
    assert fused.table.time.prefill == plain.table.time.prefill


def test_fusion_needs_memory_on_the_chip():
    replica = Replica(model=LLAMA, device="h100-sxm")
    with pytest.raises(InputError, match="on the chip"):
        compiled(model(LLAMA), device("h100-sxm"), replica, chosen(["fused-layers"]))


def test_the_verb_says_what_nodes_make_of_experts(sonde_cli):
    rows = sonde_cli("coe", LLAMA, "--experts", "60", "--popularity", "zipf(0.8)", "--json").json()
    assert [row["node"] for row in rows] == node_names()
    asked = Question(LLAMA, 60, 0.8)
    assert rows[1]["miss_rate"] == compose(asked, node("dgx-a100")).miss_rate
    assert set(rows[0]) == set(compose(asked, node("sn40l-node"))._asdict())
    text = (Path(__file__).parents[1] / "docs" / "json.md").read_text(encoding="utf-8")
    section = text.partition("## `sonde coe --json`")[2].partition("\n## ")[0]
    assert set(rows[0]) <= set(re.findall(r"`(\w+)`", section))
    shown = sonde_cli("coe", LLAMA, "--node", "dgx-h100", "--rate", "2/s", "--one-link")
    assert shown.code == 0
    assert "dgx-h100" in shown.out
    assert "sn40l" not in shown.out


@pytest.mark.parametrize(
    "words",
    [
        ["--popularity", "even"], ["--popularity", "zipf(-1)"], ["--experts", "0"], ["--node", "dgx"],
        ["--rate", "fast"], ["--prompt", "0"],
    ],
)  # fmt: skip
def test_the_verb_refuses_in_words(words, sonde_cli):
    ended = sonde_cli("coe", LLAMA, *words)
    assert ended.code == 2
    assert "Traceback" not in ended.err
