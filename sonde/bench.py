"""How fast Sonde is here. Every case runs in a process of its own, so that its peak memory is its own too.

`measure` runs the cases; `python -m sonde.bench CASE OUT [TRACE]` runs one and writes its row to OUT as JSON.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from sonde.errors import CannotError, unknown
from sonde.units import show

if TYPE_CHECKING:
    from sonde.workload.requests import Requests

PROFILE, REQUESTS, MANY = "azure-conv-2023", 19_366, 10_000_000
REPEATS = 9
_ALONE = ("-m", "sonde.bench")

#: what the simulation cases run on: 4 replicas of an 8B model
REPLICA = {"model": "llama-3.1-8b", "device": "h100-sxm", "batching": {"policy": "chunked", "token_budget": 2048}}
DEPLOYMENT: dict[str, Any] = {"sites": [{"pools": [{"replicas": 4, "replica": REPLICA}]}]}
DISAGGREGATED = DEPLOYMENT | {"techniques": [{"disaggregation": {"prefill": 2, "decode": 2, "bandwidth": "25 GB/s"}}]}
CACHED = DEPLOYMENT | {"techniques": [{"prefix-cache": {"device": "4 GB", "host": "64 GB", "pool": "256 GB"}}]}
#: memory for some 7,000 tokens each, so that it runs short
MIGRATING: dict[str, Any] = {
    "sites": [{"pools": [{"replicas": 3, "replica": REPLICA | {"memory_fraction": 0.215}}]}],
    "techniques": ["live-migration"],
}
LENDING = MIGRATING | {"techniques": ["distributed-attention"]}

#: what the planning case asks: eight kinds of device, and everything that the planner varies by itself
SCENARIO: dict[str, Any] = {
    "model": "llama-3.1-8b",
    "workload": {"profile": PROFILE},
    "objectives": {"ttft": "1 s", "tpot": "100 ms"},
    "hardware": [
        {"device": name, "max": 64}
        for name in ("h100-sxm", "h200-sxm", "b200-sxm", "mi300x", "a100-sxm-80gb", "l40s", "l4", "a10g")
    ],
}


class Row(NamedTuple):
    """One case: per second of wall time, the best of its repeats; memory and CPU time of its whole process."""

    name: str
    requests: int | None
    requests_per_s: float | None
    steps_per_s: float | None
    peak_bytes: int | None
    cpu_s: float | None
    wall_s: float
    candidates: int | None = None

    def cells(self) -> tuple[str, ...]:
        """Return the row as text for a table."""
        counts = ["-" if value is None else f"{value:,.0f}" for value in (self.candidates, *self[1:4])]
        memory = "-" if self.peak_bytes is None else show(self.peak_bytes, "bytes")
        cpu = "-" if self.cpu_s is None else show(self.cpu_s, "time")
        return (self.name, *counts, memory, cpu, show(self.wall_s, "time"))


class Work(NamedTuple):
    """What a case did in `wall_s`: requests and engine steps simulated, and deployments that were tried."""

    requests: int
    steps: int
    wall_s: float
    candidates: int | None = None


def measure(
    trace: Path | None = None,
    *,
    full: bool = False,
    only: Sequence[str] = (),
    progress: Callable[[int, int, str], None] | None = None,
) -> list[Row]:
    """Return a row for every case, or for those named in `only`; `full` adds the ones that take long.

    `trace` is a file to run on; traffic is drawn from the profile azure-conv-2023 where it is absent.
    Raises InputError for a case that there is none of, and CannotError where one fails.
    """
    names = [name for name, case in CASES.items() if full or not case.slow]
    for name in only:
        if name not in CASES:
            raise unknown("--only", name, CASES, "case")
    chosen = list(only) or names
    rows = []
    for i, name in enumerate(chosen):
        if progress:
            progress(i, len(chosen), name)
        rows.append(CASES[name].run(name, trace))
    return rows


def _in_process(name: str, trace: Path | None) -> Row:
    """Return the row that a process of its own writes."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "row.json"
        _run(name, [*_ALONE, name, str(out), *([str(trace)] if trace else [])])
        return Row(**json.loads(out.read_text(encoding="utf-8")))


def _on_many(name: str, trace: Path | None) -> Row:
    """Return the row of a file with the requests of `trace` repeated to 10 million, written before the clock starts."""
    from sonde.workload.requests import repeat

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "many.csv"
        repeat(_requests(trace), MANY).to_csv(file)
        return _in_process(name, file)


def _timed(name: str, trace: Path | None, *, command: Sequence[str], cold: bool = False) -> Row:
    """Return the row of a whole process, the best of a few; `cold` empties its cache of machine code."""
    del trace
    walls = []
    for _ in range(1 if cold else REPEATS):
        with tempfile.TemporaryDirectory() as empty:
            start = time.perf_counter()
            _run(name, command, **({"NUMBA_CACHE_DIR": empty} if cold else {}))
            walls.append(time.perf_counter() - start)
    return Row(name, None, None, None, None, None, min(walls))


