"""The catalogue's models: published parameters, cache sizes computed by hand, every config, and bad input."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sonde.catalogue.configs import read_config
from sonde.catalogue.configs.families import FAMILIES
from sonde.catalogue.describe import causal_pairs, decode_flops, describe_model, prefill_flops
from sonde.catalogue.model import Mixer, Model
from sonde.catalogue.models import model, model_names, model_rows
from sonde.errors import InputError

DATA = Path(__file__).parents[1].parent / "shared" / "data"
CONFIGS = sorted((DATA / "configs").glob("*.json"))
ROWS = model_rows()
LLAMA: dict[str, Any] = {
    "model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "intermediate_size": 128, "vocab_size": 100, "max_position_embeddings": 512,
}  # fmt: skip
MIXTURE = {**LLAMA, "model_type": "mixtral", "num_local_experts": 8, "num_experts_per_tok": 2}

needs_data = pytest.mark.skipif(not CONFIGS, reason="the measurements are not beside the project")


def limits(published: str) -> tuple[float, float]:
    """Return what a published figure allows: 1 %, or what rounding or cutting off its last digit takes away."""
    digits, suffix = re.fullmatch(r"([\d.]+)([BT]?)", published).groups()  # type: ignore[union-attr]
    scale = {"": 1.0, "B": 1e9, "T": 1e12}[suffix]
    value, unit = float(digits) * scale, scale / 10 ** len(digits.partition(".")[2])
    return min(0.99 * value, value - unit / 2), max(1.01 * value, value + unit)


def counted(found: Model, row: Any, which: str) -> int:
    """Return the parameters as this row's publisher counts them."""
    value = found.total_parameters if which == "total" else found.active_parameters
    tables = found.embedding_parameters
    left_out = {"all": 0, "no-embedding": tables, "no-tables": 2 * tables, "text": found.other_parameters}
    return value - left_out[row.get(f"{which}_counts", "all")]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: str(row["name"]))
def test_parameters_are_the_published_ones(row: Any) -> None:
    found = model(row["name"])
    for which in ("total", "active"):
        if which in row:
            low, high = limits(row[which])
            assert low <= counted(found, row, which) <= high, (which, counted(found, row, which), row[which])
    if row["total"].isdigit():
        assert found.total_parameters == int(row["total"])


def test_rows_are_complete() -> None:
    assert len(ROWS) >= 45
    assert len(set(model_names())) == len(ROWS)
    for row in ROWS:
        assert row["source"]
        assert re.fullmatch(r"20\d\d-\d\d-\d\d", row["date"])
    aliases = [alias.lower() for row in ROWS for alias in row["aliases"]]
    assert len(set(aliases)) == len(aliases)
    assert {model(name).family for name in model_names()} >= {
        "llama", "opt", "gpt2", "gpt_neox", "falcon", "bloom", "phi", "gemma", "gemma2", "gemma3", "mistral", "qwen2",
        "deepseek_v2", "granite", "olmo", "mixtral", "deepseek_v3", "deepseek_v32", "deepseek_v4", "kimi_linear",
        "qwen3_next", "qwen3_5", "minimax_text_01", "nemotron_h", "llama4", "gpt_oss", "glm_moe_dsa", "step3p7",
    }  # fmt: skip


def test_a_row_like_another_differs_in_what_it_says() -> None:
    base, variant = model("kimi-k2.5"), model("nvidia/Kimi-K2.5-NVFP4")
    assert (base.native_weights, variant.native_weights) == ("int4", "nvfp4")
    assert (variant.mixers, variant.total_parameters) == (base.mixers, base.total_parameters)


def test_names_and_aliases_find_the_same_model() -> None:
    want = model("llama-3.1-8b")
    for name in ("Llama-3.1-8B", "meta-llama/Llama-3.1-8B", " META-LLAMA/llama-3.1-8b-instruct ", "Meta-Llama-3.1-8B"):
        assert model(name) == want


