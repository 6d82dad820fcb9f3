"""Shards on the nodes of a cluster, each of which reads only what lies on its own disks.

here = find_local_shards("/local/train-lmdb")      # {shard: records}; tell it to the other nodes
runs = place_shards([node_0, node_1, ...], shards)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate

from imagelmdb.errors import StoreError


def place_shards(node_shards: Sequence[Mapping[int, int]], shards: int) -> list[list[range]]:
    """Which records of its own partial store each node reads, as runs, so that every one is read once.

    A shard that lies on several nodes is read by the one that has the fewest records so far.
    """
    holders = {shard: [n for n, found in enumerate(node_shards) if shard in found] for shard in range(shards)}
    if missing := [shard for shard, nodes in holders.items() if not nodes]:
        raise StoreError(
            f"{len(missing)} of {shards} shards lie on no node, the first of them {missing[0]}: copy them"
        )
    counts = [0] * len(node_shards)
    taken: list[set[int]] = [set() for _ in node_shards]
    for shard, nodes in sorted(holders.items(), key=lambda item: len(item[1])):
        node = min(nodes, key=counts.__getitem__)
        taken[node].add(shard)
        counts[node] += node_shards[node][shard]
    runs = []
    for found, mine in zip(node_shards, taken, strict=True):
        ends = accumulate(found.values())
        runs.append([range(e - found[s], e) for s, e in zip(found, ends, strict=True) if s in mine])
    return runs
