"""The scenario: the one file that asks a question. Model, workload, objectives, hardware, search.

    model: llama-3.1-8b
    workload: {profile: azure-conv-2023, rate: 8/s, duration: 10 min}
    objectives: {ttft: 500 ms, tpot: {p99: 50 ms}}
    hardware: [{device: h100-sxm, max: 16}, {device: l40s}]

`load` reads it; what is wrong in it is reported with its path, value and what is allowed.
"""

from __future__ import annotations

from pydantic import Field

from sonde.deployment.tree import Choice, Precision


class WorkloadChoice(Choice):
    """Where requests come from: exactly one of a trace file or a profile (by name or file)."""

    trace: str | None = None
    profile: str | None = None
    rate: str | float | None = None  # mean requests per second; the trace's own where absent
    duration: str | float | None = None  # of generated traffic; of a trace, the part that is used
    requests: int | None = Field(default=None, ge=1)  # at most so many
    seed: int = 0


class HardwareChoice(Choice):
    """A kind of device that may be used, at most `max` of them; price as the catalogue has it unless given."""

    device: str
    max: int = Field(default=64, ge=1)
    price: str | float | None = None
    purchase: str = "on-demand"


class SearchChoice(Choice):
    """What the planner may vary; every list is tried in full. None: what the device can do."""

    tensor_parallel: tuple[int, ...] = (1, 2, 4, 8)
    pipeline_parallel: tuple[int, ...] = (1,)
    weights: tuple[Precision, ...] | None = None
    kv_cache: tuple[Precision, ...] | None = None
    batching: tuple[str, ...] = ("chunked",)
    token_budget: tuple[int, ...] = (512, 2048, 8192)
    max_batch: tuple[int, ...] = (64, 256)
    routing: tuple[str, ...] = ("least-outstanding",)


class Scenario(Choice):
    """A question to `plan`. `objectives` maps ttft, tpot, e2e or itl to a limit, or to {quantile: limit}."""

    model: str
    workload: WorkloadChoice
    objectives: dict[str, str | float | dict[str, str | float]]
    hardware: tuple[HardwareChoice, ...] = Field(min_length=1)
    search: SearchChoice = SearchChoice()