@pytest.mark.parametrize(
    ("name", "growing", "window"),
    [
        ("llama-3.1-8b", 131_072, 0),  # 32 layers · 2 · 8 heads · 128 · 2 B
        ("llama-3.1-70b", 327_680, 0),
        ("opt-13b", 819_200, 0),  # 40 · 2 · 5120 · 2 B
        ("deepseek-v3", 576 * 61 * 2, 0),  # (512 + 64) · 61 layers · 2 B
        ("deepseek-v3.2", (576 + 128) * 61 * 2, 0),  # and an index key of 128
        ("gpt-oss-120b", 18 * 2 * 8 * 64 * 2, 18 * 2 * 8 * 64 * 2),
        ("gemma-3-27b", 10 * 2 * 16 * 128 * 2, 52 * 2 * 16 * 128 * 2),  # every sixth of 62 layers sees all
        ("mistral-7b", 0, 131_072),
        ("nemotron-3-nano-30b-a3b", 6 * 2 * 2 * 128 * 2, 0),
        ("qwen3.5-397b-a17b", 15 * 2 * 2 * 256 * 2, 0),
        ("mimo-v2-flash", 9 * 4 * (192 + 128) * 2, 39 * 8 * (192 + 128) * 2),
    ],
)
def test_cache_bytes_are_as_by_hand(name: str, growing: int, window: int) -> None:
    found = model(name)
    assert found.cache_bytes_per_token("bf16") == growing
    assert found.window_bytes_per_token("bf16") == window
    assert found.cache_bytes_per_token("fp8") == growing / 2


def only(found: Model, kind: str) -> list[Mixer]:
    return [mixer for mixer in found.mixers if mixer.kind == kind]


def test_attention_flops_are_as_by_hand() -> None:
    (gqa,) = model("llama-3.1-8b").mixers
    assert gqa.prefill_flops == gqa.decode_flops == 4 * 32 * 128
    (mla,) = model("deepseek-v3").mixers
    assert mla.prefill_flops == 2 * 128 * (128 + 64 + 128)
    assert mla.decode_flops == 2 * 128 * (2 * 512 + 64)
    (sparse,) = only(model("deepseek-v3.2"), "mla")
    (indexer,) = only(model("deepseek-v3.2"), "indexer")
    assert (sparse.window, sparse.cache_saturates) == (2048, False)
    assert indexer.decode_flops == 2 * 64 * 128


def test_states_are_as_by_hand() -> None:
    nano = model("nemotron-3-nano-30b-a3b")
    (mamba,) = only(nano, "linear")
    assert mamba.layers == 23
    convolved = 64 * 64 + 2 * 8 * 128
    assert mamba.state_elements == 64 * 64 * 128 + 3 * convolved
    assert nano.state_bytes == 23 * (4 * 64 * 64 * 128 + 2 * 3 * convolved)
    (delta,) = only(model("qwen3.5-397b-a17b"), "linear")
    assert delta.state_elements == 64 * 128 * 128 + 3 * (2 * 16 * 128 + 64 * 128)


def test_layers_of_hybrids_add_up() -> None:
    nano = model("nemotron-3-nano-30b-a3b")
    mixing, forward = sum(m.layers for m in nano.mixers), sum(ff.layers for ff in nano.feedforwards)
    assert (mixing, forward, nano.layers) == (29, 23, 52)
    v3 = model("deepseek-v3")
    assert [(ff.layers, ff.experts, ff.top_k) for ff in v3.feedforwards] == [(3, 0, 0), (58, 256, 8)]
    shared = model("glm-5.2")
    assert (sum(m.layers for m in only(shared, "mla")), sum(m.layers for m in only(shared, "indexer"))) == (78, 21)
    v4 = model("deepseek-v4-flash")
    assert [(m.layers, m.cache_elements, m.window) for m in only(v4, "attention")] == [
        (43, 512, 128), (21, 128, 2048), (20, 4, 0),
    ]  # fmt: skip


