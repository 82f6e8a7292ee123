"""Devices of the catalogue: every row is complete and plausible, has sources, and agrees with what others state."""

from __future__ import annotations

import csv
import datetime
import io
import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from sonde.catalogue.device import ARITHMETIC, KINDS, PRECISION_BYTES, Device
from sonde.catalogue.devices import (
    ARITHMETICS,
    PRICE_COLUMNS,
    PURCHASES,
    attributes,
    describe_device,
    device,
    device_names,
    devices,
    prices,
    read_devices,
    read_prices,
    typical,
)
from sonde.catalogue.document import page
from sonde.catalogue.rows import sources, table
from sonde.catalogue.sites import read_regions, region, regions
from sonde.errors import InputError

ROOT = Path(__file__).parents[1]
SYSTEMS = ROOT.parent / "shared" / "data" / "systems"

ASKED_FOR = """
    snapdragon-8-gen-3 apple-a17-pro raspberry-pi-5 jetson-orin-nano-8gb jetson-orin-nx-16gb jetson-agx-orin-64gb
    jetson-thor apple-m4-max apple-m3-ultra rtx-3090 rtx-4090 rtx-5090 rtx-pro-6000 t4 l4 l40s a10g a30 a100-sxm-40gb
    a100-pcie-80gb a100-sxm-80gb v100 h100-pcie h100-sxm h100-nvl h20 h200-sxm gh200 b200-sxm b300-sxm gb200 gb300
    mi250x mi300x mi325x mi355x gaudi-3 tpu-v5e tpu-v5p tpu-v6e b60 ascend-910b ascend-910c sn40l xeon epyc
""".split()  # noqa: SIM905


def test_the_catalogue_spans_phone_to_supernode() -> None:
    assert len(devices()) >= 36
    assert [device(name).name for name in ASKED_FOR]
    assert {row.kind for row in devices()} == set(KINDS)
    assert device_names() == [row.name for row in devices()]


def test_names_are_found_in_any_case_and_by_alias() -> None:
    assert device("H100") is device(" h100-sxm ") is device("h100")
    for row in devices():
        for name in (row.name, *row.aliases):
            assert device(name.upper()) is row


@pytest.mark.parametrize(
    ("word", "near"), [("h10", "h100"), ("rtx4090", "rtx-4090"), ("MI300", "mi300x"), ("jetson", "jetson-")]
)
def test_an_unknown_name_suggests_the_nearest(word: str, near: str) -> None:
    with pytest.raises(InputError, match=f"did you mean '{near}") as caught:
        device(word)
    assert (caught.value.path, caught.value.value) == ("device", word)
    assert "known: snapdragon-8-gen-3," in caught.value.consequence


@pytest.mark.parametrize("row", devices(), ids=lambda row: row.name)
def test_a_row_is_complete_and_plausible(row: Device) -> None:
    numbers = [*row.flops.values(), row.idle_w, row.peak_w, *row.usd_per_hour.values()]
    numbers += [link.bandwidth for link in (row.node, row.fabric, row.host)]
    numbers += [link.latency_s for link in (row.node, row.fabric, row.host)]
    assert all(math.isfinite(number) and number > 0 for number in numbers)
    assert set(row.flops) <= set(ARITHMETICS)
    assert row.computes("bf16"), "no device serves a language model without 16-bit arithmetic"
    assert [tier.bandwidth for tier in row.memory] == sorted((tier.bandwidth for tier in row.memory), reverse=True)
    assert row.on_chip is None or row.on_chip.bandwidth > row.memory[0].bandwidth
    assert row.idle_w < row.peak_w
    assert row.node.bandwidth >= row.fabric.bandwidth
    assert row.node.latency_s <= row.fabric.latency_s
    assert set(row.usd_per_hour) <= set(PURCHASES)
    assert row.usd_per_hour, "every device can be had at some price"
    assert row.price("on-demand")
    assert row.price("rented by the minute") == max(row.usd_per_hour.values())
    assert 3 < row.ridge("fp16" if "fp16" in row.flops else "bf16") < 1000
    assert 1e8 < row.memory[0].bandwidth / row.peak_w < 3e10, "bytes per joule"


