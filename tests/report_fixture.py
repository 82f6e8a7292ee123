"""Plausible plans and outcomes drawn with numpy, for tests of the report: no simulator, no planner."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from sonde.deployment.scenario import HardwareChoice, Scenario, WorkloadChoice
from sonde.deployment.tree import Batching, Deployment, Pool, Precision, Replica, Site
from sonde.metrics import ITL_BINS, Objective, Outcome, Timeline, itl_edges
from sonde.plan.result import Plan, PlanResult, Rejection
from sonde.workload.requests import Requests, requests

OBJECTIVES = (Objective("ttft", 0.99, 0.5), Objective("tpot", 0.99, 0.05), Objective("e2e", 0.9, 30.0))
DEVICES = {"h100-sxm": (2.99, 1.0), "h200": (3.79, 0.85), "a100-80g-sxm": (1.79, 1.9), "l40s": (0.86, 2.3)}


def draw_requests(n: int = 2000, seed: int = 0, span_s: float = 1800.0) -> Requests:
    """Return n requests whose rate swells and falls over `span_s`."""
    rng = np.random.default_rng(seed)
    u = np.sort(rng.random(n))
    arrival = span_s * (u + 0.06 * np.sin(2 * np.pi * u))
    prompt = np.clip(rng.lognormal(6.6, 0.9, n), 8, 16000).astype(np.int32)
    output = np.clip(rng.lognormal(5.0, 0.8, n), 1, 2000).astype(np.int32)
    return requests(np.sort(arrival), prompt, output)


def draw_outcome(
    trace: Requests,
    slow: float = 1.0,
    replicas: int = 2,
    usd_per_hour: float = 5.98,
    seed: int = 1,
    unfinished: int = 0,
) -> Outcome:
    """Return an outcome of `trace` whose latencies are `slow` times those of a brisk engine."""
    rng = np.random.default_rng(seed)
    n = trace.n
    waits = rng.exponential(0.02 * slow, n)
    first = trace.arrival_s + waits + 5e-5 * slow * trace.prompt_tokens**0.9 + 0.01
    tpot = slow * rng.normal(0.016, 0.002, n).clip(0.008)
    finish = first + tpot * (trace.output_tokens - 1)
    replica = rng.integers(0, replicas, n).astype(np.int32)
    if unfinished:
        finish[:unfinished] = first[:unfinished] = np.nan
        replica[:unfinished] = -1
    gaps = slow * rng.lognormal(np.log(0.015), 0.25, 50_000)
    counts = np.histogram(gaps, bins=itl_edges())[0].astype(np.int64)
    assert len(counts) == ITL_BINS
    k, end = 120, float(np.nanmax(finish))
    width = end / k
    rate = np.histogram(trace.arrival_s, bins=k, range=(0, end))[0] / width
    share = rate / rate.max()
    capacity = 60e9
    timeline = Timeline(
        width, (0.2 + 0.6 * share) * width * replicas, 0.5 * share * capacity * replicas, 30 * share * slow,
        np.maximum(0, 12 * (share - 0.7)) * slow,
    )  # fmt: skip
    return Outcome(
        trace, replica, trace.arrival_s + waits, first, finish, np.zeros(n, np.int32),
        np.full(replicas, 60_000, np.int64), np.full(replicas, 0.6 * end), np.full(replicas, 450.0 * end),
        np.full(replicas, 0.55 * capacity), np.full(replicas, capacity), counts, timeline, usd_per_hour, 0.02,
        trace.arrival_s,
    )  # fmt: skip


def draw_deployment(device: str, replicas: int, tensor: int, weights: Precision, model: str) -> Deployment:
    """Return one site with one pool."""
    batching = Batching(policy="chunked", max_batch=256, token_budget=2048)
    replica = Replica(model=model, device=device, tensor_parallel=tensor, weights=weights, batching=batching)
    return Deployment(sites=(Site(name="cloud", pools=(Pool(name="chat", replicas=replicas, replica=replica),)),))


def draw_plans(trace: Requests, count: int, model: str) -> tuple[Plan, ...]:
    """Return `count` plans ranked by cost, each a little different."""
    rng = np.random.default_rng(7)
    drawn = []
    for i in range(count):
        device = list(DEVICES)[i % len(DEVICES)]
        price, slow = DEVICES[device]
        tensor, replicas = (1, 2, 4)[i // 4 % 3], 2 + i // 12
        usd = price * tensor * replicas
        outcome = draw_outcome(trace, slow * (1.15 - 0.15 * tensor) * rng.uniform(0.9, 1.1), replicas, usd, i)
        weights: Precision = "fp8" if i % 3 else "bf16"
        label = f"{replicas} × {device} tp{tensor} {weights}, chunked 2048, batch 256"
        drawn.append((usd, label, draw_deployment(device, replicas, tensor, weights, model), outcome))
    drawn.sort(key=lambda row: (row[0], row[3].quantile("e2e", 0.99)))
    best, plans = np.inf, []
    for i, (usd, label, deployment, outcome) in enumerate(drawn):
        p99 = outcome.quantile("e2e", 0.99)
        parts = {"devices working": 0.6 * usd, "devices idle": 0.4 * usd, "energy": 0.05 * usd}
        summary = outcome.summary(OBJECTIVES)
        plans.append(Plan(i + 1, label, deployment, deployment.devices, usd, summary, outcome, parts, p99 < best))
        best = min(best, p99)
    return tuple(plans)


def draw_rejections(count: int = 60) -> tuple[Rejection, ...]:
    """Return `count` rejections of five kinds."""
    kinds = (
        ("memory", "weights take 140 GiB, 72 GiB fit the device"),
        ("ttft", "p99 TTFT 2.1 s against 0.5 s: prompt bursts at minute 37"),
        ("tpot", "p99 TPOT 81 ms against 50 ms: decode is bound by memory bandwidth"),
        ("devices", "needs 21 devices, 16 are allowed"),
        ("cost", "its bound of $9.10/h is above a plan that holds"),
    )
    return tuple(
        Rejection(f"{1 + i % 9} × {list(DEVICES)[i % 4]} tp{2 ** (i % 4)} bf16", *kinds[(i * i + i // 3) % len(kinds)])
        for i in range(count)
    )


def draw_result(count: int = 24, model: str = "llama-3.1-8b", rejected: int = 60, **changes: object) -> PlanResult:
    """Return an answer with `count` plans; `changes` replace any field of it."""
    trace = draw_requests()
    scenario = Scenario(
        model=model,
        workload=WorkloadChoice(profile="azure-conv-2023", rate="8/s", duration="30 min"),
        objectives={"ttft": "500 ms", "tpot": {"p99": "50 ms"}, "e2e": {"p90": "30 s"}},
        hardware=tuple(HardwareChoice(device=device, max=16) for device in DEVICES),
    )
    plans = draw_plans(trace, count, model)
    fields: Mapping[str, object] = {
        "scenario": scenario,
        "requests": trace,
        "objectives": OBJECTIVES,
        "plans": plans,
        "rejected": draw_rejections(rejected),
        "bound_usd_per_hour": 0.8 * plans[0].usd_per_hour if plans else 1.1,
        "bound_reason": "decoding 310,000 tokens at full memory bandwidth takes 0.61 h of the cheapest device",
        "candidates": 512,
        "requests_simulated": 512 * trace.n,
        "simulations": 640,
        "elapsed_s": 12.3,
        "notes": ("The trace is 30 minutes long: daily peaks are not in it.",),
    }
    return PlanResult(**{**fields, **changes})  # type: ignore[arg-type]
