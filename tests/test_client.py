"""What clients see beside the engines' own time: terms added to every request, and nothing else changed."""

from __future__ import annotations

from dataclasses import fields, replace

import drawn
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sonde.catalogue.devices import device, device_names
from sonde.catalogue.engines import BUSY, effects, serving_engine
from sonde.catalogue.models import model
from sonde.cost.compile import compile_replica
from sonde.cost.served import default_engine, engine_name, served
from sonde.cost.table import Client, Engine
from sonde.deployment.tree import Replica
from sonde.metrics import Objective, Outcome
from sonde.plan.explain import holds
from sonde.sim.client import as_clients_see
from sonde.sim.engine import run
from sonde.validate.predict import Prediction, predict, simulated
from sonde.validate.predict import compiled as compiled_setting
from sonde.validate.rows import Row
from sonde.validate.setting import setting
from sonde.workload.requests import requests

POLICIES = ("chunked", "prefill-first")
CLIENTS = st.builds(Client, *(st.floats(0.0, 2.0) for _ in range(4)))


def waits(outcome: Outcome, fleet: list[tuple[Engine, int]]) -> list[float]:
    """What each request waits for beside the engine, one request after the other."""
    clients = [engine.client for engine, count in fleet for _ in range(count)]
    asked = outcome.requests
    found = []
    for i in range(asked.n):
        r = int(outcome.replica[i])
        if r < 0 or np.isnan(outcome.finish_s[i]):
            found.append(np.nan)
            continue
        mine = [k for k in range(asked.n) if outcome.replica[k] == r]
        gaps = [outcome.tpot_s[k] for k in mine if asked.output_tokens[k] > 1]
        own = outcome.tpot_s[i] if asked.output_tokens[i] > 1 else (sum(gaps) / len(gaps) if gaps else 0.0)
        span = max(outcome.finish_s[mine]) - min(outcome.arrival_s[mine])
        here = sum(outcome.e2e_s[mine]) / max(span, 1e-12)
        term = clients[r]
        polls = term.polls_busy if here >= BUSY else term.polls
        found.append(term.request_s + term.token_s * asked.prompt_tokens[i] + polls * own)
    return found


@settings(max_examples=60, deadline=None)
@given(drawn.engines(POLICIES), drawn.engines(POLICIES), drawn.workloads(), CLIENTS, CLIENTS)
def test_every_request_is_later_by_its_replicas_terms(first, second, trace, one, other):
    plain = run(trace, [(first, 2), (second, 1)])
    fleet = [(first._replace(client=one), 2), (second._replace(client=other), 1)]
    seen = run(trace, fleet)
    expected = waits(plain, fleet)
    assert seen.ttft_s == pytest.approx(plain.ttft_s + expected, nan_ok=True)
    assert seen.e2e_s == pytest.approx(plain.e2e_s + expected, nan_ok=True)
    assert seen.tpot_s == pytest.approx(plain.tpot_s, nan_ok=True, abs=1e-12)
    for field in fields(Outcome):
        if field.name not in ("first_token_s", "finish_s", "simulation_s", "requests", "timeline", "either", "travel"):
            assert np.array_equal(getattr(seen, field.name), getattr(plain, field.name), equal_nan=True), field.name


def test_a_replica_is_busy_from_sixteen_requests_on():
    asked = requests(np.zeros(20), np.full(20, 4), np.full(20, 3))
    base = compiled("h100-sxm", "generic")
    client = Client(0.0, 0.0, 1.0, 5.0)
    engine = base._replace(client=client)
    for count, polls in ((BUSY - 1, 1.0), (BUSY, 5.0)):
        part = requests(asked.arrival_s[:count], asked.prompt_tokens[:count], asked.output_tokens[:count])
        plain = run(part, [(base, 1)])
        assert run(part, [(engine, 1)]).ttft_s == pytest.approx(plain.ttft_s + polls * plain.tpot_s)


def test_an_outcome_without_terms_is_the_same_object():
    engine = compiled("h100-sxm", "generic")
    outcome = run(requests([0.0], [4], [3]), [(engine, 1)])
    assert as_clients_see(outcome, [(engine, 1)]) is outcome