def _run(name: str, arguments: Sequence[str], **environment: str) -> None:
    done = subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, check=False, env=os.environ | environment
    )
    if done.returncode:
        raise CannotError(f"{name} failed: {(done.stderr.strip().splitlines() or ['no message'])[-1]}")


def _requests(trace: Path | None) -> Requests:
    from sonde.workload.generate import generate
    from sonde.workload.readers import read

    return read(trace) if trace else generate(PROFILE, count=REQUESTS)


def _fleet(tree: dict[str, Any] = DEPLOYMENT) -> Callable[[Requests], Work]:
    """Return the function that simulates requests on a deployment, all metrics included: compiled and warm."""
    from sonde.deployment.load import load
    from sonde.sim.engine import run
    from sonde.sim.layout import connected
    from sonde.sim.simulate import fleet
    from sonde.techniques.compose import arranged

    deployment = arranged(load(tree))
    engines = connected(deployment, fleet(deployment))

    def simulate(trace: Requests) -> Work:
        start = time.perf_counter()
        summary = run(trace, engines, routing=deployment.routing.policy).summary()
        return Work(trace.n, int(str(summary["steps"])), time.perf_counter() - start)

    simulate(_in_blocks(_few()))
    return simulate


def _few() -> Requests:
    """Return two short requests, on which kernels are compiled."""
    from sonde.workload.requests import requests

    return requests([0.0, 1.0], [8, 8], [4, 4])


def _in_blocks(trace: Requests, tokens: int = 512, conversations: int = 400) -> Requests:
    """Return requests whose prompts have hashed blocks; those of one of so many conversations begin alike."""
    import numpy as np

    if trace.block_tokens:
        return trace
    counts = trace.prompt_tokens.astype(np.int64) // tokens
    start = np.concatenate([[0], np.cumsum(counts)])
    row = np.repeat(np.arange(trace.n), counts)
    within = np.arange(start[-1]) - start[row]
    return trace._replace(
        block_start=start, block_hash=row % conversations + conversations * within, block_tokens=tokens
    )


def _repeated(trace: Path | None, *, tree: dict[str, Any]) -> Work:
    asked, simulate = _in_blocks(_requests(trace)), _fleet(tree)
    return min((simulate(asked) for _ in range(REPEATS)), key=lambda work: work.wall_s)


def _many(trace: Path | None) -> Work:
    simulate, start = _fleet(), time.perf_counter()
    return simulate(_requests(trace))._replace(wall_s=time.perf_counter() - start)


def _first(trace: Path | None) -> Work:
    del trace
    return _fleet()(_few())


def _plan(trace: Path | None) -> Work:
    from sonde.plan.planner import plan

    asked = _requests(trace)
    _fleet()  # machine code is made before the clock starts
    start = time.perf_counter()
    result = plan(SCENARIO, trace=asked)
    return Work(result.requests_simulated, 0, time.perf_counter() - start, result.candidates)


class Case(NamedTuple):
    """How a case is run, what its own process does (where it has one), and whether it takes long."""

    run: Callable[[str, Path | None], Row]
    work: Callable[[Path | None], Work] | None = None
    slow: bool = False


_FIRST = (*_ALONE, "first simulation", os.devnull)
CASES: dict[str, Case] = {
    "colocated, chunked": Case(_in_process, partial(_repeated, tree=DEPLOYMENT)),
    "disaggregated": Case(_in_process, partial(_repeated, tree=DISAGGREGATED)),
    "cached, three tiers": Case(_in_process, partial(_repeated, tree=CACHED)),
    "migrating": Case(_in_process, partial(_repeated, tree=MIGRATING)),
    "lending": Case(_in_process, partial(_repeated, tree=LENDING)),
    "plan": Case(_in_process, _plan),
    "sonde --help": Case(partial(_timed, command=("-m", "sonde", "--help"))),
    "first simulation": Case(partial(_timed, command=_FIRST), _first),
    "first simulation, compiling": Case(partial(_timed, command=_FIRST, cold=True), slow=True),
    "10 million, file to summary": Case(_on_many, _many, slow=True),
}


def _peak_bytes() -> int | None:
    """Return the peak memory of this process alone (Linux counts the parent's in `ru_maxrss`)."""
    status = Path("/proc/self/status")
    if status.exists():
        found = re.search(r"VmHWM:\s+(\d+) kB", status.read_text(encoding="ascii"))
        return int(found.group(1)) * 1024 if found else None
    if sys.platform == "darwin":
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return None


def _child(name: str, trace: Path | None) -> Row:
    work = CASES[name].work
    if work is None:
        raise unknown("CASE", name, [name for name, case in CASES.items() if case.work], "case")
    done = work(trace)
    steps = done.steps / done.wall_s if done.steps else None
    cpu = time.process_time()
    return Row(
        name, done.requests, done.requests / done.wall_s, steps, _peak_bytes(), cpu, done.wall_s, done.candidates
    )


if __name__ == "__main__":
    _case, _out, *_trace = sys.argv[1:]
    _row = _child(_case, Path(_trace[0]) if _trace else None)
    Path(_out).write_text(json.dumps(_row._asdict()), encoding="utf-8")
