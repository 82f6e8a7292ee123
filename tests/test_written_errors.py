"""What is wrong with a technique is said of what was written: its file, its line, and its own parameter."""

from __future__ import annotations

import pytest

from sonde.cli.simulate import _unused
from sonde.deployment.load import load
from sonde.errors import InputError
from sonde.techniques.compose import blaming, checked

TREE = """sites:
  - pools:
      - replicas: 2
        replica: { model: llama-3.1-8b, device: h100-sxm, weights: fp8 }
techniques:
  - chunked-prefill
  - USE
"""
TRAFFIC = ("--profile", "azure-conv-2023", "--rate", "2/s", "--duration", "10 s")


@pytest.mark.parametrize(
    ("use", "path", "says"),
    [
        ("live-migration: {low: 60, high: 30}", "techniques.live-migration.low = 60.0", "at most high = 30"),
        ("disaggregation: {routing: nearst}", "techniques.disaggregation.routing = 'nearst'", "no such policy"),
        ("disaggregation: {bandwidth: 50}", "techniques[1].disaggregation.bandwidth = 50.0", "50 GB/s"),
        ("disaggregation: {stages: {decode: {tensor_parallel: 3}}}", "techniques.disaggregation = 3", "must divide"),
        ("speculative-decoding: {draft: llama-9}", "techniques.speculative-decoding.draft = 'llama-9'", "no such"),
        ("prefix-cache: {device: 200 GB}", "techniques.prefix-cache = '186 GiB'", "tier 'device' must be below"),
        ("prefix-cache", "techniques.prefix-cache = 'no hashed blocks'", "a `hit_rate`"),
        ("power-cap: 300", "techniques[1].power-cap = 300", "{power-cap: {parameter: 300}}"),
        ("live-migration: {pools: [pool]}", "techniques[1].live-migration.pools = ['pool']", "must be left out"),
        ("5", "techniques[1] = 5", "the name of a technique"),
        ("nano-batches: {foo: 1}", "techniques[1].nano-batches.foo = 1", "no such key; known here: pools"),
    ],
)
def test_the_error_names_file_line_and_parameter(sonde_cli, tmp_path, use, path, says):
    file = tmp_path / "mine.yaml"
    file.write_text(TREE.replace("USE", use))
    ended = sonde_cli("simulate", file, *TRAFFIC)
    assert ended.code == 2
    assert f"{file}, line 7: {path}: " in ended.err
    assert says in ended.err


def test_what_stands_in_the_tree_itself_keeps_its_place(sonde_cli, tmp_path):
    """Pools are numbered as they were written, not as a technique leaves them."""
    file = tmp_path / "mine.yaml"
    file.write_text(TREE.replace("USE", "disaggregation").replace("weights: fp8", "tensor_parallel: 3"))
    ended = sonde_cli("simulate", file, *TRAFFIC)
    assert (ended.code, f"{file}, line 4: sites[0].pools[0].replica.tensor_parallel = 3" in ended.err) == (2, True)


def test_errors_about_anything_else_are_left_alone():
    tree = load(TREE.replace("  - USE\n", ""))
    with pytest.raises(InputError, match=r"^--rate = 1: no$"), blaming(tree):
        raise InputError("--rate", 1, "no")


@pytest.mark.parametrize(
    ("use", "says"),
    [
        ("live-migration", "live migration moved nothing"),
        ("distributed-attention", "distributed attention lent nothing"),
        ("prefix-cache", "prefix cache found nothing"),
    ],
)
def test_what_did_nothing_is_said(use, says):
    summary = {"peak_kv": 0.5, "refused": 2, "migrations": 0, "given_up": 0, "loans": 0, "cached_share": 0.0}
    refused, nothing = _unused(checked(load(TREE.replace("USE", use)))[0], summary)
    assert refused.startswith("2 requests were refused")
    assert nothing.startswith(says) or says in nothing
    used = summary | {"refused": 0, "migrations": 1, "loans": 1, "cached_share": 0.1}
    assert not list(_unused(checked(load(TREE.replace("USE", use)))[0], used))
