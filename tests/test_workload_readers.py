"""Readers: every format to the same requests, every mistake to its line."""

from __future__ import annotations

import gzip
import json
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sonde.errors import InputError
from sonde.workload.readers import check_context, read, read_trace
from sonde.workload.readers import source as reader_source
from sonde.workload.requests import Requests, requests

AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens\n"
AZURE_ROWS = ["2023-11-16 18:17:03.9799600,4808,10", "2023-11-16 18:17:04.0319600,3180,8", "2023-11-16 18:17:05,110,27"]


def write(folder: Path, text: str, name: str = "trace") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def columns(found: Requests) -> tuple[list[float], list[int], list[int], list[int]]:
    return (
        found.arrival_s.tolist(), found.prompt_tokens.tolist(), found.output_tokens.tolist(), found.session.tolist(),
    )  # fmt: skip


def same(a: Requests, b: Requests) -> bool:
    return a.block_tokens == b.block_tokens and all(
        x.dtype == y.dtype and np.array_equal(x, y) for x, y in zip(a[:7], b[:7], strict=True)
    )


def test_azure_times_are_read_to_the_last_digit_and_start_at_zero(tmp_path: Path) -> None:
    found = read_trace(write(tmp_path, AZURE + "\n".join(AZURE_ROWS)))
    assert found.format == "azure"
    assert columns(found.requests) == ([0.0, 0.052, 1.02004], [4808, 3180, 110], [10, 8, 27], [-1, -1, -1])


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_line_ends_and_zones_do_not_matter(tmp_path: Path, ending: str) -> None:
    rows = ["2024-05-10 00:00:00.009930+00:00,2162,5", "2024-05-10 00:00:01.009930+00:00,2399,6", ""]
    found = read(write(tmp_path, ending.join([AZURE.strip(), *rows])))
    assert columns(found)[0] == [0.0, 1.0]


@pytest.mark.parametrize("packed", ["gzip", "zstd"])
def test_packed_files_are_read_as_they_are(tmp_path: Path, packed: str) -> None:
    plain = (AZURE + "\n".join(AZURE_ROWS)).encode()
    path = tmp_path / "trace.csv"
    if packed == "gzip":
        path.write_bytes(gzip.compress(plain))
    else:
        with pa.CompressedOutputStream(str(path), "zstd") as stream:
            stream.write(plain)
    assert columns(read(path))[1] == [4808, 3180, 110]


BURST = "Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
BURST_ROWS = """5,,1.5,ChatGPT,472,18,490,API log
45,7,2.0,GPT-4,1087,0,1087,Conversation log
118,7,3,GPT-4,417,276,693,Conversation log
"""


def test_burstgpt_drops_and_counts_what_failed(tmp_path: Path) -> None:
    found = read_trace(write(tmp_path, BURST + BURST_ROWS))
    assert (found.format, found.dropped) == ("burstgpt", 1)
    assert "1 requests that failed" in found.notes[0]
    assert columns(found.requests) == ([0.0, 113.0], [472, 417], [18, 276], [-1, 7])


def test_burstgpt_first_version_has_no_sessions(tmp_path: Path) -> None:
    text = "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n5,ChatGPT,472,18,490,API log\n"
    assert columns(read(write(tmp_path, text))) == ([0.0], [472], [18], [-1])


def test_burstgpt_with_nothing_but_failures_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="1 rows that all failed"):
        read(write(tmp_path, BURST + "5,,1.5,ChatGPT,472,0,472,API log\n"))


def test_mooncake_keeps_hashes_of_blocks(tmp_path: Path) -> None:
    rows = [
        {"timestamp": 1000, "input_length": 600, "output_length": 5, "hash_ids": [0, 1]},
        {"timestamp": 4000, "input_length": 1100, "output_length": 6, "hash_ids": [0, 1, 2]},
    ]
    found = read_trace(write(tmp_path, "\n".join(map(json.dumps, rows))))
    assert found.format == "mooncake"
    assert columns(found.requests)[0] == [0.0, 3.0]
    assert found.requests.block_tokens == 512
    assert found.requests.block_start.tolist() == [0, 2, 5]
    assert found.requests.block_hash.tolist() == [0, 1, 0, 1, 2]


