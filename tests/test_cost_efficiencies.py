"""Efficiencies are rows: the most specific wins, and every row is sane and says where it comes from."""

from __future__ import annotations

import pytest
from cost_models import A100, H100

import sonde.catalogue.efficiencies as module
from sonde.catalogue.devices import device, device_names
from sonde.catalogue.efficiencies import efficiencies, engines
from sonde.errors import InputError


def row(scope: str, name: str, value: str, **change: str) -> dict[str, str]:
    found = {"scope": scope, "name": name, "operator": "gemm", "attribute": "compute", "value": value}
    return found | {"source": "a test", "date": "2026-11-24"} | change


def test_the_most_specific_row_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = module._rows()
    added = (
        row("device", H100.name, "0.7"),
        row("device", A100.name, "0.1", operator="power", attribute="static"),
        row("engine", "mine", "0.5"),
    )
    monkeypatch.setattr(module, "_rows", lambda: added + rows)
    module._resolved.cache_clear()
    engines.cache_clear()
    try:
        assert efficiencies(H100).gemm.compute == 0.7
        assert efficiencies(H100, "mine").gemm.compute == 0.5
        assert efficiencies(A100).power.static == 0.1
    finally:
        module._resolved.cache_clear()
        engines.cache_clear()


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"scope": "devise"}, "did you mean 'device'"),
        ({"attribute": "memry"}, "did you mean 'gemm.memory'"),
        ({"value": "1.5"}, "between 0.001 and 1"),
        ({"value": "nan"}, "between 0.001 and 1"),
        ({"source": ""}, "needs a source"),
    ],
)
def test_a_bad_row_is_refused(change: dict[str, str], text: str) -> None:
    with pytest.raises(InputError, match=text):
        module._check(row("default", "", "0.5") | change, "efficiencies.csv:2")


def test_a_kind_of_device_beats_the_curve_of_all_devices_and_not_that_of_a_family() -> None:
    board = efficiencies(device("raspberry-pi-5"))
    assert board.gemm.half_outputs == 0
    assert board.gemm.compute == efficiencies(device("mi300x")).gemm.compute
    assert efficiencies(device("jetson-agx-orin-64gb")).gemm.half_outputs == 0
    assert efficiencies(device("h100-sxm")).gemm.half_outputs > 0


def test_an_unknown_engine_is_refused_with_the_known_ones() -> None:
    with pytest.raises(InputError, match="did you mean 'distserve'"):
        efficiencies(A100, "distserv")
    assert {"distserve", "sarathi"} <= set(engines())


def test_scopes_name_what_the_catalogue_holds() -> None:
    kinds = {device(name).kind for name in device_names()}
    for found in module._rows():
        if found["scope"] == "device":
            assert device(found["name"]).name == found["name"]
        if found["scope"] == "kind":
            assert found["name"] in kinds


def test_every_device_of_the_catalogue_has_all_efficiencies() -> None:
    for name in device_names():
        found = efficiencies(device(name))
        for key, curve in found.curves.items():
            assert 0 < curve.compute <= 1
            assert 0 < curve.memory <= 1 or key == "elementwise"
        assert 0 < found.memory.usable <= 1
