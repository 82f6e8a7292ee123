"""Every model of the catalogue compiles, and what an error proposes does fit."""

from __future__ import annotations

import re

import numpy as np
import pytest

from sonde.catalogue.devices import device
from sonde.catalogue.models import model, model_names
from sonde.cost.compile import compile_replica
from sonde.cost.memory import fit
from sonde.cost.table import Engine
from sonde.deployment.tree import Replica
from sonde.errors import CannotError, InputError

H200 = device("h200-sxm")


def smallest(name: str) -> tuple[Replica, Engine]:
    """Return the replica of fewest tensor-parallel ranks that fits H200 in four bits."""
    for ranks in (1, 2, 4, 8, 16, 32):
        replica = Replica(model=name, device=H200.name, tensor_parallel=ranks, weights="int4")
        try:
            return replica, compile_replica(model(name), H200, replica)
        except (CannotError, InputError):
            continue
    raise AssertionError(f"{name} compiles on nothing")


@pytest.mark.parametrize("name", model_names())
def test_every_model_compiles(name: str) -> None:
    replica, engine = smallest(name)
    table = engine.table.time
    for column in (table.linear, table.decode, table.read, table.read_window):
        assert np.isfinite(column).all()
        assert (column >= 0).all()
    assert (np.diff(table.linear) >= -1e-15).all()
    assert table.linear[1] > 0
    memory = engine.memory
    kept = memory.block_bytes + memory.window_block_bytes + memory.state_bytes
    assert 0 < kept <= memory.capacity_bytes
    assert bool(engine.table.window) or not (table.read_window.any() or memory.window_block_bytes)
    found = model(name)
    held = fit(found, H200, replica).weights * replica.devices
    assert held >= found.total_parameters * 0.53 * 0.95


@pytest.mark.parametrize(
    ("name", "where"),
    [
        ("llama-3.1-70b", "rtx-4090"),
        ("llama-3.1-70b", "h100-sxm"),
        ("deepseek-v3", "h200-sxm"),
        ("mixtral-8x7b", "l40s"),
    ],
)
def test_what_an_error_proposes_does_fit(name: str, where: str) -> None:
    replica = Replica(model=name, device=where)
    with pytest.raises(CannotError, match="what would fit") as error:
        compile_replica(model(name), device(where), replica)
    proposals = str(error.value).split("what would fit: ")[1].split(", ")
    assert proposals
    for proposal in proposals:
        found = dict(re.findall(r"(tensor_parallel|pipeline_parallel|weights) (\w+)", proposal))
        change = {key: int(value) if value.isdigit() else value for key, value in found.items()}
        assert fit(model(name), device(where), Replica.model_validate(replica.model_dump() | change)).fits
