"""The small engine in torch: paged, continuous, chunked, and the logits are those of each sequence alone."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="needs torch: pip install 'sonde[run]'")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from sonde.errors import CannotError  # noqa: E402
from sonde.learn.decoder import Decoder, Shape  # noqa: E402
from sonde.learn.serving import PAGE, Job, Limits, Pages, Span, hybrid, serve  # noqa: E402
from sonde.learn.study import one_thread  # noqa: E402
from sonde.policies.batching import POLICIES  # noqa: E402

SHAPE = Shape(layers=2, hidden=64, heads=4, inner=96, repeats=2)


def decoder(seed=0):
    torch.manual_seed(seed)
    return Decoder(SHAPE).double().eval()


def jobs_of(lengths, seed=1):
    draws = torch.Generator().manual_seed(seed)
    return [Job(torch.randint(256, (n,), generator=draws), outputs, after) for n, outputs, after in lengths]


def alone(model, job):
    """Run one sequence without pages, chunks or neighbours: the whole text anew for every token."""
    text, found = job.prompt, []
    with torch.inference_mode(), one_thread():
        for _ in range(job.outputs):
            found.append(model(text[None])[0, -1])
            text = torch.cat((text, found[-1].argmax()[None]))
    return found


@settings(deadline=None, max_examples=12)
@given(
    lengths=st.lists(st.tuples(st.integers(1, 70), st.integers(1, 5), st.integers(0, 8)), min_size=1, max_size=5),
    policy=st.sampled_from(sorted(POLICIES)), budget=st.integers(3, 90), batch=st.integers(1, 5),
    pages=st.integers(6, 30),
)  # fmt: skip
def test_logits_are_those_of_each_sequence_alone(lengths, policy, budget, batch, pages):
    model, jobs = decoder(), jobs_of(lengths)
    with one_thread():
        answers = serve(model, jobs, Limits(policy, budget, batch, pages))
    for job, answer in zip(jobs, answers, strict=True):
        expected = alone(model, job)
        assert len(answer.tokens) == job.outputs
        assert answer.times == sorted(answer.times)
        torch.testing.assert_close(torch.stack(answer.logits), torch.stack(expected), rtol=1e-9, atol=1e-11)


def test_a_chunk_that_forgets_what_came_before_is_seen():
    """The control: what the comparison above would find if chunks broke attention."""
    model, (job,) = decoder(), jobs_of([(40, 1, 0)])
    pages = Pages(SHAPE, 4, torch.float64)
    pages.take(0, 40)
    with torch.inference_mode(), one_thread():
        hybrid(model, pages, job.prompt[:20], [Span(0, 0, 20)])
        pages.keys.zero_()
        broken = hybrid(model, pages, job.prompt[20:], [Span(0, 20, 20)])
    assert (broken[0] - alone(model, job)[0]).abs().max() > 1e-3


def test_pages_lie_anywhere_and_come_back():
    pages = Pages(SHAPE, 5)
    assert pages.take(0, PAGE + 1)
    assert pages.take(1, 2 * PAGE)
    assert not pages.take(2, 2 * PAGE)
    pages.give(0)
    assert pages.take(2, 3 * PAGE)
    held = pages.slots[2]
    assert sorted((held // PAGE).unique().tolist()) == sorted(pages.held[2])
    assert not set(held.tolist()) & set(pages.slots[1].tolist())
    pages.give(1)
    pages.give(2)
    assert sorted(pages.free) == list(range(5))


def test_chunks_keep_decoding_in_every_step_and_whole_prompts_do_not():
    """Time is the number of tokens computed so far: a gap is as long as the steps between two tokens are large."""
    jobs = jobs_of([(4, 30, 0), (4, 30, 0), (120, 2, 10)])
    gaps = {}
    for policy in ("chunked", "prefill-first"):
        computed = Clock()
        limits = Limits(policy, 16 if policy == "chunked" else 1000)
        with one_thread():
            answers = serve(computed.of(decoder()), jobs, limits, computed)
        gaps[policy] = max(gap for answer in answers[:2] for gap in answer.gaps)
    assert gaps["chunked"] <= 16
    assert gaps["prefill-first"] >= 120


class Clock:
    """Counts tokens that went through a decoder."""

    def __init__(self):
        self.tokens = 0

    def of(self, model):
        model.embedding.register_forward_hook(lambda _module, inputs, _output: self.count(len(inputs[0])))
        return model

    def count(self, tokens):
        self.tokens += tokens

    def __call__(self):
        return float(self.tokens)


def test_what_does_not_fit_is_refused():
    with pytest.raises(CannotError, match="does not fit"):
        serve(decoder(), jobs_of([(60, 10, 0)]), Limits(pages=4))
