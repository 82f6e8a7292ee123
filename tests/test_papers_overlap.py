"""NanoFlow and EnergonAI: what is simulated comes out; what is run for real is right whatever it is timed at."""

from __future__ import annotations

import importlib.util
import multiprocessing
from collections import deque
from contextlib import contextmanager

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sonde.errors import CannotError
from sonde.papers import energonai, nanoflow
from sonde.papers.frame import shelf

TORCH = importlib.util.find_spec("torch") is not None
needs_torch = pytest.mark.skipif(not TORCH, reason="needs torch: pip install 'sonde[run]'")


def by_name(paper, rows):
    names = {claim.text: name for name, claim in paper.CLAIMS.items()}
    return {names[row.claim.text]: row for row in rows}


def untold(*_):
    pass


def test_nanoflow_comes_out_on_its_own_hardware():
    found, notes = nanoflow._simulated()
    rows = by_name(nanoflow, found)
    assert all(row.holds for row in rows.values()), [(row.claim.text, row.ours, row.control) for row in found]
    assert 1.1 < rows["gain"].ours < 1.2
    assert rows["gain"].spread[0] < rows["gain"].spread[1]
    assert rows["gain"].control == pytest.approx(1)
    assert rows["alike"].ours == pytest.approx(1)
    assert rows["cut"].ours > 0 > rows["cut"].control
    assert len(notes) == 1 + len(nanoflow.STATED)
    gains = [float(word.split()[0]) for word in notes[0].split(": ")[1].split(", ")]
    assert 1.05 < gains[2] < gains[1] < gains[0] < 1.3


def test_energonai_comes_out_on_a100s():
    rows = by_name(energonai, [energonai._padding(), energonai._stages(), *energonai._peer()])
    assert all(row.holds for row in rows.values()), [(row.claim.text, row.ours, row.control) for row in rows.values()]
    assert rows["stages"].ours == pytest.approx(4, rel=0.01)
    assert rows["peer"].control > 20 > rows["peer"].ours


@pytest.mark.parametrize("name", ["nanoflow", "energonai"])
def test_without_torch_what_is_simulated_is_tried_and_the_rest_says_what_it_needs(name, monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda found, *rest: None if found == "torch" else real(found, *rest)
    )
    monkeypatch.setattr(nanoflow, "COUNT", 300)
    rows = shelf.reproduce(name).rows
    lacking = [row for row in rows if row.ours is None]
    assert lacking
    assert all("sonde[run]" in row.why and not row.holds for row in lacking)
    assert {row.claim.text for row in rows} == {claim.text for claim in shelf.paper(name).claims.values()}


@needs_torch
def test_on_a_busy_machine_nothing_is_said_of_what_runs_at_once(monkeypatch):
    from sonde.learn import pipeline_corun

    class Busy:
        def free(self, *_):
            return 1.07

    @contextmanager
    def pair():
        yield Busy()

    monkeypatch.setattr(pipeline_corun, "pair", pair)
    for rows in (nanoflow._measured()[0], energonai._processes(untold)):
        assert rows
        assert all(row.ours is None and "1.07 times" in row.why for row in rows)


# --- two stages by arithmetic


def flow_twin(rows, *, wait):
    """Moment by moment, in whole rows: what each of two stages does, and when it hands over."""
    left, queue, one, two, now, done = deque(rows), deque(), None, None, 0, 0
    while done < len(rows):
        if two is not None and two[1] == 0:
            two, done = None, done + 1
        if one is not None and one[1] == 0 and not wait:
            queue.append(one[0])
            one = None
        if two is None and queue:
            count = queue.popleft()
            two = [count, count]
        if two is None and wait and one is not None and one[1] == 0:
            two, one = [one[0], one[0]], None
        if one is None and left:
            count = left.popleft()
            one = [count, count]
        if done == len(rows):
            return now
        for stage in (one, two):
            if stage is not None and stage[1] > 0:
                stage[1] -= 1
        now += 1
    return now


@given(rows=st.lists(st.integers(1, 6), min_size=1, max_size=8), wait=st.booleans())
def test_the_flow_through_two_stages_is_that_of_every_moment(rows, wait):
    assert energonai._flow(rows, wait=wait) == flow_twin(rows, wait=wait)
    assert energonai._flow(rows, wait=False) <= energonai._flow(rows, wait=True)


def test_batches_alike_lose_nothing_by_waiting():
    assert energonai._flow([5] * 10, wait=True) == energonai._flow([5] * 10, wait=False) == 55


# --- for real


@needs_torch
def test_every_way_of_handing_over_gives_the_same_in_the_same_order():
    import torch

    from sonde.learn.pipeline import Job, Layers, alone, run

    layers = Layers((1, 2), 32)
    batches = [torch.randn(n, 32) for n in (3, 1, 7, 2, 5, 4, 6, 1)]
    ran = run(layers, [Job(batches, mode) for mode in ("one", "blocking", "non-blocking")])
    for one in ran:
        assert one.rows_per_s > 0
        for made, truth in zip(one.outputs, alone(layers, batches), strict=True):
            torch.testing.assert_close(made, truth)
    assert not multiprocessing.active_children()