def test_layers_that_guess_are_counted_apart() -> None:
    """Under every name that publishers give them; nobody else has any."""
    known = {name: model(name).guessing_layers for name in model_names()}
    for name in ("deepseek-v3", "deepseek-v3-nvfp4", "qwen3.5-27b", "nemotron-3-super-120b-a12b", "minimax-m3"):
        assert known[name] == 1, name
    assert known["minimax-m2.5"] == known["step-3.7-flash"] == 3
    for name in ("llama-3.1-8b", "qwen3-32b", "kimi-k2", "kimi-k2.5", "mixtral-8x7b", "deepseek-v2"):
        assert known[name] == 0, name
    assert model("deepseek-v3").layers == 61


def test_native_weights() -> None:
    want = {"llama-3.1-8b": "bf16", "opt-13b": "fp16", "deepseek-v3": "fp8", "gpt-oss-120b": "mxfp4",
            "kimi-k2.5": "int4", "kimi-k3": "mxfp4"}  # fmt: skip
    assert {name: model(name).native_weights for name in want} == want
    for method, precision in (
        ({"quant_method": "gptq", "bits": 4}, "int4"),
        ({"quant_method": "awq", "bits": 4}, "int4"),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, "int8"),
        ({"quant_algo": "NVFP4", "quant_method": "modelopt"}, "nvfp4"),
    ):
        assert read_config({**LLAMA, "quantization_config": method}, "x").native_weights == precision


def test_weight_bytes_leave_tables_in_bf16() -> None:
    llama = model("llama-3.1-8b")
    tables = llama.total_parameters - llama.matrix_parameters
    assert llama.weight_bytes("bf16") == 2 * llama.total_parameters
    assert llama.weight_bytes("fp8") == llama.matrix_parameters + 2 * tables
    oss = model("gpt-oss-20b")
    assert oss.weight_bytes("mxfp4") == pytest.approx(13.76e9, rel=0.01)  # size of the published checkpoint