def test_mooncake_with_more_hashes_than_the_prompt_fills_is_refused(tmp_path: Path) -> None:
    row = {"timestamp": 0, "input_length": 600, "output_length": 5, "hash_ids": [0, 1, 2]}
    with pytest.raises(InputError, match="trace:1 hash_ids = 3: more blocks"):
        read(write(tmp_path, json.dumps(row)))


@pytest.mark.parametrize("lines", [True, False])
def test_sharegpt_turns_are_requests_of_a_session_whose_prompt_grows(tmp_path: Path, lines: bool) -> None:
    first = {"id": "a", "conversations": [
        {"from": "human", "value": "x" * 40}, {"from": "gpt", "value": "y" * 41},
        {"from": "human", "value": "x" * 8}, {"from": "gpt", "value": "y" * 4},
    ]}  # fmt: skip
    second = {"messages": [
        {"role": "system", "content": "s", "num_tokens": 7}, {"role": "user", "content": "u", "num_tokens": 5},
        {"role": "assistant", "content": "", "num_tokens": 9}, {"role": "assistant", "content": "", "num_tokens": 0},
    ]}  # fmt: skip
    text = "\n".join(map(json.dumps, (first, second))) if lines else json.dumps([first, second], indent=1)
    found = read_trace(write(tmp_path, text))
    assert columns(found.requests) == ([0.0] * 3, [10, 23, 12], [11, 1, 9], [0, 0, 1])
    assert "4 messages estimated as characters/4" in " ".join(found.notes)
    assert found.dropped == 1


def test_vllm_results_come_in_order_of_start_without_what_failed(tmp_path: Path) -> None:
    result = {
        "input_lens": [10, 20, 30, 40], "output_lens": [1, 2, 0, 4], "errors": ["", "", "", ""],
        "start_times": [7.5, 7.0, 8.0, 9.0], "ttfts": [0.1] * 4, "itls": [[]] * 4,
    }  # fmt: skip
    found = read_trace(write(tmp_path, json.dumps(result, indent=2)))
    assert (found.format, found.dropped) == ("vllm-bench", 1)
    assert columns(found.requests) == ([0.0, 0.5, 2.0], [20, 10, 40], [2, 1, 4], [-1] * 3)


@pytest.mark.parametrize(("rate", "arrival"), [(4.0, [0.0, 0.25]), ("inf", [0.0, 0.0])])
def test_vllm_results_without_start_times_say_so(tmp_path: Path, rate: object, arrival: list[float]) -> None:
    result = {"input_lens": [10, 20], "output_lens": [1, 2], "request_rate": rate}
    found = read_trace(write(tmp_path, json.dumps(result)))
    assert columns(found.requests)[0] == arrival
    assert "no start times" in found.notes[0]


def test_opentelemetry_spans_are_put_in_order_of_start(tmp_path: Path) -> None:
    def span(start: int, prompt: int | None, output: int, session: str) -> dict[str, object]:
        values = {"gen_ai.usage.output_tokens": output, "gen_ai.conversation.id": session}
        values |= {} if prompt is None else {"gen_ai.usage.input_tokens": prompt}
        attributes = [
            {"key": key, "value": {"stringValue": v} if isinstance(v, str) else {"intValue": str(v)}}
            for key, v in values.items()
        ]
        return {"startTimeUnixNano": str(start), "attributes": attributes}

    base = 1_700_000_000_000_000_000
    spans = [span(base + 1_500_000_000, 20, 2, "b"), span(base, 10, 1, "a"), span(base, None, 3, "a")]
    lines = [{"resourceSpans": [{"scopeSpans": [{"spans": [one]}]}]} for one in spans]
    found = read_trace(write(tmp_path, "\n".join(map(json.dumps, lines))))
    assert found.format == "opentelemetry"
    assert columns(found.requests) == ([0.0, 1.5], [10, 20], [1, 2], [0, 1])
    assert "1 spans without token counts" in found.notes[0]


