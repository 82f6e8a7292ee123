"""The scenario: the one file that asks a question. Model, workload, objectives, hardware, search.

    model: llama-3.1-8b
    workload: {profile: azure-conv-2023, rate: 8/s, duration: 10 min}
    objectives: {ttft: 500 ms, tpot: {p99: 50 ms}}
    hardware: [{device: h100-sxm, max: 16}, {device: l40s}]

`load_scenario` reads it; what is wrong in it is reported with its path, value and what is allowed.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from sonde.deployment.node import Choice, Line, refuse, repeated
from sonde.deployment.tree import Precision, Use

#: limits by metric: one limit is of p99, or a limit for each of several quantiles
Limits = str | float | dict[str, str | float]
Several = Annotated[int, Field(ge=1)]


class WorkloadChoice(Choice):
    """Where requests come from: exactly one of a trace file or a profile (by name or file)."""

    trace: Line | None = None
    profile: Line | None = None
    rate: str | float | None = None  # mean requests per second; the trace's own where absent
    duration: str | float | None = None  # of generated traffic; of a trace, the part that is used
    requests: int | None = Field(default=None, ge=1)  # at most so many
    seed: int = Field(default=0, ge=0)
    hit_rate: float | None = Field(default=None, ge=0, le=1)  # of prompt tokens, in a prefix cache without an end
    long_prompts: Literal["refuse", "clip", "drop"] = "refuse"  # those longer than the model's context

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.trace is None) == (self.profile is None):
            given = "both trace and profile" if self.trace else "neither trace nor profile"
            refuse("", given, "needs exactly one of `trace` (a file) and `profile` (a name or a file)")
        return self


class HardwareChoice(Choice):
    """A kind of device that may be used, at most `max` of them; price as the catalogue has it unless given."""

    device: Line
    max: int = Field(default=64, ge=1, le=1_000_000)
    price: str | float | None = None
    purchase: Literal["on-demand", "spot", "owned"] = "on-demand"


class SearchChoice(Choice):
    """What the planner may vary; every list is tried in full. None: what the device can do.

    Left open, a stage has 1, 2, 4 or 8 devices of one node, and there is one stage; 2 and 4 of them on a device
    of which no node could hold the model.
    """

    tensor_parallel: tuple[Several, ...] | None = Field(default=None, min_length=1)
    pipeline_parallel: tuple[Several, ...] | None = Field(default=None, min_length=1)
    weights: tuple[Precision, ...] | None = Field(default=None, min_length=1)
    kv_cache: tuple[Precision, ...] | None = Field(default=None, min_length=1)
    batching: tuple[Line, ...] = Field(default=("chunked",), min_length=1)
    token_budget: tuple[Several, ...] = Field(default=(512, 2048, 8192), min_length=1)
    max_batch: tuple[Several, ...] = Field(default=(64, 256), min_length=1)
    routing: tuple[Line, ...] = Field(default=("least-outstanding",), min_length=1)

    @model_validator(mode="after")
    def _nothing_twice(self) -> Self:
        for name in type(self).model_fields:
            for value in repeated(getattr(self, name) or ()):
                refuse(name, value, "is there twice", "the same candidates would be simulated twice")
        return self


class Scenario(Choice):
    """A question to `plan`. `objectives` maps ttft, tpot, e2e or itl to a limit, or to {quantile: limit}."""

    model: Line
    workload: WorkloadChoice | None = None  # where no trace is given apart
    objectives: dict[str, Limits] = Field(min_length=1)
    hardware: tuple[HardwareChoice, ...] = Field(min_length=1)
    search: SearchChoice = SearchChoice()
    techniques: tuple[Use, ...] = ()  # in every candidate

    @model_validator(mode="after")
    def _every_kind_once(self) -> Self:
        for name in repeated(f"{kind.device.lower()} ({kind.purchase})" for kind in self.hardware):
            refuse("hardware", name, "is there twice", "add up their `max` in one entry")
        return self
