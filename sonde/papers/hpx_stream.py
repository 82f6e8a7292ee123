"""STREAM through one description of its kernels: as fast as native code, on every back end that is here."""

from __future__ import annotations

from collections.abc import Iterator

from sonde.calibrate.machine.backends import backends
from sonde.calibrate.machine.facts import Facts, facts, free_bytes
from sonde.calibrate.machine.gpu import missing, triton_backend, triton_missing
from sonde.calibrate.machine.stream import KERNELS, Rate, best, elements, stream
from sonde.papers.frame import Claim, Paper, Progress, Range, Reproduction, Row, at_least

NATIVE = "C, OpenMP"
#: times that all is tried; visits of every back end in each, and rounds of the four kernels in a visit
ROUNDS, VISITS, REPEATS = 3, 3, 4

CLAIMS = {
    "native": Claim(
        "one description of a kernel is as fast as native code", None, "%",
        "worst of copy, scale, add and triad; the best of 36 rounds, arrays of four times the last-level cache; best "
        "back end over C with OpenMP, each on its best number of threads",
        at_least(95.0), "the description interpreted by numpy, whose triad takes two passes: the same share",
        Range(high=100.0), recalled=True,
    ),
    "touch": Claim(
        "arrays that are first touched by the threads that use them are faster", None, "×",
        "triad on several NUMA nodes, beside arrays that one thread touched", at_least(1.1), recalled=True,
    ),
    "gpu": Claim(
        "one description is as fast as native code on a GPU", None, "%", "triad by triton over torch's own kernel",
        at_least(95.0), recalled=True,
    ),
}  # fmt: skip


def reproduce(progress: Progress) -> Reproduction:
    """Return what comes of every claim, measured now on this machine."""
    said = facts()
    count, remark = elements(said.last_cache, free_bytes())
    rounds: list[list[Rate]] = []
    for turn in range(ROUNDS):
        progress(turn, ROUNDS, "STREAM on every back end")
        listed, absent = backends(said.cores, touches=said.numa_nodes > 1)
        rates: list[Rate] = []
        for visit in range(VISITS):
            order = listed[::-1] if visit % 2 else listed  # what else runs for a while falls on none of them alone
            rates += [rate for backend in order for rate in stream(backend, count, repeats=REPEATS)]
        rounds.append(rates)
    notes = [*_notes(rounds, said), *([remark] if remark else []), *(f"{what}: {why}" for what, why in absent)]
    return Reproduction((_native(rounds), _touch(rounds, said), _gpu()), tuple(notes))


def share(rates: list[Rate], names: set[str]) -> float:
    """Return the best rate of the back ends `names` over that of native code in percent, of the worst kernel."""
    shares = []
    for kernel in KERNELS:
        ours = best([rate for rate in rates if rate.backend in names], kernel.name)
        native = best([rate for rate in rates if rate.backend == NATIVE], kernel.name)
        if ours is not None and native is not None:
            shares.append(100 * ours.bytes_per_s / native.bytes_per_s)
    return min(shares, default=0.0)


def _native(rounds: list[list[Rate]]) -> Row:
    claim = CLAIMS["native"]
    if not any(rate.backend == NATIVE for rate in rounds[0]):
        return claim.not_run("no C compiler with OpenMP is here to compare with")
    each = [share(rates, {"numba", "torch"}) for rates in rounds]
    together = [rate for rates in rounds for rate in rates]
    why = (
        "the paper's abstraction is C++ with HPX; ours is compiled by numba, or one operator of torch; "
        f"each of {len(rounds)} tries alone: {min(each):.0f} to {max(each):.0f} %"
    )
    return claim.came_out(share(together, {"numba", "torch"}), why, control=share(together, {"numpy"}))


def _touch(rounds: list[list[Rate]], said: Facts) -> Row:
    if said.numa_nodes < 2:
        return CLAIMS["touch"].not_run("this machine has one NUMA node: all memory is as near")
    gains = []
    for rates in rounds:
        own, one = (
            best([r for r in rates if r.touch == touch and r.backend == "numba" and r.threads > 1], "triad")
            for touch in ("own", "one")
        )
        gains.append(own.bytes_per_s / one.bytes_per_s if own and one else 0.0)
    return CLAIMS["touch"].came_out(gains, "the same kernel of numba, on all cores")


def _gpu() -> Row:
    if why := missing() or triton_missing():
        return CLAIMS["gpu"].not_run(why)
    from sonde.calibrate.machine.backends import torch_backend
    from sonde.calibrate.machine.gpu import last_cache
    from sonde.calibrate.machine.stream import Backend

    native = torch_backend(1, device="cuda")
    shares = []
    for _ in range(ROUNDS):
        pair = [backend for backend in (triton_backend(), native) if isinstance(backend, Backend)]
        ours, theirs = (best(stream(backend, 4 * last_cache() // 8), "triad") for backend in pair)
        shares.append(100 * ours.bytes_per_s / theirs.bytes_per_s if ours and theirs else 0.0)
    return CLAIMS["gpu"].came_out(shares, "torch's kernel stands for CUDA's STREAM")


def _notes(rounds: list[list[Rate]], said: Facts) -> Iterator[str]:
    rates = [rate for turn in rounds for rate in turn]
    for name in dict.fromkeys(rate.backend for rate in rates):
        tops = [best([rate for rate in rates if rate.backend == name], kernel.name) for kernel in KERNELS]
        shown = ", ".join(f"{top.kernel} {top.bytes_per_s / 1e9:.1f} GB/s on {top.threads}" for top in tops if top)
        yield f"{name}: {shown} of {said.cores} cores; results checked."


PAPER = Paper(
    "hpx-stream", "Closing the Performance Gap with Modern C++", 2016, "ISC workshops",
    "https://doi.org/10.1007/978-3-319-46079-6_2", CLAIMS, reproduce, measured=True,
)  # fmt: skip