def test_peaks_are_dense_and_ordered() -> None:
    """A figure with sparsity would stand out as twice what the other precisions imply."""
    unlike = {"gaudi-3"}  # computes FP8 and BF16 at one rate
    cut_back = {"b300-sxm", "gb300"}  # hardly compute INT8, and FP4 at three times FP8
    phones = {row.name for row in devices() if row.kind == "phone"}  # INT8 is another unit's
    for row in devices():
        half = row.flops.get("bf16", row.flops.get("fp16"))
        assert half
        assert row.flops.get("fp16", half) == half
        assert row.flops.get("fp32", 0) <= half
        if "fp8" in row.flops and row.name not in unlike:
            assert row.flops["fp8"] / half == pytest.approx(2, rel=0.03), row.name
        if "fp4" in row.flops and row.name not in cut_back:
            assert 1.99 <= row.flops["fp4"] / row.flops["fp8"] <= 4.01, row.name
        if "int8" in row.flops and row.name not in cut_back | phones:
            assert any(row.flops["int8"] / half == pytest.approx(times, rel=0.03) for times in (1, 2, 4)), row.name


#: what makers print in large type, with sparsity: none of it may be here
SPARSE_TFLOPS = {
    "a100-sxm-80gb": 624, "h100-sxm": 1979, "h200-sxm": 1979, "l4": 242, "l40s": 733, "b200-sxm": 4500, "gb200": 5000,
    "h100-pcie": 1513, "h100-nvl": 1671, "a30": 330, "rtx-4090": 330.3, "mi300x": 2614.9,
}  # fmt: skip


@pytest.mark.parametrize(("name", "sparse"), SPARSE_TFLOPS.items())
def test_sixteen_bit_peaks_are_half_of_the_sparse_figure(name: str, sparse: float) -> None:
    assert device(name).flops["bf16"] == pytest.approx(sparse / 2 * 1e12, rel=0.02)


def test_every_figure_has_a_dated_source() -> None:
    used = {price.source.key for offers in prices().values() for price in offers}
    used |= {source.key for row in regions() for source in row.sources}
    for row in devices():
        assert {"spec", "link", "power"} <= set(row.sources)
        assert set(row.usd_per_hour) <= set(row.sources)
        assert row.source
        assert row.date
        used |= {key for keys in row.sources.values() for key in keys}
    assert used == set(sources()), "every source is cited, and every citation is a source"
    for source in sources().values():
        assert datetime.date(2015, 1, 1) < datetime.date.fromisoformat(source.date) <= datetime.date(2026, 11, 24)
        assert source.kind in {"published", "derived", "measured", "price", "estimate"}
        assert source.title
        assert source.publisher
        assert source.url.startswith("https://") or source.kind == "estimate" or source.key == "launch-prices"
        assert len(source.note) > 20 or source.kind != "estimate", "an estimate gives its reasoning"


def test_a_row_with_guessed_compute_says_so() -> None:
    assert device("h100").status == "published"
    assert (
        device("snapdragon-8-elite").status == device("apple-m4").status == device("ascend-910b").status == "estimate"
    )


def test_prices_are_of_devices_that_exist() -> None:
    assert set(prices()) == set(device_names())


def test_the_middle_offer_is_the_price() -> None:
    head = ",".join(PRICE_COLUMNS)
    offers = read_prices(
        f"{head}\nx,on-demand,$8/h,2,,a,lambda-prices\nx,on-demand,$1/h,1,,b,lambda-prices\nx,on-demand,$3/h,1,,c,lambda-prices\n"
        "x,on-demand,$90/h,1,,d,lambda-prices\nx,owned,\"$17,532\",2,2,e,launch-prices\n",
        "p.csv",
    )["x"]  # fmt: skip
    chosen = typical(offers, "on-demand")
    assert chosen is not None
    assert (chosen.offer, chosen.usd_per_hour) == ("c", 3.0)  # of 1, 3, 4 and 90 the cheaper of the middle two
    owned = typical(offers, "owned")
    assert owned is not None
    assert owned.usd_per_hour == pytest.approx(0.5)  # 17,532 / 2 devices / 2 years of 8,766 h
    assert typical(offers, "spot") is None


def test_owning_adds_power() -> None:
    offers = [price for price in prices()["h100-sxm"] if price.purchase == "owned"]
    assert device("h100").usd_per_hour["owned"] == pytest.approx(offers[0].usd_per_hour + 0.7 * 1.2 * 0.10)


# ---- against what others state

