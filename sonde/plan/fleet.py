"""A fleet: candidates with how many replicas of each, its tree, its price, and how the simulator takes it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from sonde.catalogue.device import Device
from sonde.cost.table import Engine
from sonde.deployment.tree import Deployment, Pool, Replica, Routing, Site
from sonde.plan.setting import ALONE, Setting
from sonde.techniques.held import precision
from sonde.techniques.technique import Chosen

if TYPE_CHECKING:
    from sonde.sim.network import Connected
    from sonde.sim.world import Fleet as Engines

_NO_LIMIT = 1 << 60  # bytes
#: policies that never look at the token budget: the largest one sets the memory that their steps may need
BUDGETLESS = ("static", "iteration")


class Hardware(NamedTuple):
    """A kind of device that may be used: its row, how many, and dollars per device-hour (NaN: not known)."""

    device: Device
    most: int
    usd_per_hour: float
    purchase: str
    priced_by_hand: bool

    @property
    def title(self) -> str:
        """Return the device's name, and how it is bought where that is not on demand."""
        return self.device.name if self.purchase == "on-demand" else f"{self.device.name} ({self.purchase})"


@dataclass(frozen=True, eq=False)
class Candidate:
    """One way to run a replica, compiled, and how many of them there may be.

    `replica` is as techniques leave it and `written` as it stood before (the same where None). `stage` is "prefill"
    or "decode" where its replicas do only that. `lanes` engines run on the devices of one replica. `cached`: they may
    find prompts in a cache. `moving`: requests may be answered by several replicas; `lending`: by the memory of others,
    too. `fewest` replicas make a fleet.
    """

    hardware: Hardware
    replica: Replica
    routing: str
    engine: Engine
    most: int  # replicas
    label: str  # of one replica: "h100-sxm tp2 fp8, chunked 2048, batch 256"
    written: Replica | None = None
    setting: Setting = ALONE
    stage: str = ""
    lanes: int = 1
    cached: bool = False
    moving: bool = False
    lending: bool = False
    fewest: int = 1

    @property
    def least(self) -> Engine:
        """Return an engine that is no slower and no smaller than this one can be among others: what proofs go by."""
        if not self.lending:
            return self.engine
        time = self.engine.table.time
        free = time._replace(read=np.zeros_like(time.read), read_window=np.zeros_like(time.read_window))
        memory = self.engine.memory._replace(capacity_bytes=_NO_LIMIT)
        return self.engine._replace(table=self.engine.table._replace(time=free), memory=memory)

    @property
    def usd_per_hour(self) -> float:
        """Return dollars per hour of one replica."""
        return self.engine.usd_per_hour * self.lanes

    @property
    def family(self) -> tuple[object, ...]:
        """Return what the candidate shares with those that differ in batching and routing alone."""
        replica = self.replica
        return (
            self.hardware.device.name, self.hardware.purchase, self.hardware.usd_per_hour, replica.tensor_parallel,
            replica.pipeline_parallel, replica.data_parallel, replica.expert_parallel, replica.weights,
            replica.kv_cache, self.stage,
        )  # fmt: skip


#: candidates with how many replicas of each: one pool each, behind one router
Fleet = tuple[tuple[Candidate, int], ...]


def deployment(fleet: Fleet) -> Deployment:
    """Return the deployment of a fleet: one site, a pool for each candidate, the router of the first, techniques.

    Techniques are named, not applied: `sonde.simulate` applies them.
    """
    setting = fleet[0][0].setting
    pools = [
        Pool.model_validate(
            {
                "name": candidate.stage or ("pool" if len(fleet) == 1 else f"pool-{i}"),
                "replicas": replicas,
                "replica": candidate.written or candidate.replica,
                "purchase": candidate.hardware.purchase,
                "usd_per_device_hour": candidate.hardware.usd_per_hour if candidate.hardware.priced_by_hand else None,
            }
        )
        for i, (candidate, replicas) in enumerate(fleet, 1)
    ]
    sites, routing = (Site(pools=tuple(pools)),), Routing(policy=fleet[0][0].routing)
    tree = Deployment(sites=sites, routing=routing, techniques=setting.uses)
    if setting.split is None:
        return tree
    from sonde.techniques.disaggregation import deployment as apart
    from sonde.techniques.disaggregation import link

    alone = pools[0].model_copy(update={"replicas": 1})
    linked = apart(tree.model_copy(update={"sites": (Site(pools=(alone,)),)}), setting.split)
    links = {**linked.links, "hand-over": link(setting.split, tuple(pools))}
    return linked.model_copy(update={"sites": sites, "links": links})


def label(fleet: Fleet) -> str:
    """Return short text such as "2 × h100-sxm tp1 fp8, chunked 2048, batch 64"."""
    return " + ".join(
        f"{replicas} × {candidate.label}{f' ({candidate.stage})' if candidate.stage else ''}"
        for candidate, replicas in fleet
    )


def shape(device: str, replica: Replica, techniques: Sequence[Chosen] = ()) -> str:
    """Return a replica's devices and what it holds under techniques, such as "h100-sxm tp2 w4a8 kv-fp8"."""
    names = ("tensor", "tp"), ("pipeline", "pp"), ("data", "dp"), ("expert", "ep")
    cuts = [
        f"{short}{value}"
        for name, short in names
        if (value := getattr(replica, f"{name}_parallel")) > 1 or (short == "tp" and replica.devices == 1)
    ]
    return f"{device} {' '.join(cuts)} {precision(replica, techniques).short}"


def title(device: str, replica: Replica, techniques: Sequence[Chosen] = (), token_budget: int = 0) -> str:
    """Return a replica's shape and how it forms batches, such as "h100-sxm tp1 fp8, chunked 2048, batch 64".

    `token_budget` is the compiled engine's, where a technique may have chosen another (0: as it is written).
    """
    batching = replica.batching
    budget = "" if batching.policy in BUDGETLESS else f" {token_budget or batching.token_budget}"
    return f"{shape(device, replica, techniques)}, {batching.policy}{budget}, batch {batching.max_batch}"


def price(fleet: Fleet) -> float:
    """Return dollars per hour of all replicas."""
    return round(sum(replicas * candidate.usd_per_hour for candidate, replicas in fleet), 9)


def wired(fleet: Fleet) -> tuple[Engines | Connected, str]:
    """Return what `sonde.sim.engine.run` takes for a fleet, and its routing policy.

    Raises InputError where techniques make no sense of it: a cache that leaves no memory for requests, for one.
    """
    if not fleet[0][0].setting.wires:
        return [(candidate.engine, replicas) for candidate, replicas in fleet], fleet[0][0].routing
    from sonde.sim.layout import connected
    from sonde.techniques.compose import arranged

    tree = arranged(deployment(fleet))
    engines = [(candidate.engine, pool.replicas) for (candidate, _), pool in zip(fleet, tree.pools, strict=True)]
    return connected(tree, engines), tree.routing.policy