def test_description_is_json_with_the_figures() -> None:
    facts: dict[str, Any] = json.loads(json.dumps(describe_model(model("llama-3.1-8b"), 1000)))
    assert facts["parameters"] == {"total": 8_030_261_248, "active": 8_030_261_248}
    assert facts["kv_bytes_per_token"]["bf16"] == {"growing": 131_072.0, "window": 0.0}
    matrices = 32 * (4096 * (4096 + 2 * 1024) + 4096 * 4096 + 3 * 4096 * 14336)
    assert facts["flops_per_token"]["decode"] == 2 * (matrices + 4096 * 128256) + 32 * 4 * 4096 * 1000
    prompt = 1000 * 2 * matrices + 2 * 4096 * 128256 + 32 * 4 * 4096 * (1000 * 1001 // 2)
    assert facts["flops_per_token"]["prefill"] == round(prompt / 1000)
    for name in model_names():
        json.dumps(describe_model(model(name)))


def test_long_context_of_deepseek_v4_costs_what_its_paper_says() -> None:
    """Its model card: 27 % of the FLOP that V3.2 takes for a token at a context of a million."""
    ratio = decode_flops(model("deepseek-v4-pro"), 1_000_000) / decode_flops(model("deepseek-v3.2"), 1_000_000)
    assert ratio == pytest.approx(0.27, abs=0.01)


def test_docs_name_every_family() -> None:
    page = (Path(__file__).parents[1] / "docs" / "models.md").read_text()
    assert [family for family in FAMILIES if f"`{family}`" not in page] == []


@given(tokens=st.integers(1, 300), window=st.integers(0, 400))
def test_pairs_agree_with_counting_them(tokens: int, window: int) -> None:
    naive = sum(min(query, window) if window else query for query in range(1, tokens + 1))
    assert causal_pairs(tokens, window) == naive


@given(name=st.sampled_from(model_names()), tokens=st.integers(2, 5000))
@settings(max_examples=40)
def test_a_longer_context_never_costs_less(name: str, tokens: int) -> None:
    found = model(name)
    assert decode_flops(found, tokens) >= decode_flops(found, tokens - 1) > 0
    assert prefill_flops(found, tokens) > prefill_flops(found, tokens - 1)


@given(
    heads=st.integers(1, 8), group=st.integers(1, 4), dim=st.sampled_from([16, 64, 128]), layers=st.integers(1, 5),
    inner=st.integers(1, 500), hidden=st.sampled_from([64, 96]), tied=st.booleans(),
)  # fmt: skip
def test_dense_count_agrees_with_a_naive_one(
    heads: int, group: int, dim: int, layers: int, inner: int, hidden: int, tied: bool
) -> None:
    config = {
        **LLAMA, "hidden_size": hidden, "num_hidden_layers": layers, "num_attention_heads": heads * group,
        "num_key_value_heads": heads, "head_dim": dim, "intermediate_size": inner, "tie_word_embeddings": tied,
    }  # fmt: skip
    count = 100 * hidden * (1 if tied else 2) + hidden
    for _ in range(layers):
        count += hidden * heads * group * dim + 2 * hidden * heads * dim + heads * group * dim * hidden
        count += 3 * hidden * inner + 2 * hidden
    assert read_config(config, "x").total_parameters == count


def test_falcon_with_grouped_keys_is_as_by_hand() -> None:
    config = {
        "model_type": "falcon", "hidden_size": 8192, "num_hidden_layers": 60, "num_attention_heads": 128,
        "num_kv_heads": 8, "multi_query": True, "new_decoder_architecture": True, "vocab_size": 65024,
    }  # fmt: skip
    layer = 8192 * (8192 + 2 * 8 * 64) + 8192 * 8192 + 2 * 8192 * 4 * 8192 + 2 * 2 * 8192
    assert read_config(config, "falcon-40b").total_parameters == 60 * layer + 65024 * 8192 + 2 * 8192


def test_lightning_layers_are_found_by_either_field() -> None:
    config = dict(next(row for row in ROWS if row["name"] == "minimax-text-01")["config"])
    kinds = ["full_attention" if full else "linear_attention" for full in config.pop("attn_type_list")]
    found = read_config({**config, "model_type": "minimax", "layer_types": kinds}, "minimax-text-01")
    assert found.mixers == model("minimax-text-01").mixers


@pytest.mark.data
@needs_data
@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name.removesuffix("_config.json"))
def test_every_config_loads(path: Path) -> None:
    found = model(str(path))
    assert found.layers * found.hidden * found.vocabulary > 0
    assert 0 < found.active_parameters <= found.total_parameters
    assert min(min(m.layers for m in found.mixers), min(ff.layers for ff in found.feedforwards)) >= 1
    for size in re.findall(r"-(\d+(?:\.\d+)?)B", path.name.partition("--")[2])[:1]:
        if "17B-" not in path.name:  # Llama 4 is named by its active parameters
            assert found.total_parameters == pytest.approx(float(size) * 1e9, rel=0.3)


@pytest.mark.data
@needs_data
def test_rows_say_what_the_whole_config_says() -> None:
    checked = 0
    for row in ROWS:
        for alias in row["aliases"]:
            path = DATA / "configs" / f"{alias.replace('/', '--')}_config.json"
            if path.is_file():
                whole, named = model(str(path)), model(row["name"])
                stated = "quantization_config" in path.read_text()
                native = whole.native_weights if stated else named.native_weights  # may stand in a file beside it
                known: dict[str, Any] = {"name": "", "source": "", "date": "", "family": "", "native_weights": native}
                assert replace(whole, **known) == replace(named, **known), row["name"]
                assert named.native_weights == native, row["name"]
                checked += 1
    assert checked >= 80


def write(folder: Path, content: str) -> str:
    (folder / "config.json").write_text(content)
    return str(folder)


