"""Every candidate, on threads: what cannot hold is pruned, the others get their fewest replicas by simulation."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import MISSING, dataclass, fields
from hashlib import sha256

import numpy as np

from sonde.metrics import Objective, Outcome
from sonde.plan.bounds import Need, replicas_needed
from sonde.plan.dollars import kinds
from sonde.plan.explain import Failure, explain, holds
from sonde.plan.fleet import Candidate, Fleet, deployment, label, price
from sonde.plan.prune import impossible
from sonde.plan.result import Rejection
from sonde.plan.search import fewest
from sonde.units import show
from sonde.workload.requests import Requests

#: (fleet, stop early) -> what happens
Evaluate = Callable[[Fleet, bool], Outcome]
Progress = Callable[[int, int, str], None]

_KEPT_BYTES = 512e6  # outcomes beyond this are simulated again when they are looked at
_BYTES_A_REQUEST = 40
_TICK_S = 0.1


class _Recalled(Outcome):
    """An outcome that was not kept: the same run is made again when one of its columns is read."""

    def __init__(self, outcome: Outcome, again: Callable[[], Outcome]) -> None:
        small = {item.name: getattr(outcome, item.name) for item in fields(Outcome) if item.default is not MISSING}
        vars(self).update(small, _again=again)

    def __getattr__(self, name: str) -> object:
        if name not in Outcome.__dataclass_fields__:
            raise AttributeError(name)
        vars(self).update(vars(vars(self)["_again"]()))
        return vars(self)[name]


@dataclass(frozen=True, eq=False)
class Found:
    """A fleet that holds, of the fewest replicas that do. `digest` stands for the times of every request."""

    fleet: Fleet
    summary: Mapping[str, object]
    outcome: Outcome
    digest: str

    @property
    def usd_per_hour(self) -> float:
        """Return dollars per hour of all replicas."""
        return price(self.fleet)

    @property
    def label(self) -> str:
        """Return short text that names the fleet."""
        return label(self.fleet)


class Sweep:
    """The search over all candidates: lives while it runs, and keeps what it has found if it is stopped."""

    def __init__(self, trace: Requests, objectives: Sequence[Objective], evaluate: Evaluate) -> None:
        self.trace, self.objectives, self.evaluate = trace, tuple(objectives), evaluate
        self.found: list[Found] = []
        self.rejected: list[Rejection] = []
        self.best: tuple[float, str] | None = None  # how far off, and in words
        self.simulated = 0  # candidates that no proof ruled out
        self.simulations = 0
        self.requests_simulated = 0
        self.done = 0
        self._kept_bytes = 0.0
        self._lock = threading.Lock()
        self._stop = threading.Event()

    def run(self, candidates: Sequence[Candidate], progress: Progress | None = None, threads: int = 0) -> bool:
        """Work through all candidates and return whether that was interrupted (KeyboardInterrupt).

        Candidates that differ in batching alone follow each other on one thread, for the fewest replicas of one
        are a good guess for the next; families run side by side, the cheapest first.
        """
        families: dict[tuple[object, ...], list[Candidate]] = {}
        for candidate in candidates:
            families.setdefault(candidate.family, []).append(candidate)
        order = sorted(families.values(), key=lambda family: family[0].engine.usd_per_hour)
        pool = ThreadPoolExecutor(threads or os.cpu_count() or 1)
        waiting: set[Future[None]] = {pool.submit(self._family, family) for family in order}
        interrupted = False
        try:
            while waiting:
                ended, waiting = wait(waiting, _TICK_S, FIRST_COMPLETED)
                for future in ended:
                    future.result()
                if progress is not None:
                    progress(self.done, len(candidates), self._text())
        except KeyboardInterrupt:
            interrupted = True
        finally:
            self._stop.set()
            pool.shutdown(wait=True, cancel_futures=True)
        return interrupted

    def _text(self) -> str:
        with self._lock:
            best = min(self.found, key=lambda item: item.usd_per_hour, default=None)
            runs = f"{self.simulations:,} simulations"
        return f"{runs}, best ${best.usd_per_hour:,.2f}/h" if best else runs

    def _family(self, family: Sequence[Candidate]) -> None:
        guess = 0
        low, need = self._floor(family)
        for candidate in family:
            if self._stop.is_set():
                return
            if low > candidate.most:
                self._reject(candidate, _too_few(candidate, low, need))
            else:
                guess = self._candidate(candidate, low, guess) or guess
            with self._lock:
                self.done += 1

    def _floor(self, family: Sequence[Candidate]) -> tuple[int, Need | None]:
        """Return the fewest replicas that any of a family needs, and what shows it."""
        first = family[0]
        found = [
            replicas_needed(kind.engine, self.trace, self.objectives, any_batching=True, cached=first.cached)
            for kind in kinds(family)
        ]
        low, need = min(found, key=lambda item: item[0])
        return max(first.fewest, -(-low // first.lanes)), need

    def _candidate(self, candidate: Candidate, low: int, guess: int) -> int | None:
        """Prune or search one candidate; return the fewest replicas, or as many as may be where all fail."""
        failure = impossible(candidate.least, self.trace, self.objectives, cached=candidate.cached)
        if failure is not None:
            self._reject(candidate, failure)
            return None
        with self._lock:
            self.simulated += 1
        good: dict[int, Outcome] = {}

        def works(replicas: int) -> bool:
            if self._stop.is_set():
                return False
            outcome = self.simulate(((candidate, replicas),), stop_early=True)
            if not holds(outcome, self.objectives):
                return False
            good.clear()
            good[replicas] = outcome
            return True

        result = fewest(works, low, candidate.most, guess or low)
        if self._stop.is_set():
            return None
        if result.replicas is None:
            outcome = self.simulate(((candidate, candidate.most),), stop_early=False)
            self._reject(candidate, explain(outcome, self.objectives, candidate.engine), candidate.most)
            return candidate.most
        self.keep(((candidate, result.replicas),), good[result.replicas])
        return result.replicas

    def simulate(self, fleet: Fleet, *, stop_early: bool) -> Outcome:
        """Return what happens on a fleet, and count the run."""
        outcome = self.evaluate(fleet, stop_early)
        seen = self.trace.n if not outcome.aborted else int(np.count_nonzero(np.isfinite(outcome.first_token_s)))
        with self._lock:
            self.simulations += 1
            self.requests_simulated += seen
        return outcome

    def keep(self, fleet: Fleet, outcome: Outcome) -> None:
        """Add a fleet that holds to what was found, with its power charged; its columns while there is room."""
        from sonde.sim.simulate import charged

        tree = deployment(fleet)
        outcome = charged(outcome, tree)
        summary = outcome.summary(self.objectives)
        digest = sha256(outcome.first_token_s.tobytes() + outcome.finish_s.tobytes()).hexdigest()
        size = float(self.trace.n * _BYTES_A_REQUEST)
        with self._lock:
            if self._kept_bytes + size > _KEPT_BYTES and self.found:
                outcome = _Recalled(outcome, lambda: charged(self.evaluate(fleet, False), tree))
            else:
                self._kept_bytes += size
            self.found.append(Found(fleet, summary, outcome, digest))

    def _reject(self, candidate: Candidate, failure: Failure | None, replicas: int = 0) -> None:
        name = label(((candidate, replicas),)) if replicas else candidate.label
        if failure is None:  # a run that stops early and one that does not disagree only if the simulator is at fault
            failure = Failure("search", f"{replicas} replicas hold, but one more of the smaller fleets did not", 1.0)
        self.reject(name, failure)

    def reject(self, name: str, failure: Failure | None) -> None:
        """Add what fails to what was turned down, and to what came nearest; nothing where nothing failed."""
        if failure is None:
            return
        with self._lock:
            self.rejected.append(Rejection(name, failure.constraint, failure.reason))
            if self.best is None or failure.ratio < self.best[0]:
                self.best = failure.ratio, f"{name}: {failure.reason}"


def since(start_s: float) -> str:
    """Return "from 2 min on", or "from the start"."""
    return f"from {show(start_s, 'time')} on" if start_s >= 1e-6 else "from the start"


def _too_few(candidate: Candidate, low: int, need: Need | None) -> Failure:
    """Return the reason of a candidate that would need more replicas than there may be."""
    devices = low * candidate.replica.devices
    text = f"at least {devices:,} devices are needed against {candidate.hardware.most:,} allowed"
    if need is not None:
        window = need.peak
        span = show(window.end_s - window.start_s, "time")
        text += (
            f": {since(window.start_s)}, {need.promise.name} leaves {span} for "
            f"{show(window.work, 'time')} of a replica's work"
        )
    return Failure("devices", text, low / candidate.most)
