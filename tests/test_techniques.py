"""Techniques: read, refused, ordered and applied."""

from __future__ import annotations

import pytest

from sonde.deployment.load import dump, load
from sonde.errors import InputError
from sonde.techniques.compose import arranged, chosen
from sonde.techniques.table import TECHNIQUES, technique
from sonde.techniques.technique import Technique

REPLICA = {"model": "llama-3.1-8b", "device": "h100-sxm", "batching": {"policy": "prefill-first"}}


def deployment(*techniques):
    return load({"sites": [{"pools": [{"name": "chat", "replica": REPLICA}]}], "techniques": list(techniques)})


@pytest.mark.parametrize("name", TECHNIQUES)
def test_every_line_of_the_table_is_a_technique(name):
    found = technique(name)
    assert isinstance(found, Technique)
    assert found.title
    assert found.source
    assert set(found.cannot) <= set(TECHNIQUES)
    assert any((found.deployment, found.replica, found.shard, found.operators, found.engine))


def test_parameters_reach_the_replica():
    tree = arranged(deployment({"chunked-prefill": {"token_budget": 640}}))
    batching = tree.pools[0].replica.batching
    assert (batching.policy, batching.token_budget) == ("chunked", 640)
    assert load(dump(tree)) == tree


def test_pools_that_are_not_named_stay_as_they_are():
    other = {"name": "batch", "replica": REPLICA}
    tree = load({"sites": [{"pools": [{"name": "chat", "replica": REPLICA}, other]}],
                 "techniques": [{"chunked-prefill": {"pools": ["batch"]}}]})  # fmt: skip
    assert [pool.replica.batching.policy for pool in arranged(tree).pools] == ["prefill-first", "chunked"]


@pytest.mark.parametrize(
    ("uses", "path", "says"),
    [
        (["chunked-prefil"], "techniques[0]", "chunked-prefill"),
        ([{"chunked-prefill": {"budget": 3}}], "techniques[0].chunked-prefill.budget", "token_budget"),
        ([{"chunked-prefill": {"token_budget": 0}}], "techniques[0].chunked-prefill.token_budget", "at least 1"),
        ([{"chunked-prefill": {"token_budget": "many"}}], "techniques[0].chunked-prefill.token_budget", "whole number"),
        (["chunked-prefill", "chunked-prefill"], "techniques[1]", "twice"),
        ([{"chunked-prefill": {}, "other": {}}], "techniques[0]", "one name"),
    ],
)
def test_what_cannot_be_is_refused(uses, path, says):
    with pytest.raises(InputError) as caught:
        chosen(uses)
    assert caught.value.path == path
    assert says in str(caught.value)


def test_a_pool_that_is_not_there_is_refused():
    with pytest.raises(InputError, match="chat"):
        arranged(deployment({"chunked-prefill": {"pools": ["chats"]}}))