@settings(max_examples=30, deadline=None)
@given(drawn.engines(POLICIES), drawn.workloads(), CLIENTS, st.floats(0.001, 3.0))
def test_stopping_early_never_changes_the_verdict(engine, trace, client, limit):
    goals = (Objective("ttft", 0.5, limit), Objective("e2e", 0.9, 2 * limit))
    fleet = [(engine._replace(client=client), 1)]
    assert holds(run(trace, fleet, until_missed=goals), goals) == holds(run(trace, fleet), goals)


def compiled(name: str, engine: str | None, **more: object) -> Engine:
    replica = Replica.model_validate({"model": "llama-3.1-8b", "device": name, "engine": engine, **more})
    return compile_replica(model("llama-3.1-8b"), device(name), replica)


def test_a_replica_has_the_terms_of_its_engine():
    made = effects("hopper", "bf16", "llama-3.1-8b", "h100-sxm")
    constants = serving_engine("sglang", "", "hopper").waiting(made)
    engine = compiled("h100-sxm", "sglang")
    assert engine.client == Client(constants.ttft_s * constants.ttft_factor, constants.ttft_token_s,
                                   constants.polls(1, 1), constants.polls(BUSY, 1))  # fmt: skip
    assert compiled("h100-sxm", "generic").client == Client()
    own = served(device("h100-sxm"), Replica(model="llama-3.1-8b", device="h100-sxm"), "sglang")
    replica = Replica(model="llama-3.1-8b", device="h100-sxm", engine="sglang")
    assert compile_replica(model("llama-3.1-8b"), device("h100-sxm"), replica, reached=own).client == Client()


def test_what_serves_where_nobody_says():
    """In data centres, and on NVIDIA's GPUs elsewhere, vLLM; on what no engine was measured on, nothing is added."""
    kinds = {name: (device(name).kind, device(name).vendor, default_engine(device(name))) for name in device_names()}
    for kind, vendor, engine in kinds.values():
        gpu = kind == "datacentre" or (kind == "workstation" and vendor == "NVIDIA")
        assert engine == ("vllm" if gpu else "generic")
    assert kinds["rtx-4090"][2] == kinds["h100-sxm"][2] == "vllm"
    assert kinds["jetson-thor"][2] == kinds["apple-m4"][2] == kinds["epyc-9454-2s"][2] == "generic"
    replica = Replica(model="llama-3.1-8b", device="h100-sxm")
    assert engine_name(device("h100-sxm"), replica) == "vllm"
    assert engine_name(device("h100-sxm"), replica.model_copy(update={"engine": "generic"})) == "generic"
    unnamed, named = compiled("h100-sxm", None), compiled("h100-sxm", "vllm")
    assert unnamed.table.time.fixed == named.table.time.fixed > compiled("h100-sxm", "generic").table.time.fixed
    assert unnamed.client == named.client


def test_one_more_replica_does_not_lend_its_terms():
    fast = compiled("h100-sxm", "generic")
    fleet = [(fast, 1), (fast._replace(client=Client(1.0)), 1)]
    outcome = run(requests([0.0, 0.0], [8, 8], [4, 4]), fleet, routing="round-robin")
    late = replace(outcome).ttft_s > 1.0
    assert list(late) == [False, True]


@pytest.mark.parametrize(("engine", "clients", "output"), [("vllm", 4, 128), ("sglang", 4, 128), ("sglang", 32, 64),
                                                           ("trtllm", 32, 1)])  # fmt: skip
def test_a_validated_row_is_the_engines_time_and_the_fitted_terms(engine: str, clients: int, output: int) -> None:
    row = Row(1, "a", engine, "", "llama-3.1-8b", "h100_sxm", "fp8", "", 1024, output, clients, 1, 1, 1, 1, 50.0, 10.0)
    chosen = setting(row)
    constants = chosen.engine
    ttft_s, tpot_s, prompt = simulated(chosen, compiled_setting(chosen)[0])
    found = predict(row)
    assert isinstance(found, Prediction)
    wait = constants.ttft_s * constants.ttft_factor + constants.ttft_token_s * prompt
    polls = constants.polls(clients, chosen.replica.data_parallel)
    assert found.ttft_ms == pytest.approx(1e3 * (ttft_s + wait + polls * tpot_s), rel=1e-9)
    assert found.tpot_ms == pytest.approx(1e3 * tpot_s, rel=1e-9)