#: names there -> names here
SAME = {
    "a100_pcie": "a100-pcie-80gb",
    "a100_sxm": "a100-sxm-80gb",
    "a30": "a30",
    "b200_sxm": "b200-sxm",
    "b300_sxm": "b300-sxm",
    "b60": "intel-arc-b60",
    "gb200": "gb200",
    "gb300": "gb300",
    "h100_pcie": "h100-pcie",
    "h100_sxm": "h100-sxm",
    "h200_sxm": "h200-sxm",
    "l4": "l4",
    "l40s": "l40s",
    "rtx_pro_6000_server": "rtx-pro-6000",
}
FIELDS = {
    "bfloat16_tc_flops": "bf16",
    "int8_tc_flops": "int8",
    "fp8_tc_flops": "fp8",
    "fp4_tc_flops": "fp4",
    "float32_tc_flops": "fp32",
}
WHY_NOT = {
    ("b60", "fp8_tc_flops"): "it has no FP8 arithmetic; the file says what BF16 does in its place",
    ("l40s", "inter_node_bw"): "a card cannot send faster to the network than its PCIe link: 32 GB/s",
    ("b60", "inter_node_bw"): "a card cannot send faster to the network than its PCIe link: 28.4 GB/s",
    ("gb200", "pcie_bw"): "host memory is reached over NVLink-C2C, not PCIe",
    ("gb300", "pcie_bw"): "host memory is reached over NVLink-C2C, not PCIe",
    ("gb200", "num_gpus_per_node"): "a node is the NVLink domain: the rack",
    ("gb300", "num_gpus_per_node"): "a node is the NVLink domain: the rack",
    ("gb200", "inter_node_bw"): "between trays of a rack there is NVLink; between racks see inter_rack_bw",
    ("gb300", "inter_node_bw"): "between trays of a rack there is NVLink; between racks see inter_rack_bw",
}


@pytest.mark.data
@pytest.mark.parametrize(("theirs", "ours"), SAME.items())
def test_agrees_with_the_systems_that_others_describe(theirs: str, ours: str) -> None:
    if not SYSTEMS.is_dir():
        pytest.skip(f"{SYSTEMS} is not there: the measurements lie beside the project")
    stated = yaml.safe_load((SYSTEMS / f"{theirs}.yaml").read_text())
    row, gpu, node = device(ours), stated["gpu"], stated["node"]
    pairs = {name: row.flops.get(key) for name, key in FIELDS.items() if name in gpu}
    pairs |= {"mem_bw": row.memory[0].bandwidth, "mem_capacity": row.memory[0].bytes, "power": row.peak_w}
    pairs |= {"num_gpus_per_node": row.node_devices, "intra_node_bw": row.node.bandwidth, "pcie_bw": row.host.bandwidth}
    pairs |= {"inter_rack_bw" if "inter_rack_bw" in node else "inter_node_bw": row.fabric.bandwidth}
    for name, value in pairs.items():
        if (theirs, name) not in WHY_NOT:
            assert value == pytest.approx((gpu | node)[name], rel=0.002), name


@pytest.mark.data
def test_every_system_that_others_describe_is_here() -> None:
    if not SYSTEMS.is_dir():
        pytest.skip(f"{SYSTEMS} is not there: the measurements lie beside the project")
    assert {path.stem for path in SYSTEMS.glob("*.yaml")} == set(SAME)


# ---- a row that is wrong


def edited(**changes: str) -> str:
    rows = [row for row in csv.DictReader(io.StringIO(table("devices.csv"))) if row["name"] == "l4"]
    text = io.StringIO()
    writer = csv.DictWriter(
        text, list(rows[0]) + [name for name in changes if name not in rows[0]], lineterminator="\n"
    )
    writer.writeheader()
    writer.writerow(rows[0] | changes)
    return text.getvalue()


def test_a_row_reads_by_itself() -> None:
    (row,) = read_devices(edited(), "mine.csv", {})
    assert row.usd_per_hour == {}
    assert row.price() is None
    assert row.flops == device("l4").flops


@pytest.mark.parametrize(
    ("changes", "path", "words"),
    [
        ({"fp8": "242 TB/s"}, "mine.csv:2 fp8", "'TB/s' is a unit of bandwidth, not of compute"),
        ({"fp8": "-1 TFLOP/s"}, "mine.csv:2 fp8", "above zero"),
        ({"memory": "GDDR6 24 GiB"}, "mine.csv:2 memory", "a name, a capacity and a bandwidth"),
        ({"memory": ""}, "mine.csv:2 memory", "is required"),
        ({"peak_power": ""}, "mine.csv:2 peak_power", "is required: limit on what one device draws"),
        ({"idle_power": "90 W"}, "mine.csv:2 idle_power", "must not exceed 72.0 W"),
        ({"kind": "data-center"}, "mine.csv:2 kind", "did you mean 'datacentre'"),
        ({"name": "L 4"}, "mine.csv:2 name", "lower-case words"),
        ({"aliases": "l4"}, "mine.csv:2 name", "is taken by l4"),
        ({"spec_source": "nvidia"}, "mine.csv:2 spec_source", "no such source"),
        ({"node_devices": "2.5"}, "mine.csv:2 node_devices", "whole number"),
        ({"node_bandwidth": ""}, "mine.csv:2 node_bandwidth", "is required"),
        ({"fp32": "", "bf16": "", "fp16": "", "fp8": "", "int8": ""}, "mine.csv:2 l4", "a peak in one precision"),
        ({"fp_8": "1"}, "mine.csv:1", "no such column (did you mean 'fp8'?)"),
    ],
)
def test_a_wrong_row_is_refused_with_line_and_attribute(changes: dict[str, str], path: str, words: str) -> None:
    with pytest.raises(InputError) as caught:
        read_devices(edited(**changes), "mine.csv", {})
    assert caught.value.path == path
    assert words in str(caught.value)