def test_a_folder_is_its_config_with_the_quantisation_beside_it(tmp_path: Path) -> None:
    name = write(tmp_path, json.dumps(LLAMA))
    assert (model(name).name, model(name).native_weights) == (tmp_path.name, "bf16")
    (tmp_path / "hf_quant_config.json").write_text('{"quantization": {"quant_algo": "NVFP4"}}')
    assert model(name).native_weights == "nvfp4"
    assert model(str(tmp_path / "config.json")) == model(name)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model_type": "lama"}, ["model_type", "'lama'", "llama", "known:"]),
        ({"model_type": None}, ["model_type", "missing"]),
        ({"hidden_size": None}, ["hidden_size", "missing"]),
        ({"vocab_size": None}, ["vocab_size", "missing"]),
        ({"num_hidden_layers": None}, ["num_hidden_layers", "missing"]),
        ({"num_hidden_layers": 0}, ["num_hidden_layers", "0", "at least 1"]),
        ({"num_hidden_layers": 10**9}, ["num_hidden_layers", "at most"]),
        ({"hidden_size": -64}, ["hidden_size", "-64", "at least 1"]),
        ({"hidden_size": 64.5}, ["hidden_size", "64.5", "whole"]),
        ({"hidden_size": "64"}, ["hidden_size", "'64'", "whole"]),
        ({"num_attention_heads": 5}, ["num_attention_heads", "5", "must divide"]),
        ({"num_key_value_heads": 3}, ["num_key_value_heads", "3", "must divide"]),
        ({"tie_word_embeddings": "no"}, ["tie_word_embeddings", "true or false"]),
        ({"layer_types": ["full_attention"]}, ["layer_types", "one entry per layer"]),
        ({"layer_types": ["wide"] * 2}, ["layer_types[0]", "'wide'", "known"]),
        ({"quantization_config": {"quant_method": "magic"}}, ["quantization_config", "magic"]),
    ],
)
def test_bad_config_names_the_field_and_the_file(tmp_path: Path, change: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        model(write(tmp_path, json.dumps({**LLAMA, **change})))
    assert all(word in str(caught.value) for word in [str(tmp_path), *words]), str(caught.value)


def test_bad_mixture_is_refused() -> None:
    with pytest.raises(InputError, match="at most the 8 experts"):
        read_config({**MIXTURE, "num_experts_per_tok": 9}, "x")
    with pytest.raises(InputError, match=r"num_experts .* missing"):
        read_config({**MIXTURE, "num_local_experts": None}, "x")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("llama-3.1-8", ["did you mean 'llama-3.1-8b'", "known:"]),
        ("no/such/config.json", ["no such file"]),
        ("./nowhere", ["no such file"]),
        ("", ["no such model"]),
    ],
)
def test_unknown_model_says_what_is_known(name: str, words: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        model(name)
    assert all(word in str(caught.value) for word in words), str(caught.value)


@pytest.mark.parametrize("content", ["", "{", "[1]", "[" * 100_000, "\x00", '"text"', "{}"])
def test_what_is_no_config_is_refused(tmp_path: Path, content: str) -> None:
    with pytest.raises(InputError):
        model(write(tmp_path, content))


JUNK = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 5), st.floats(), st.text(max_size=3),
    st.lists(st.integers(0, 3), max_size=3), st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
)  # fmt: skip


@given(row=st.sampled_from(ROWS), drawn=st.data())
@settings(max_examples=300, deadline=None)
def test_no_config_ends_in_a_traceback(row: Any, drawn: st.DataObject) -> None:
    config = json.loads(json.dumps(row["config"]))
    inside = config.get("text_config", config)
    place = drawn.draw(st.sampled_from([part for part in (config, inside, config.get("vision_config")) if part]))
    for key in drawn.draw(st.lists(st.sampled_from(sorted(place)), min_size=1, max_size=2)):
        place[key] = drawn.draw(JUNK)
    with suppress(InputError):
        assert read_config(config, "x").total_parameters > 0


def test_reading_a_row_imports_nothing_heavy() -> None:
    code = (
        "import sys; from sonde.catalogue.models import model; model('llama-3.1-8b');"
        "print([m for m in ('numba', 'polars', 'scipy', 'plotly', 'pandas', 'torch', 'pydantic') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