@needs_torch
@pytest.mark.parametrize("seed", range(3))
def test_packing_changes_no_output(seed):
    import torch

    from sonde.learn.pipeline_padding import HIDDEN, Block, paragraphs

    lengths = paragraphs(seed, 5)
    most = int(lengths.max())
    places = torch.cat([i * most + torch.arange(int(n)) for i, n in enumerate(lengths)])
    x = torch.zeros(5 * most, HIDDEN)
    x[places] = torch.randn(len(places), HIDDEN)
    block = Block(seed).eval()
    with torch.inference_mode():
        whole = block.padded(x.view(5, most, HIDDEN)).reshape(-1, HIDDEN)[places]
        torch.testing.assert_close(block.packed(x[places], places, (5, most)), whole)
        moved = block.packed(x[places], (places + 1) % (5 * most), (5, most))
    assert not torch.allclose(moved, whole)


@needs_torch
def test_lengths_are_those_of_real_paragraphs():
    from sonde.learn.pipeline_padding import LONGEST, SHORTEST, paragraphs

    assert (paragraphs(0, 50) == paragraphs(0, 50)).all()
    assert SHORTEST <= paragraphs(1, 50).min() < paragraphs(1, 50).max() <= LONGEST


@needs_torch
def test_fetched_layers_give_what_layers_that_are_there_give():
    from sonde.learn.pipeline_swap import Network, run

    networks = [Network(7, 16, 4, every, ahead, 1e-4) for every, ahead in ((3, 0), (3, 1), (3, 5), (1, 2), (2, 2))]
    found = run(networks, 3)
    assert all(one.same for one in found)
    assert all(one.fetch_s >= 1e-4 for one in found)
    assert [network.buffers for network in networks] == [1, 1, 2, 3, 2]
    assert not multiprocessing.active_children()


class Recorded:
    """The end of a process that does each piece at once, and remembers which."""

    def __init__(self):
        self.done = []

    def send(self, message):
        self.done.append(message)

    def poll(self, _):
        return True

    def recv(self):
        return 1.0


@needs_torch
def test_pieces_are_dealt_out_in_order_and_reads_stay_on_one_core(monkeypatch):
    from sonde.learn import pipeline_corun
    from sonde.learn.pipeline_corun import Pair, Stage

    monkeypatch.setattr(pipeline_corun, "wait", lambda ends, _: list(ends))
    ends = [Recorded(), Recorded()]
    chain = [Stage("compute", 3), Stage("memory", 2), Stage("compute", 1)]
    turns = {"compute": [(0, 0, 0), (0, 1, 0), (0, 0, 2), (0, 1, 2)], "memory": [(0, 0, 1), (0, 1, 1)]}
    Pair(ends).overlapped([chain, chain], turns)
    kinds = [[kind for _, kind, _ in end.done] for end in ends]
    assert "memory" not in kinds[0]
    assert kinds[1].count("memory") == 4
    assert (kinds[0] + kinds[1]).count("compute") == 8
    first = kinds[1].index("memory")
    assert kinds[0][:2] + kinds[1][:first] == ["compute"] * (2 + first)


@needs_torch
def test_two_processes_run_what_they_are_asked_for_and_end():
    from sonde.learn.pipeline_corun import KINDS, Stage, pair

    with pair() as two:
        rates = two.best(1, 0.01)
        assert all(rates.reached(kind) > 0 for kind in KINDS)
        assert two.free(0.0, 1e9) > 0
        chain = [Stage("compute", 2), Stage("memory", 1)]
        assert two.sequential(chain, 1) > 0
        assert two.overlapped([chain], {"compute": [(0, 0, 0)], "memory": [(0, 0, 1)]}) > 0
    assert not multiprocessing.active_children()


@needs_torch
def test_a_process_that_never_answers_is_an_error_and_not_a_wait_for_ever(monkeypatch):
    from sonde.learn import pipeline, pipeline_corun

    monkeypatch.setattr(pipeline, "PATIENCE", 0.01)
    monkeypatch.setattr(pipeline_corun, "PATIENCE", 0.01)
    with pytest.raises(CannotError, match="did not answer"):
        pipeline.wait(multiprocessing.get_context("spawn").Semaphore(0))
    near, _ = multiprocessing.Pipe()
    with pytest.raises(CannotError, match="did not answer"):
        pipeline_corun._answer(near)


@needs_torch
def test_measured_interference_is_a_curve():
    from sonde.learn.pipeline_corun import Rates

    rates = Rates({"compute": 100.0, "memory": 80.0}, {"compute": 50.0, "memory": 60.0},
                  {"compute": 48.0, "memory": 52.0})  # fmt: skip
    table = nanoflow._table(rates)
    assert table.speed("compute", 0.5) == 0.48
    assert table.speed("memory", 0.5) == 0.65
    assert table.speed("memory", np.float64(1.0)) == 1.0