def test_records_and_tables_find_their_columns_by_name(tmp_path: Path) -> None:
    text = "user;output_tokens;Arrival Time;prompt tokens;priority;session_id\n"
    text += "a;5;2023-01-01T00:00:00Z;7;1;x\nb;6;2023-01-01T00:00:02Z;8;0;\n"
    found = read(write(tmp_path, text))
    assert columns(found) == ([0.0, 2.0], [7, 8], [5, 6], [0, -1])
    assert found.priority.tolist() == [1, 0]
    rows = [
        {"request_id": "r", "input_toks": 9, "output_toks": 3, "arrival_time": 100.25},
        {"request_id": "s", "input_toks": 8, "output_toks": 2, "arrival_time": 101.5},
    ]
    assert columns(read(write(tmp_path, "\n".join(map(json.dumps, rows))))) == ([0.0, 1.25], [9, 8], [3, 2], [-1, -1])


def test_whole_numbers_written_as_floats_are_read(tmp_path: Path) -> None:
    found = read(write(tmp_path, "arrival_s,prompt_tokens,output_tokens\n0,374.0,44.0\n1,3,4\n"))
    assert columns(found)[1:3] == ([374, 3], [44, 4])


def test_limit_takes_the_first_rows(tmp_path: Path) -> None:
    path = write(tmp_path, AZURE + "\n".join(AZURE_ROWS))
    assert columns(read(path, limit=2))[1] == [4808, 3180]
    with pytest.raises(InputError, match="limit = 0"):
        read(path, limit=0)


PLAIN = "arrival_s,prompt_tokens,output_tokens\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (AZURE + "\n" + AZURE_ROWS[0] + "\nnonsense\n", r"trace:4 = 'nonsense': malformed line: has 1 of 3 columns"),
        (AZURE + AZURE_ROWS[0] + "\nnonsense,1,2\n", r"trace:3 TIMESTAMP = 'nonsense': must be a time"),
        (AZURE + AZURE_ROWS[1] + "\n" + AZURE_ROWS[0], r"trace:3 TIMESTAMP = -0.052: time goes backwards.*sort"),
        (PLAIN + "0,5,5\n1,0,5\n", r"trace:3 prompt_tokens = 0: must be a whole number of tokens, at least 1"),
        (PLAIN + "0,5,5\n1,5,-3\n", r"trace:3 output_tokens = -3: must be"),
        (PLAIN + "0,5,5\n1,NaN,3\n", r"trace:3 prompt_tokens = nan: must be"),
        (PLAIN + "0,5,5\n1,3.5,3\n", r"trace:3 prompt_tokens = 3.5: must be"),
        (PLAIN + "0,5,5\n1,99999999999,3\n", r"trace:3 prompt_tokens = 99999999999: must be"),
        (PLAIN + "0,5,5\n1,many,3\n", r"trace:3 prompt_tokens = 'many': must be"),
        (PLAIN + "0,5,5\ninf,5,3\n", r"trace:3 arrival_s = inf: must be a time"),
        (PLAIN + "0,5,5\n1,,3\n", r"trace:3 prompt_tokens = '': must be"),
        ("arrival_s,prompt_tokens,output_tokens,priority\n0,5,5,0\n1,5,5,high\n", r"trace:3 priority = 'high'"),
        (PLAIN, "no rows under the header"),
        ("", "an empty file"),
        ("\n\n", "only blank lines"),
        ("hello world\n", "no known format.*known: Azure"),
        ("arrival_s,prompt_tokens\n0,5\n", "has no column for output.*known names: output: output_tokens"),
        ('{"a": 1}\n', "no known format has these keys.*known: mooncake"),
        ("[]", "an empty list"),
        ("[1]", "must be a JSON object"),
        ('{"timestamp": 0, "input_length": 5, "output_length": 5}\n{"timestamp": 1,\n', r"trace:2 = .*malformed line"),
        ('{"timestamp": 9, "input_length": 5, "output_length": 5}\n\n{"timestamp": 1, "input_length": 5, '
         '"output_length": 5}\n', r"trace:3 timestamp = 0.001: time goes backwards"),
        ('{"timestamp": 9, "input_length": 0, "output_length": 5}\n', r"trace:1 input_length = 0: must be"),
        ('{"timestamp": 9, "input_length": 4}\n', "no known format has these keys"),
        ('{"arrival_s": 9, "prompt_tokens": null, "output_tokens": 4}\n', r"trace:1 prompt_tokens = None"),
        ('{"conversations": 3}\n', "must be a list of messages"),
        ('{"conversations": []}\n', "no answers"),
        ('{"input_lens": [3], "output_lens": [3, 4]}\n', "one per request"),
        ('{"input_lens": [3], "output_lens": [0]}\n', "all failed"),
        ('{"resourceSpans": []}\n', "none with token counts"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read(write(tmp_path, text))


def test_missing_files_folders_and_damaged_archives_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        read(tmp_path / "nothing.csv")
    with pytest.raises(InputError, match="a folder"):
        read(tmp_path)
    path = tmp_path / "trace.csv.gz"
    path.write_bytes(gzip.compress((AZURE + "\n".join(AZURE_ROWS * 99)).encode())[:-20])
    with pytest.raises(InputError, match="must be a whole file"):
        read(path)
    path.write_bytes(b"PAR1\xff\xfe\x80\x00")
    with pytest.raises(InputError, match="must be CSV, JSON"):
        read(path)


def test_a_line_is_found_in_any_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader_source.blocks, "__defaults__", (64,))
    rows = [f"{i},{i + 1},5" for i in range(200)]
    path = write(tmp_path, PLAIN + "\n".join(rows))
    assert columns(read(path))[1] == list(range(1, 201))
    rows[150] = "3,7,5"
    with pytest.raises(InputError, match=r"trace:152 arrival_s = 3.0: time goes backwards.*before it: 149.0 s"):
        read(write(tmp_path, PLAIN + "\n".join(rows)))


