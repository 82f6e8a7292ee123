"""The deployment: the one frozen tree of everything that is chosen. Unknown keys are errors.

    Deployment > Site > Pool > Replica > Batching

`load` and `dump` read and write it as YAML; what `dump` writes, `load` reads back equal.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from sonde.deployment.network import Cache, Lending, Link, Migration, Path
from sonde.deployment.node import Choice, Line, quantity, quantity_or_share, refuse, repeated

Precision = Literal["fp32", "bf16", "fp16", "fp8", "int8", "fp6", "nvfp4", "mxfp4", "int4"]


Dollars = Annotated[float, quantity("price", zero=True), Field(ge=0)]
#: watts, or "60 %" of what the device draws at most
PowerCap = Annotated[
    Annotated[float, Field(gt=0)] | Annotated[str, Field(pattern=r"^[\d.]+ %$")],
    quantity_or_share("power", "peak power"),
]


class Batching(Choice):
    """How an engine forms its steps.

    policy       "static", "iteration" (Orca), "prefill-first" (vLLM v0), "chunked" (Sarathi, vLLM v1), or
                 "module:function" of your own
    """

    policy: Line = "chunked"
    max_batch: int = Field(default=256, ge=1, le=65_536)  # sequences that run at once
    token_budget: int = Field(default=2048, ge=1, le=1_048_576)  # tokens in one step
    preemption: Literal["recompute", "swap"] = "recompute"


class Replica(Choice):
    """One engine: a model on tensor · pipeline · data devices, and the precision of what it holds."""

    model: Line
    device: Line
    tensor_parallel: int = Field(default=1, ge=1)
    pipeline_parallel: int = Field(default=1, ge=1)
    data_parallel: int = Field(default=1, ge=1)  # attention ranks that share the experts of one engine
    expert_parallel: int = Field(default=1, ge=1)  # ranks that the experts are spread over
    redundant_experts: int = Field(default=0, ge=0, le=65_536)  # copies beside the first of each, in all
    weights: Precision = "bf16"
    activations: Precision = "bf16"
    kv_cache: Precision = "bf16"
    engine: Literal["generic", "vllm", "sglang", "trtllm"] | None = None  # whose constants; None: by kind of device
    memory_fraction: float = Field(default=0.9, gt=0, le=1)  # of device memory that the engine may use
    block_tokens: int = Field(default=16, ge=1, le=1024)  # tokens in one block of KV cache
    power_cap: PowerCap | None = None  # of one device; None: its peak power
    batching: Batching = Batching()

    @property
    def devices(self) -> int:
        """Return how many devices one replica takes."""
        return self.tensor_parallel * self.pipeline_parallel * self.data_parallel

    @model_validator(mode="after")
    def _experts_divide_ranks(self) -> Self:
        ranks = self.tensor_parallel * self.data_parallel
        if ranks % self.expert_parallel:
            allowed = ", ".join(str(n) for n in range(1, ranks + 1) if ranks % n == 0)
            refuse(
                "expert_parallel",
                self.expert_parallel,
                f"must divide tensor_parallel × data_parallel = {ranks}: {allowed}",
                "some ranks would hold no experts",
            )
        return self


class Pool(Choice):
    """`replicas` equal replicas."""

    name: Line = "pool"
    replicas: int = Field(default=1, ge=1, le=100_000)
    replica: Replica
    purchase: Literal["on-demand", "spot", "owned"] = "on-demand"
    usd_per_device_hour: Dollars | None = None  # in place of the catalogue's price


class Site(Choice):
    """A place with power and a price for it; `carbon_g_per_kwh` and `pue` scale the energy drawn."""

    name: Line = "site"
    pools: tuple[Pool, ...] = Field(min_length=1)
    pue: float = Field(default=1.2, ge=1, le=5)
    carbon_g_per_kwh: float = Field(default=400.0, ge=0)
    usd_per_kwh: float = Field(default=0.0, ge=0)  # 0: power is in the devices' hourly price

    @model_validator(mode="after")
    def _pools_have_names_of_their_own(self) -> Self:
        for name in repeated(pool.name for pool in self.pools):
            refuse("pools", name, "two pools have this name", "what they did could not be told apart; give each a name")
        return self


class Routing(Choice):
    """How requests find a replica: "random", "round-robin", "least-outstanding", "least-tokens",
    "power-of-two", "session", or "module:function" of your own."""

    policy: Line = "least-outstanding"


def _with_parameters(use: object) -> object:
    for name, given in use.items() if isinstance(use, dict) else ():
        if not isinstance(given, dict):
            refuse(
                str(name), given, f"parameters are given by name, such as {{{name}: {{parameter: {given!r}}}}}",
                f"`sonde show {name}` lists them; without any, the name alone will do",
            )  # fmt: skip
    if not isinstance(use, str | dict):
        refuse("", use, "must be the name of a technique, or a name with parameters")
    return use


#: a technique by name, or with its parameters: {"nano-batches": {"count": 2}}
Use = Annotated[Line | dict[Line, dict[str, Any]], BeforeValidator(_with_parameters)]


class Deployment(Choice):
    """Everything that is chosen: sites with their pools, the routing before them, and techniques in use.

    What a technique changes in the tree, in a replica or in its step table: `sonde.techniques`.
    """

    sites: tuple[Site, ...] = Field(min_length=1)
    routing: Routing = Routing()
    links: dict[Line, Link] = Field(default_factory=dict)
    path: Path | None = None  # every pool serves requests from first to last where there is none
    cache: Cache | None = None
    migration: Migration | None = None
    lending: Lending | None = None
    techniques: tuple[Use, ...] = ()

    @model_validator(mode="after")
    def _sites_have_names_of_their_own(self) -> Self:
        for name in repeated(site.name for site in self.sites):
            refuse("sites", name, "two sites have this name", "what they did could not be told apart; give each a name")
        return self

    @property
    def pools(self) -> tuple[Pool, ...]:
        """Return the pools of all sites, in order."""
        return tuple(pool for site in self.sites for pool in site.pools)

    @property
    def devices(self) -> int:
        """Return how many devices run in all."""
        return sum(pool.replicas * pool.replica.devices for pool in self.pools)
