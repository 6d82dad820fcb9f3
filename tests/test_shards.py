import doctest

import pytest

from imagelmdb.errors import StoreError
from imagelmdb.order import shards
from imagelmdb.order.shards import place_shards


def test_every_shard_is_read_on_one_node_that_has_it():
    nodes = [{0: 100, 1: 50}, {2: 70, 1: 50}, {3: 10}]
    assert place_shards(nodes, 4) == [[range(100)], [range(70), range(70, 120)], [range(10)]]


def test_the_example_of_the_module_is_true():
    assert doctest.testmod(shards).failed == 0


def test_nodes_that_all_have_every_shard_share_the_work():
    runs = place_shards([dict.fromkeys(range(6), 10)] * 3, 6)
    assert [sum(map(len, r)) for r in runs] == [20, 20, 20]
    assert sorted(i for node in runs for run in node for i in run) == list(range(60))


def test_a_shard_that_no_node_has_is_named():
    with pytest.raises(StoreError, match="1 of 3 shards are on no node, the first of them is 1"):
        place_shards([{0: 5}, {2: 5}], 3)