def test_a_table_without_a_column_or_with_a_short_row_is_refused() -> None:
    with pytest.raises(InputError, match="lacks the column 'title'"):
        read_devices("name\nx\n", "mine.csv", {})
    with pytest.raises(InputError, match="must have 7 fields"):
        read_prices(",".join(PRICE_COLUMNS) + "\nx,spot\n", "p.csv")
    with pytest.raises(InputError, match="must have 7 fields"):
        read_prices(",".join(PRICE_COLUMNS) + "\nx,spot,$1/h,1,,,lambda-prices,more\n", "p.csv")


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("x,sopt,$1/h,1,,,lambda-prices", "did you mean 'spot'"),
        ("x,spot,$1/h,1,,,lamda-prices", "did you mean 'lambda-prices'"),
        ("x,spot,1 s,1,,,lambda-prices", "unit of time, not of price"),
        ("x,spot,$1/h,0,,,lambda-prices", "above zero"),
        ("x,owned,$100,1,,,launch-prices", "p.csv:2 years"),
    ],
)
def test_a_wrong_price_is_refused(row: str, words: str) -> None:
    with pytest.raises(InputError) as caught:
        read_prices(",".join(PRICE_COLUMNS) + f"\n{row}\n", "p.csv")
    assert words in str(caught.value)


# ---- what is shown


@pytest.mark.parametrize("row", devices(), ids=lambda row: row.name)
def test_a_description_is_json_and_holds_what_the_row_does(row: Device) -> None:
    told = json.loads(json.dumps(describe_device(row), allow_nan=False))
    assert told["flops"] == dict(row.flops)
    for name, flops in row.flops.items():
        assert told["ridge_flop_per_byte"][name] * row.memory[0].bandwidth == pytest.approx(flops)
    assert {group for source in told["sources"] for group in source["for"]} == set(row.sources)
    assert {offer["purchase"] for offer in told["offers"]} == set(row.usd_per_hour)


def test_the_ridge_of_an_h100_is_what_its_datasheet_implies() -> None:
    assert device("h100").ridge("bf16") == pytest.approx(989 / 3.35)


def test_precisions_have_arithmetic() -> None:
    assert set(ARITHMETIC) == set(PRECISION_BYTES)
    assert [name for name in PRECISION_BYTES if device("b200").computes(name)] == [
        "fp32", "bf16", "fp16", "fp8", "int8", "fp6", "nvfp4", "mxfp4",
    ]  # fmt: skip
    assert not device("a100").computes("fp8")
    assert device("t4").computes("bf16")  # in FP16


def test_the_page_is_what_the_tables_say() -> None:
    assert (ROOT / "docs" / "devices.md").read_text() == page(), (
        "run: python -m sonde.catalogue.document docs/devices.md"
    )
    for attribute in attributes():
        assert f"| `{attribute.attribute}` |" in page()


# ---- places


def test_places_have_carbon_prices_and_sources() -> None:
    assert len(regions()) >= 20
    assert region("EUROPE-north1").carbon_g_per_kwh == 39.32
    for row in regions():
        assert 0 < row.carbon_g_per_kwh < 1000
        assert 0.02 < row.usd_per_kwh < 0.5
        assert 1 <= row.pue < 2
        assert row.sources


def test_an_unknown_or_wrong_place_is_refused() -> None:
    with pytest.raises(InputError, match="did you mean 'us-east"):
        region("us-eats1")
    head = "name,title,carbon_g_per_kwh,usd_per_kwh,pue,source\n"
    for line, words in (
        ("a,A,1,1,0.9,pue-home\n", "at least 1"),
        ("a,A,x,1,1,pue-home\n", "carbon_g_per_kwh"),
        ("a,A,1,1,1,pue-hom\n", "did you mean 'pue-home'"),
        ("a,A,1,1,1,pue-home\n" * 2, "is there twice"),
    ):
        with pytest.raises(InputError) as caught:
            read_regions(head + line, "s.csv")
        assert words in str(caught.value)


def test_finding_a_device_imports_nothing_heavy() -> None:
    code = "import sys, sonde.catalogue.devices as d; d.device('h100'); print(*sorted(sys.modules))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"numpy", "numba", "polars", "scipy", "plotly", "pydantic", "yaml"} & set(out)
