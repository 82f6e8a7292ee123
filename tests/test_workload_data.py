"""The profiles that come with Sonde against the traces that they were fitted from, which lie beside the project."""

from __future__ import annotations

from pathlib import Path

import pytest

from sonde.workload.describe import describe
from sonde.workload.fidelity import compare
from sonde.workload.generate import generate
from sonde.workload.profile import fit, profile
from sonde.workload.readers import read, read_trace

DATA = Path(__file__).parents[1].parent / "shared" / "data"
TRACES = {
    "azure-conv-2023": ("azure_llm_2023_conv.csv.gz", "azure", 19_366),
    "azure-code-2023": ("azure_llm_2023_code.csv.gz", "azure", 8_819),
    "mooncake-conversation": ("mooncake_conversation.jsonl.gz", "mooncake", 12_031),
    "mooncake-synthetic": ("mooncake_synthetic.jsonl.gz", "mooncake", 3_993),
}
pytestmark = [
    pytest.mark.data,
    pytest.mark.skipif(not DATA.is_dir(), reason=f"the measurements are not beside the project ({DATA})"),
]


@pytest.mark.parametrize("name", TRACES)
def test_traces_are_read_whole(name: str) -> None:
    file, form, count = TRACES[name]
    found = read_trace(DATA / "traces" / file)
    assert (found.format, found.requests.n, found.dropped) == (form, count, 0)
    assert found.requests.arrival_s[0] == 0


@pytest.mark.parametrize("name", TRACES)
def test_drawn_traffic_is_like_its_trace(name: str) -> None:
    trace = read(DATA / "traces" / TRACES[name][0])
    wrong = [row for row in compare(trace, name, seeds=(0, 1, 2)) if not row.alike]
    assert not wrong


@pytest.mark.parametrize("name", TRACES)
def test_the_profiles_are_what_fit_makes_of_the_traces(name: str) -> None:
    known = profile(name)
    fitted = fit(read(DATA / "traces" / TRACES[name][0]), name, known.source, known.date)
    assert fitted.lengths == known.lengths
    assert fitted.arrivals.edges_s == pytest.approx(known.arrivals.edges_s)
    assert fitted.arrivals.per_s == pytest.approx(known.arrivals.per_s)
    assert fitted.arrivals.shape == pytest.approx(known.arrivals.shape)
    assert fitted.prefix == known.prefix


@pytest.mark.parametrize("name", ["mooncake-conversation", "mooncake-synthetic"])
def test_drawn_prefixes_are_shared_as_in_the_trace(name: str) -> None:
    trace = describe(read(DATA / "traces" / TRACES[name][0])).prefix
    drawn = describe(generate(name, seed=0, hashes=True)).prefix
    assert trace is not None
    assert drawn is not None
    assert drawn["seen_before_share"] == pytest.approx(trace["seen_before_share"], abs=0.03)
    assert drawn["requests_sharing_share"] == pytest.approx(trace["requests_sharing_share"], abs=0.03)


@pytest.mark.parametrize("gpu", ["RTX4090", "RTXPRO6000"])
def test_requests_of_a_real_run_are_read(gpu: str) -> None:
    found = read_trace(DATA / "open_loop" / gpu / "Llama-3.1-8B" / "requests.jsonl")
    assert (found.format, found.requests.n) == ("jsonl", 300)
    assert found.requests.prompt_tokens[0] == 2358
    assert found.requests.span_s == pytest.approx(29.1, abs=0.1)
