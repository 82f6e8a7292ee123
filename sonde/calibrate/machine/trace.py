"""From a profiler's trace to kernels, each with the operator that asked for it and the time until it began.

Reads the Chrome trace that torch.profiler writes, of a CPU or of a GPU. Definitions are those of SKIP ("CPU-GPU
Coupled Architectures", arXiv 2504.11750):

    launch and queue of kernel j   t_begin(kernel j) - t_begin(its launch)
    TKLQT                          the sum of these over all kernels
    latency                        t_end(last kernel) - t_begin(first operator)

On a GPU the launch is a call of the CUDA runtime with the kernel's correlation number. On a CPU nothing is queued:
the launch is the operator that was called, the kernel the innermost operator with work that it ends up in, so that
what passes between the two is dispatch alone.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sonde.errors import InputError

DEVICE = ("kernel", "gpu_memcpy", "gpu_memset")
RUNTIME = ("cuda_runtime", "cuda_driver")

#: operators that only describe memory: they are part of dispatch, whether they stand alone or inside another
WITHOUT_WORK = frozenset(
    f"aten::{name}"
    for name in (
        "as_strided", "view", "_unsafe_view", "reshape", "_reshape_alias", "transpose", "t", "permute", "expand",
        "slice", "select", "narrow", "split", "split_with_sizes", "chunk", "unsqueeze", "squeeze", "detach", "alias",
        "empty", "empty_strided", "empty_like", "result_type", "resolve_conj", "resolve_neg", "lift_fresh", "unbind",
        "resize_", "set_", "item", "_local_scalar_dense", "is_nonzero", "detach_",
    )
)  # fmt: skip


class Event(NamedTuple):
    """A complete event ("ph": "X") of a trace; times in seconds."""

    name: str
    category: str
    begin_s: float
    end_s: float
    thread: str
    correlation: int


class Kernel(NamedTuple):
    """One kernel: its name, the outermost operator that asked for it, and when it was launched, began and ended."""

    name: str
    operator: str
    launched_s: float
    begin_s: float
    end_s: float

    @property
    def waited_s(self) -> float:
        """Return the time from its launch to its begin."""
        return self.begin_s - self.launched_s


class Trace(NamedTuple):
    """The kernels in the order in which they began, when the first operator began, and time spent in operators."""

    kernels: tuple[Kernel, ...]
    begin_s: float
    operators: int
    operator_s: float
    on_gpu: bool


class Summary(NamedTuple):
    """What a trace says of a step. All in seconds.

    launch_s   the part of `tklqt_s` that every kernel pays (their number times the shortest wait); queue_s the rest
    idle_s     of the device, between the first operator's begin and the last kernel's end
    host_idle_s  of the host, in the same time: no operator ran
    """

    kernels: int
    tklqt_s: float
    launch_s: float
    queue_s: float
    kernel_s: float
    latency_s: float
    idle_s: float
    host_idle_s: float
    top: tuple[tuple[str, int, float], ...]


def read(source: Path | str | Mapping[str, Any]) -> Trace:
    """Return the kernels of a trace: a file, or what is in one. Raises InputError where it is no trace, or is empty."""
    data = source if isinstance(source, Mapping) else _json(Path(source))
    name = "trace" if isinstance(source, Mapping) else str(source)
    listed = data.get("traceEvents")
    if not isinstance(listed, list):
        raise InputError(f"{name}.traceEvents", type(listed).__name__, "must be a list of events: no Chrome trace")
    events = [_event(raw, f"{name}.traceEvents[{i}]") for i, raw in enumerate(listed) if _complete(raw)]
    working = (e for e in events if e.category == "cpu_op" and e.name not in WITHOUT_WORK)
    operators = sorted(working, key=lambda e: (e.begin_s, -e.end_s))
    if not operators:
        raise InputError(f"{name}.traceEvents", len(listed), "has no operators (category cpu_op): nothing to trace")
    outer, leaves = _nest(operators)
    device = [e for e in events if e.category in DEVICE]
    kernels = _launched(events, device, outer) if device else _dispatched(leaves)
    first = min(e.begin_s for e in outer)
    spent = sum(e.end_s - e.begin_s for e in outer)
    return Trace(tuple(sorted(kernels, key=lambda k: k.begin_s)), first, len(operators), spent, bool(device))


def summary(trace: Trace, *, top: int = 5) -> Summary:
    """Return TKLQT, its parts, and idle time, with the `top` kernels by time: (name, how many, seconds)."""
    kernels = trace.kernels
    waits = [kernel.waited_s for kernel in kernels]
    busy = sum(kernel.end_s - kernel.begin_s for kernel in kernels)
    latency = max((kernel.end_s for kernel in kernels), default=trace.begin_s) - trace.begin_s
    launch = len(waits) * min(waits, default=0.0)
    spent: Counter[str] = Counter()
    for kernel in kernels:
        spent[kernel.name] += kernel.end_s - kernel.begin_s  # type: ignore[assignment]
    count = Counter(kernel.name for kernel in kernels)
    return Summary(
        len(kernels), sum(waits), launch, sum(waits) - launch, busy, latency, latency - busy,
        max(latency - trace.operator_s, 0.0),
        tuple((name, count[name], float(seconds)) for name, seconds in spent.most_common(top)),
    )  # fmt: skip


def _nest(operators: Sequence[Event]) -> tuple[list[Event], list[tuple[Event, Event]]]:
    """Return the outermost operators, and every innermost one with the outermost that it is in, thread by thread.

    `operators` are in the order of their begin, of those that begin together the longest first.
    """
    outer: list[Event] = []
    inner: list[tuple[Event, Event]] = []
    stacks: dict[str, list[Event]] = {}
    parents: set[int] = set()
    placed: list[tuple[Event, Event]] = []
    for event in operators:
        stack = stacks.setdefault(event.thread, [])
        while stack and stack[-1].end_s < event.end_s:
            stack.pop()
        if stack:
            parents.add(id(stack[-1]))
        else:
            outer.append(event)
        placed.append((event, stack[0] if stack else event))
        stack.append(event)
    inner = [(event, root) for event, root in placed if id(event) not in parents]
    return outer, inner


def _dispatched(leaves: Sequence[tuple[Event, Event]]) -> list[Kernel]:
    """Return kernels of a CPU: a leaf waited since its outermost operator began, or since the leaf before it ended."""
    found: list[Kernel] = []
    before: dict[int, float] = {}
    for leaf, root in leaves:
        launched = before.get(id(root), root.begin_s)
        found.append(Kernel(leaf.name, root.name, min(launched, leaf.begin_s), leaf.begin_s, leaf.end_s))
        before[id(root)] = leaf.end_s
    return found


def _launched(events: Sequence[Event], device: Sequence[Event], outer: Sequence[Event]) -> list[Kernel]:
    """Return kernels of a GPU by the correlation number of their launch; those without a launch are left out."""
    launches = {e.correlation: e for e in events if e.category in RUNTIME and e.correlation >= 0}
    roots = sorted(outer, key=lambda e: e.begin_s)
    found = []
    for event in device:
        launch = launches.get(event.correlation)
        if launch is not None:
            root = next(
                (r for r in reversed(roots) if r.thread == launch.thread and r.begin_s <= launch.begin_s <= r.end_s),
                None,
            )
            found.append(Kernel(event.name, root.name if root else "", launch.begin_s, event.begin_s, event.end_s))
    return found


def _complete(raw: object) -> bool:
    return isinstance(raw, Mapping) and raw.get("ph") == "X" and "ts" in raw and "dur" in raw


def _event(raw: Mapping[str, Any], path: str) -> Event:
    arguments = raw.get("args") or {}
    try:
        begin, length = float(raw["ts"]) * 1e-6, float(raw["dur"]) * 1e-6
        correlation = int(arguments.get("correlation", -1))
    except (TypeError, ValueError, AttributeError) as error:
        raise InputError(path, str(raw)[:80], f"must have numbers for ts, dur and correlation ({error})") from None
    thread = f"{raw.get('pid')}:{raw.get('tid')}"
    return Event(str(raw.get("name", "")), str(raw.get("cat", "")), begin, begin + length, thread, correlation)


def _json(path: Path) -> Mapping[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError("trace", str(path), f"cannot be read: {error.strerror}") from None
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise InputError(str(path), "text", f"must be JSON, as torch.profiler writes it ({error})") from None
    return data if isinstance(data, Mapping) else {"traceEvents": data}
