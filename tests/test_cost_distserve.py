"""Step times of real engines on A100: DistServe's fitted coefficients, and Sarathi-Serve's table.

The coefficients are those of LLMServe/DistServe (Apache-2.0): milliseconds of a prefill, a + b·Σl + c·Σl², and
of a decode step, a + b·Σcontext + c·batch, the latter in two regimes that meet at a batch of 95. One set of
efficiencies (engine "distserve" of efficiencies.csv) serves all rows. Their constants are collinear, so times
are compared: prompts of 128 to 2048 tokens alone and in batches of 2048 to 4096 tokens, decode batches of 1
to 256 at contexts of 256, 512 and 1024, wherever the KV cache holds them.
"""

from __future__ import annotations

import numpy as np
import pytest
from cost_models import A100, OPT_13B, OPT_66B, YI_34B

from sonde.catalogue.distserve_steps import MEASURED
from sonde.catalogue.efficiencies import efficiencies
from sonde.catalogue.model import Model
from sonde.cost.compile import step_table
from sonde.cost.memory import fit
from sonde.cost.shard import shard
from sonde.cost.table import Coefficients, coefficients
from sonde.deployment.tree import Batching, Replica

MODELS: dict[str, Model] = {"opt-13b": OPT_13B, "opt-66b": OPT_66B}
PROMPTS = [(1, 128), (1, 256), (1, 512), (1, 1024), (1, 2048), (16, 128), (8, 256), (4, 512), (2, 1024),
           (8, 512), (4, 1024), (2, 2048)]  # fmt: skip
BATCHES = [(b, c) for b in (1, 2, 4, 8, 16, 32, 64, 94, 96, 128, 192, 256) for c in (256, 512, 1024)]

#: seconds of Yi-34B on two A100: prompts by length, decode steps by batch (microsoft/sarathi-serve, Apache-2.0)
SARATHI_PROMPTS = {128: 0.048, 512: 0.106, 1024: 0.214, 2048: 0.366, 4096: 0.758, 8192: 1.863, 16384: 4.408}
SARATHI_BATCHES = {1: 0.0468, 8: 0.0697, 32: 0.0879, 64: 0.128, 128: 0.189}
SARATHI_CONTEXT = 1024  # not stated with the table


def replica(model: Model, ranks: int) -> Replica:
    return Replica(
        model=model.name, device=A100.name, tensor_parallel=ranks, weights="fp16", activations="fp16", kv_cache="fp16",
        memory_fraction=0.95, batching=Batching(max_batch=256, token_budget=2048),
    )  # fmt: skip


def table(model: Model, ranks: int, engine: str) -> Coefficients:
    return step_table(shard(model, A100, replica(model, ranks), efficiencies(A100, engine))).time


def errors(name: str, ranks: int) -> np.ndarray:
    """Return predicted/measured - 1 at every point of the grid."""
    model = MODELS[name]
    made, (prefill, small, large) = table(model, ranks, "distserve"), MEASURED[name, ranks]
    room = fit(model, A100, replica(model, ranks)).kv_tokens
    found = []
    for count, length in PROMPTS:
        total, squares = count * length, count * length**2
        measured = prefill[0] + prefill[1] * total + prefill[2] * squares
        found.append(1e3 * coefficients(made, total, 0, squares / 2, 0) / measured - 1)
    for batch, context in BATCHES:
        if batch * context <= room:
            a, b, c = small if batch < 95 else large
            measured = a + b * batch * context + c * batch
            found.append(1e3 * coefficients(made, 0, batch, 0, batch * context) / measured - 1)
    return np.abs(found)


def test_distserve_is_met_with_one_set_of_efficiencies() -> None:
    rows = {key: errors(*key) for key in MEASURED}
    every = np.concatenate(list(rows.values()))
    assert len(every) > 230
    assert np.median(every) <= 0.15
    assert every.max() <= 0.30
    for key, row in rows.items():
        assert np.median(row) <= 0.15, key


def test_no_row_of_the_distserve_efficiencies_names_a_model_or_a_parallelism() -> None:
    one, two = efficiencies(A100, "distserve"), efficiencies(A100, "default")
    assert one != two
    assert one.power == two.power


def test_sarathi_yi_34b_on_two_a100() -> None:
    made = table(YI_34B, 2, "sarathi")
    found = [coefficients(made, n, 0, n * n / 2, 0) / seconds - 1 for n, seconds in SARATHI_PROMPTS.items()]
    found += [
        coefficients(made, 0, batch, 0, batch * SARATHI_CONTEXT) / seconds - 1
        for batch, seconds in SARATHI_BATCHES.items()
    ]
    assert np.abs(found).max() <= 0.25


def test_without_engine_overhead_prompts_stay_near_and_small_batches_do_not() -> None:
    """The control: what the default efficiencies, read off H100 and later, say of the same steps."""
    made = table(YI_34B, 2, "default")
    prompts = [coefficients(made, n, 0, n * n / 2, 0) / seconds - 1 for n, seconds in SARATHI_PROMPTS.items()]
    batches = [coefficients(made, 0, b, 0, b * SARATHI_CONTEXT) / seconds - 1 for b, seconds in SARATHI_BATCHES.items()]
    assert np.median(np.abs(prompts)) <= 0.25
    assert max(batches) < -0.3


if __name__ == "__main__":
    import pandas

    shown = {f"{name} TP{ranks}": errors(name, ranks) for name, ranks in MEASURED}
    shown["all"] = np.concatenate(list(shown.values()))
    lines = [(key, len(e), 100 * np.median(e), 100 * e.max()) for key, e in shown.items()]
    pytest.importorskip("pandas")
    print(pandas.DataFrame(lines, columns=["row", "points", "median %", "worst %"]).round(1).to_string(index=False))  # noqa: T201
