"""Which node of a cluster reads which shard, if each node reads only from its own disks.

Node 0 has the shards 0 (100 records) and 1 (50 records), node 1 has the shards 2 (70) and 1 (50):

>>> place_shards([{0: 100, 1: 50}, {2: 70, 1: 50}], 3)
[[range(0, 100)], [range(0, 70), range(70, 120)]]

Both have shard 1. Node 1 reads it, because it has fewer records so far. A range counts in the node's own
store, which is its shards in the order given.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate

from imagelmdb.errors import StoreError


def place_shards(node_shards: Sequence[Mapping[int, int]], shards: int) -> list[list[range]]:
    """For each node the ranges of records that it reads from its own store, so that each shard is read once.

    node_shards: for each node its shards, {shard: number of records}. shards: how many there are in all. If
    several nodes have a shard, the one with the fewest records so far reads it.
    """
    owners = {shard: [n for n, found in enumerate(node_shards) if shard in found] for shard in range(shards)}
    if missing := [shard for shard, nodes in owners.items() if not nodes]:
        raise StoreError(
            f"{len(missing)} of {shards} shards are on no node, the first of them is {missing[0]}: "
            f"copy each of them to a node"
        )
    counts = [0] * len(node_shards)
    taken: list[set[int]] = [set() for _ in node_shards]
    for shard, nodes in sorted(owners.items(), key=lambda item: len(item[1])):
        node = min(nodes, key=counts.__getitem__)
        taken[node].add(shard)
        counts[node] += node_shards[node][shard]
    runs = []
    for found, mine in zip(node_shards, taken, strict=True):
        ends = accumulate(found.values())
        runs.append([range(e - found[s], e) for s, e in zip(found, ends, strict=True) if s in mine])
    return runs
