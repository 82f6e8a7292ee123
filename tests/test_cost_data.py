"""Single operators against measurements on H100, H200 and B200 (ai-dynamo/aiconfigurator, Apache-2.0, vLLM 0.24).

The default efficiencies are medians over these devices, one number each; so this asks for the right size, not
for the last percent: the median ratio of all points, and a factor that no point may be beyond.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from sonde.catalogue.devices import device
from sonde.catalogue.efficiencies import efficiencies
from sonde.catalogue.models import model
from sonde.cost.collectives import all_reduce
from sonde.cost.operators import product
from sonde.cost.roofline import Operator, bound
from sonde.cost.shard import Kernel, Shard, shard
from sonde.deployment.tree import Replica

if TYPE_CHECKING:
    import pandas

OPERATORS = Path(__file__).parents[1].parent / "shared" / "data" / "operators"
DEVICES = {"h100_sxm": "h100-sxm", "h200_sxm": "h200-sxm", "b200_sxm": "b200-sxm"}
#: (outputs, inputs) near those of Llama-3.1-70B's layers
SHAPES = [(10240, 8192), (8192, 8192), (57344, 8192), (8192, 28672), (4096, 4096), (8192, 4096)]


def measured(system: str, pattern: str) -> pandas.DataFrame:
    found = sorted((OPERATORS / system).glob(pattern))
    if not found:
        pytest.skip(f"measurements are not there: {OPERATORS / system / pattern}")
    import pandas

    return pandas.read_parquet(found[0])


def part(system: str, precision: str = "bf16", ranks: int = 1) -> Shard:
    name = DEVICES[system]
    replica = Replica(
        model="llama-3.1-70b", device=name, weights=precision, activations=precision, tensor_parallel=ranks
    )
    return shard(model("llama-3.1-70b"), device(name), replica, efficiencies(device(name)))


def seconds(of: Shard, operator: Operator) -> float:
    return float(np.ravel(bound(of, operator).seconds)[0])


def check(ratios: list[float], median: float, factor: float) -> None:
    assert len(ratios) >= 8
    assert 1 - median <= np.median(ratios) <= 1 + median
    assert max(ratios) <= factor
    assert min(ratios) >= 1 / factor


@pytest.mark.data
@pytest.mark.parametrize("system", DEVICES)
@pytest.mark.parametrize("precision", ["bf16", "fp8"])
def test_matrix_products(system: str, precision: str) -> None:
    rows = measured(system, "gemm/vllm/*/gemm_perf.parquet")
    rows = rows[rows.gemm_dtype == {"bf16": "bfloat16", "fp8": "fp8"}[precision]]
    of, ratios = part(system, precision), []
    for outputs, inputs in SHAPES:
        for tokens in (1, 16, 64, 128, 512, 2048, 8192):
            found = rows[(rows.m == tokens) & (rows.n == outputs) & (rows.k == inputs)]
            if len(found):
                kernel = Kernel("any", inputs, outputs, inputs * outputs, row=False)
                predicted = seconds(of, product(of, kernel, 1, np.array([float(tokens)]), "any"))
                ratios.append(predicted / (found.latency.median() / 1e3))
    worst = 5.0 if (system, precision) == ("b200_sxm", "fp8") else 2.0  # a few shapes have a slow kernel there
    check(ratios, 0.3, worst)


@pytest.mark.data
@pytest.mark.parametrize("system", DEVICES)
def test_attention(system: str) -> None:
    of = part(system)
    for phase, pattern in (("prefill", "context"), ("decode", "generation")):
        rows = measured(system, f"attention/vllm/*/{pattern}_attention_perf.parquet")
        rows = rows[
            (rows.attn_dtype == "bfloat16") & (rows.kv_cache_dtype == "bfloat16") & (rows.window_size == 0)
            & (rows.head_dim == 128) & (rows.num_heads == 64) & (rows.num_key_value_heads == 8)
        ]  # fmt: skip
        ratios = []
        for row in rows.itertuples():
            length = int(row.isl + (row.step if phase == "decode" else 0))
            tokens = row.batch_size * length
            if phase == "prefill" and length >= 2048 and tokens <= 65536:
                work = Operator("p", "attention-prefill", 1, "bf16", flops=4.0 * 64 * 128 * tokens * length / 2)
            elif phase == "decode" and length >= 512 and tokens >= 16384:
                work = Operator("d", "attention-decode", 1, "bf16", 4.0 * 64 * 128 * tokens, 2.0 * 8 * 128 * 2 * tokens)
            else:
                continue
            ratios.append(seconds(of, work) / (row.latency / 1e3))
        check(ratios, 0.2, 2.0)


@pytest.mark.data
@pytest.mark.parametrize("system", DEVICES)
def test_all_reduce(system: str) -> None:
    """Sizes are taken as counts of 16-bit numbers: as bytes, H100 would be slower than A100."""
    rows = measured(system, "comm/vllm/*/custom_allreduce_perf.parquet")
    rows = rows[rows.backend == "vllm_graph"]
    ratios = []
    for row in rows.itertuples():
        of = part(system, ranks=int(row.num_gpus))
        size = np.array([2.0 * row.message_size])
        ratios.append(seconds(of, all_reduce(of, "sum", 1, int(row.num_gpus), size)) / (row.latency / 1e3))
    check(ratios, 0.3, 4.0)