def test_a_line_with_too_many_columns_is_named_unless_they_are_empty(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"trace:3 = '1,10,20,99': malformed line: has 4 of 3 columns"):
        read(write(tmp_path, PLAIN + "0,10,20\n1,10,20,99\n2,5,5\n"))
    for rows in ("0,10,20,\n1,11,20,\n", "0,10,20\n1,11,20,,\n", "0,10,20,,\n1,11,20\n"):
        assert columns(read(write(tmp_path, PLAIN + rows)))[1] == [10, 11]


def test_a_prompt_longer_than_the_context_is_named() -> None:
    trace = requests([0, 1, 2], [10, 4097, 5000], [1, 1, 1])
    check_context(trace, 5000)
    with pytest.raises(InputError, match=r"my.csv\[1\].prompt_tokens = 4097.*context of 4,096.*2 of 3"):
        check_context(trace, 4096, "my.csv")


@st.composite
def drawn(draw: st.DrawFn) -> Requests:
    n = draw(st.integers(1, 12))
    gaps = draw(st.lists(st.floats(0, 1e6, allow_subnormal=False), min_size=n, max_size=n))
    tokens = st.lists(st.integers(1, 2**31 - 1), min_size=n, max_size=n)
    session = draw(st.lists(st.integers(-1, 2**31 - 1), min_size=n, max_size=n))
    priority = draw(st.lists(st.integers(-128, 127), min_size=n, max_size=n))
    arrival = np.cumsum([0.0, *gaps[1:]])
    found = requests(arrival, draw(tokens), draw(tokens), session=session, priority=priority)
    if draw(st.booleans()):
        counts = draw(st.lists(st.integers(0, 4), min_size=n, max_size=n))
        hashes = draw(st.lists(st.integers(-(2**62), 2**62), min_size=sum(counts), max_size=sum(counts)))
        start = np.concatenate(([0], np.cumsum(counts))).astype(np.int64)
        return found._replace(
            block_start=start, block_hash=np.asarray(hashes, np.int64), block_tokens=draw(st.integers(1, 512))
        )
    return found


