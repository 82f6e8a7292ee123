"""Traces of a step: operators to kernels, launches and queues, against traces whose answer is known by hand."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sonde.calibrate.machine.trace import read, summary
from sonde.errors import InputError

Event = dict[str, Any]


def event(name: str, category: str, begin: float, length: float, **more: Any) -> Event:
    """An event of a Chrome trace, in microseconds."""
    correlation = more.pop("correlation", None)
    row = {"ph": "X", "name": name, "cat": category, "ts": begin, "dur": length, "pid": 1, "tid": 1} | more
    return row if correlation is None else row | {"args": {"correlation": correlation}}


#: two operators launch three kernels on one stream; the second and third wait in the queue for the one before
GPU = {
    "traceEvents": [
        {"ph": "M", "name": "process_name", "args": {"name": "python"}},
        event("aten::linear", "cpu_op", 100, 30),
        event("aten::addmm", "cpu_op", 105, 20),
        event("cudaLaunchKernel", "cuda_runtime", 110, 5, correlation=7),
        event("aten::gelu", "cpu_op", 140, 40),
        event("cudaLaunchKernel", "cuda_runtime", 150, 5, correlation=8),
        event("cudaLaunchKernel", "cuda_runtime", 160, 5, correlation=9),
        event("gemm_kernel", "kernel", 120, 70, tid=7, pid=0, correlation=7),
        event("gelu_kernel", "kernel", 190, 10, tid=7, pid=0, correlation=8),
        event("gemm_kernel", "kernel", 200, 50, tid=7, pid=0, correlation=9),
        event("orphan", "kernel", 300, 50, tid=7, pid=0, correlation=99),
    ]
}


def test_tklqt_of_a_gpu_trace_is_what_it_is_by_hand() -> None:
    trace = read(GPU)
    assert trace.on_gpu
    assert [(k.name, k.operator) for k in trace.kernels] == [
        ("gemm_kernel", "aten::linear"), ("gelu_kernel", "aten::gelu"), ("gemm_kernel", "aten::gelu"),
    ]  # fmt: skip
    found = summary(trace)
    waits = [120 - 110, 190 - 150, 200 - 160]
    assert found.kernels == 3
    assert found.tklqt_s * 1e6 == pytest.approx(sum(waits))
    assert found.launch_s * 1e6 == pytest.approx(3 * min(waits))
    assert found.queue_s * 1e6 == pytest.approx(sum(waits) - 3 * min(waits))
    assert found.kernel_s * 1e6 == pytest.approx(130)
    assert found.latency_s * 1e6 == pytest.approx(250 - 100)
    assert found.idle_s * 1e6 == pytest.approx(150 - 130)
    assert found.host_idle_s * 1e6 == pytest.approx(150 - 30 - 40)
    assert [(name, count) for name, count, _ in found.top] == [("gemm_kernel", 2), ("gelu_kernel", 1)]


def test_on_a_cpu_the_innermost_operator_with_work_is_the_kernel() -> None:
    trace = read({"traceEvents": [
        event("aten::linear", "cpu_op", 0, 100),
        event("aten::t", "cpu_op", 5, 10),  # describes memory: no kernel
        event("aten::mm", "cpu_op", 20, 70),
        event("aten::as_strided", "cpu_op", 22, 3),  # so that mm is the innermost one with work
        event("aten::relu", "cpu_op", 110, 30),
        event("aten::clamp_min", "cpu_op", 115, 10),
        event("aten::copy_", "cpu_op", 130, 8),
    ]})  # fmt: skip
    assert not trace.on_gpu
    assert [(k.name, k.operator) for k in trace.kernels] == [
        ("aten::mm", "aten::linear"), ("aten::clamp_min", "aten::relu"), ("aten::copy_", "aten::relu"),
    ]  # fmt: skip
    assert [k.waited_s * 1e6 for k in trace.kernels] == pytest.approx([20, 5, 5])
    assert summary(trace).tklqt_s * 1e6 == pytest.approx(30)
    assert summary(trace).kernel_s * 1e6 == pytest.approx(88)


@settings(max_examples=40)
@given(data=st.data())
def test_nesting_agrees_with_looking_at_every_pair(data: st.DataObject) -> None:
    events: list[Event] = []

    def grow(begin: int, end: int, depth: int) -> None:
        at = begin
        while at < end - 2 and len(events) < 40:
            length = data.draw(st.integers(1, end - at - 1))
            events.append(event(f"op{len(events)}", "cpu_op", at, length))
            if depth and length > 3 and data.draw(st.booleans()):
                grow(at + 1, at + length - 1, depth - 1)
            at += length + data.draw(st.integers(1, 3))

    grow(0, 60, 3)
    spans = {e["name"]: (e["ts"], e["ts"] + e["dur"]) for e in events}
    inside = {a: [b for b in spans if b != a and spans[b][0] <= spans[a][0] and spans[a][1] <= spans[b][1]]
              for a in spans}  # fmt: skip
    leaves = [a for a in spans if not any(a in outer for outer in inside.values())]
    trace = read({"traceEvents": data.draw(st.permutations(events))})
    assert sorted(k.name for k in trace.kernels) == sorted(leaves)
    for kernel in trace.kernels:
        outer = inside[kernel.name]
        widest = max(outer, key=lambda b: spans[b][1] - spans[b][0]) if outer else kernel.name
        assert kernel.operator == widest


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({}, "no Chrome trace"),
        ({"traceEvents": []}, "no operators"),
        ({"traceEvents": [event("x", "cpu_op", 0, 1) | {"ts": "soon"}]}, r"traceEvents\[0\]"),
        ({"traceEvents": [event("x", "cpu_op", 0, 1, correlation="nine")]}, "numbers for ts, dur and correlation"),
    ],
)
def test_what_is_no_trace_is_refused_in_words(data: Mapping[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        read(data)


def test_a_trace_is_read_from_its_file(tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    path.write_text(json.dumps(GPU))
    assert read(path) == read(GPU)
    path.write_text("{")
    with pytest.raises(InputError, match="must be JSON"):
        read(path)
    with pytest.raises(InputError, match="cannot be read"):
        read(tmp_path / "absent.json")


def plain_step(model: Any, tokens: Any) -> Any:
    """The decoder in float64, sequence by sequence, head by head, no caches: what its operators should come to."""
    size = model.size
    out = []
    for row in tokens:
        x = model.table.double()[row].numpy()
        for layer in model.layers:
            w = {name: value.double().numpy() for name, value in layer._asdict().items()}
            h = x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-6) * w["norm_1"]
            heads = (h @ w["qkv"].T).reshape(len(row), -1, size.head)
            cosine, sine = (t.double().numpy()[: len(row)] for t in (model.cosine, model.sine))

            def turn(v: Any, cosine: Any = cosine, sine: Any = sine) -> Any:
                half = size.head // 2
                return v * cosine + np.concatenate((-v[:, half:], v[:, :half]), -1) * sine

            seen = np.zeros((len(row), size.heads, size.head))
            for head in range(size.heads):
                group = head * size.kv_heads // size.heads
                q, k = turn(heads[:, head]), turn(heads[:, size.heads + group])
                v = heads[:, size.heads + size.kv_heads + group]
                scores = np.where(np.tri(len(row), dtype=bool), q @ k.T / np.sqrt(size.head), -np.inf)
                weights = np.exp(scores - scores.max(-1, keepdims=True))
                seen[:, head] = weights / weights.sum(-1, keepdims=True) @ v
            x = x + seen.reshape(len(row), -1) @ w["out"].T
            h = x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-6) * w["norm_2"]
            gate, up = np.split(h @ w["gate_up"].T, 2, -1)
            x = x + (gate / (1 + np.exp(-gate)) * up) @ w["down"].T
        last = x[-1] / np.sqrt((x[-1] * x[-1]).mean() + 1e-6)
        out.append(last @ model.table.double().numpy().T)
    return np.array(out)


@pytest.mark.parametrize("fused", [True, False])
def test_the_decoder_computes_what_a_decoder_is(fused: bool) -> None:
    torch = pytest.importorskip("torch")
    from sonde.calibrate.machine.decoder import Size, decoder, step

    size = Size(hidden=64, layers=2, heads=4, kv_heads=2, inner=96, vocabulary=50)
    model = decoder(size, 2, 16, fused=fused)
    tokens = torch.randint(0, 50, (2, 7), generator=torch.Generator().manual_seed(1))
    right = plain_step(model, tokens)
    whole = step(model, tokens, 0).double().numpy()
    assert np.abs(whole - right).max() < 0.05 * np.abs(right).max(), "a prompt at once"
    again = decoder(size, 2, 16, fused=fused)
    step(again, tokens[:, :6], 0)
    assert np.abs(step(again, tokens[:, 6:], 6).double().numpy() - right).max() < 0.05 * np.abs(right).max(), "cached"


def test_a_real_step_is_traced_down_to_its_products() -> None:
    pytest.importorskip("torch")
    from sonde.calibrate.machine.decoder import Size
    from sonde.calibrate.machine.steps import traced

    size = Size(hidden=32, layers=3, heads=2, kv_heads=2, inner=64, vocabulary=64)
    fused, apart = (traced(size, fused=way) for way in (True, False))
    products = [kernel for kernel in fused.kernels if kernel.name in ("aten::mm", "aten::addmm", "aten::bmm")]
    assert len(products) == 4 * size.layers + 1
    assert {kernel.operator for kernel in products} == {"aten::linear"}
    assert len([k for k in fused.kernels if "attention" in k.name]) == size.layers
    assert len(apart.kernels) != len(fused.kernels)
    found = summary(fused)
    assert found.kernels == len(fused.kernels)
    assert 0 < found.tklqt_s < found.latency_s
    assert found.tklqt_s + found.kernel_s <= found.latency_s * 1.001


def test_a_slower_cpu_is_called_as_often_and_gives_the_same() -> None:
    torch = pytest.importorskip("torch")
    from sonde.calibrate.machine.decoder import EMPTY, decoder
    from sonde.calibrate.machine.steps import decoding, slowed, sweep

    run, _ = decoding(decoder(EMPTY, 2, 64), 2, "cpu")
    assert torch.equal(run(), slowed(run, 1e-7)())
    assert len(sweep(EMPTY, (1, 2), rounds=1)) == 2