@settings(deadline=None, max_examples=60)
@given(drawn())
def test_what_is_written_is_read_back_equal(trace: Requests) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.csv"
        trace.to_csv(path)
        assert same(read(path), trace)


@settings(deadline=None, max_examples=60)
@given(drawn(), st.data())
def test_head_and_window_take_whole_rows(trace: Requests, data: st.DataObject) -> None:
    n = data.draw(st.integers(1, trace.n))
    part = trace.head(n)
    assert part.n == n
    assert part.prompt_tokens.tolist() == trace.prompt_tokens[:n].tolist()
    assert part.block_hash.tolist() == trace.block_hash[: trace.block_start[n]].tolist()
    start = float(trace.arrival_s[data.draw(st.integers(0, trace.n - 1))])
    later = trace.window(start, np.inf)
    inside = trace.arrival_s >= start
    assert later.prompt_tokens.tolist() == trace.prompt_tokens[inside].tolist()
    assert later.arrival_s[0] == 0
    assert later.block_start[0] == 0
    assert later.block_start[-1] == len(later.block_hash)
    assert len(trace.to_polars()) == trace.n


def test_an_empty_window_is_refused() -> None:
    with pytest.raises(InputError, match="must hold requests"):
        requests([0, 10], [1, 1], [1, 1]).window(2, 3)


GOOD = {
    "azure": AZURE + "\n".join(AZURE_ROWS),
    "burstgpt": BURST + BURST_ROWS,
    "csv": PLAIN.strip() + ",session,priority,block_hash,block_tokens\n0,5,5,1,0,3 4,2\n1,6,6,,1,,2\n",
    "mooncake": '{"timestamp": 0, "input_length": 600, "output_length": 5, "hash_ids": [0, 1]}\n' * 2,
    "jsonl": '{"arrival_time": "2023-01-01T00:00:00Z", "input_toks": 6, "osl": 5, "session": "a", "priority": 1}\n' * 2,
    "sharegpt": '{"conversations": [{"from": "human", "value": "hello"}, {"from": "gpt", "value": "hi"}]}\n',
    "vllm": '{"input_lens": [1, 2], "output_lens": [3, 4], "start_times": [1.0, 2.0], "errors": ["", ""]}',
    "otlp": '{"resourceSpans": [{"scopeSpans": [{"spans": [{"startTimeUnixNano": "17", "attributes": [{"key": '
    '"gen_ai.usage.input_tokens", "value": {"intValue": "5"}}, {"key": "gen_ai.usage.output_tokens", "value": '
    '{"intValue": "7"}}]}]}]}]}',
}
PIECES = [
    "",
    "\n",
    ",",
    "null",
    "-1",
    "0",
    "1e400",
    "NaN",
    "[]",
    "{}",
    '"',
    "x",
    "9" * 25,
    "true",
    " ",
    "é",
    "\x00",
    "3.5",
]


@pytest.mark.parametrize("form", GOOD)
def test_the_samples_are_good(tmp_path: Path, form: str) -> None:
    assert read(write(tmp_path, GOOD[form])).n >= 1


@settings(deadline=None, max_examples=400)
@given(st.sampled_from(sorted(GOOD)), st.data())
def test_a_damaged_trace_is_read_or_refused_in_words(form: str, data: st.DataObject) -> None:
    text = GOOD[form]
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, len(text)))
        end = data.draw(st.integers(start, min(len(text), start + data.draw(st.sampled_from([0, 1, 4, 40])))))
        text = text[:start] + data.draw(st.sampled_from(PIECES)) + text[end:]
    with tempfile.TemporaryDirectory() as folder:
        try:
            found = read(write(Path(folder), text))
        except InputError:
            return
    assert found.n >= 1
    assert found.arrival_s[0] == 0
    assert (np.diff(found.arrival_s) >= 0).all()
    assert min(found.prompt_tokens.min(), found.output_tokens.min()) >= 1
    assert len(found.block_start) == found.n + 1
    assert found.block_start[-1] == len(found.block_hash)
