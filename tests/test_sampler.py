import doctest

import numpy as np
import pytest

from imagelmdb.errors import StoreError, UserError
from imagelmdb.order import sampler as sampler_module
from imagelmdb.order.sampler import Sampler, place_shards


def epoch_of(sampler, epoch=0):
    return [sampler.indices(epoch, sampler.positions(s)) for s in range(sampler.steps_per_epoch)]


@pytest.mark.parametrize("shuffle", ["full", "block", "none"])
def test_ranks_reassemble_the_same_global_batches(shuffle):
    whole = epoch_of(Sampler(3000, batch_size=12, shuffle=shuffle), 4)
    for world_size in (2, 3, 4):
        ranks = [
            Sampler(3000, batch_size=12, shuffle=shuffle, rank=r, world_size=world_size)
            for r in range(world_size)
        ]
        for step, batch in enumerate(whole):
            parts = [s.indices(4, s.positions(step)) for s in ranks]
            assert np.array_equal(np.stack(parts, axis=1).reshape(-1), batch)


@pytest.mark.parametrize("shuffle", ["full", "block", "local"])
@pytest.mark.parametrize("count", [1, 2, 1023, 1024, 1025, 5000, 20_011, 64_000])
def test_an_epoch_has_every_record_once_and_differs_from_the_next(shuffle, count):
    sampler = Sampler(count, batch_size=1, shuffle=shuffle)
    orders = [sampler.indices(epoch, range(count)) for epoch in range(2)]
    for order in orders:
        assert np.array_equal(np.sort(order), np.arange(count))
    if count > 100:
        assert (orders[0] == orders[1]).mean() < 0.05


def test_training_drops_the_partial_batch_and_evaluation_keeps_it_unpadded():
    train = Sampler(103, batch_size=20)
    assert (train.steps_per_epoch, train.images_per_epoch) == (5, 100)
    seen = []
    for rank in range(4):
        evaluation = Sampler(101, batch_size=20, rank=rank, world_size=4, shuffle="none", keep_last=True)
        assert (evaluation.steps_per_epoch, evaluation.images_per_epoch) == (6, 101)
        seen += epoch_of(evaluation)
    assert np.array_equal(np.sort(np.concatenate(seen)), np.arange(101))
    assert [len(p) for p in seen[5::6]] == [1, 0, 0, 0]


def test_repeats_put_one_record_on_neighbouring_ranks():
    ranks = [Sampler(1000, batch_size=9, rank=r, world_size=3, repeats=3) for r in range(3)]
    assert ranks[0].steps_per_epoch == 111
    for step in (0, 50, 110):
        batches = [s.indices(1, s.positions(step)) for s in ranks]
        assert np.array_equal(batches[0], batches[1]) and np.array_equal(batches[0], batches[2])
        assert len(set(batches[0].tolist())) == 3


def test_block_shuffle_keeps_batches_diverse_and_ranks_in_their_own_blocks():
    count, labels = 1_281_000, np.arange(1_281_000) // 1281
    unique = {}
    for shuffle in ("full", "block"):
        sampler = Sampler(count, batch_size=256, shuffle=shuffle)
        steps = [*range(0, sampler.steps_per_epoch, 250), sampler.steps_per_epoch - 1]
        unique[shuffle] = [len(set(labels[sampler.indices(0, sampler.positions(s))])) for s in steps]
    assert min(unique["block"]) > 0.85 * np.mean(unique["full"])

    # in any part of the epoch, one rank of eight reads whole blocks of 16
    for rank in range(8):
        sampler = Sampler(count, batch_size=256, shuffle="block", rank=rank, world_size=8)
        read = np.sort(np.concatenate([sampler.indices(0, sampler.positions(s)) for s in range(512)]))
        runs = (np.diff(read) != 1).sum() + 1
        assert len(read) / 17 < runs < len(read) / 12


def test_block_shuffle_asks_for_runs_before_they_are_read():
    sampler = Sampler(200_000, batch_size=256, shuffle="block")
    served, asked, late = set(), set(), 0
    for step in range(sampler.steps_per_epoch):
        batch = set(sampler.indices(0, sampler.positions(step)).tolist())
        late += len(batch - asked) if step > 100 else 0
        asked |= set(sampler.upcoming(0, step, steps_ahead=4).tolist())
        served |= batch
    assert late < 0.01 * len(served)
    run = np.sort(sampler.upcoming(0, 50, steps_ahead=4))
    assert (np.diff(run) == 1).mean() > 0.7


def test_with_local_each_node_reads_all_of_its_own_records_in_the_same_number_of_batches():
    counts = [500, 1300, 777]
    runs = [[range(500)], [range(100, 1200), range(1300, 1500)], [range(777)]]
    split = {"batch_size": 60, "shuffle": "local", "world_size": 6, "node_runs": runs}
    ranks = [Sampler(sum(counts), rank=r, **split) for r in range(6)]
    assert {s.steps_per_epoch for s in ranks} == {sum(counts) // 60}
    assert ranks[0].images_per_epoch == sum(counts)
    for node in range(3):
        batches = epoch_of(ranks[2 * node], 3) + epoch_of(ranks[2 * node + 1], 3)
        assert sorted(np.concatenate(batches).tolist()) == [i for run in runs[node] for i in run]
        sizes = [len(b) for b in batches]
        assert min(sizes) > 0 and max(sizes) - min(sizes) <= 1
    positions = [p for s in ranks for t in range(s.steps_per_epoch) for p in s.positions(t)]
    assert sorted(positions) == list(range(sum(counts)))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"shuffle": "some"}, "full, block, local"),
        ({"batch_size": 10, "world_size": 4}, "10 does not split over 4"),
        ({"batch_size": 2000}, "1000 records are fewer than one batch of 2000"),
        ({"shuffle": "local", "world_size": 2, "node_runs": [[range(1000)], [range(1)]]}, "node 1 has 1 rec"),
        ({"shuffle": "local", "world_size": 4, "node_runs": [[range(400)]] * 3}, "4 ranks on 3 nodes"),
    ],
)
def test_options_that_do_not_fit_are_refused_with_the_values(options, message):
    with pytest.raises(UserError, match=message):
        Sampler(1000, **{"batch_size": 100, **options})


def test_a_store_with_fewer_records_than_a_round_of_blocks_has_nothing_to_ask_for():
    sampler = Sampler(1000, batch_size=100, shuffle="block")
    assert sampler.upcoming(0, 0, steps_ahead=4).size == 0


def test_every_shard_is_read_on_one_node_that_has_it():
    nodes = [{0: 100, 1: 50}, {2: 70, 1: 50}, {3: 10}]
    assert place_shards(nodes, 4) == [[range(100)], [range(70), range(70, 120)], [range(10)]]


def test_the_example_of_place_shards_is_true():
    assert doctest.testmod(sampler_module) == (0, 1)


def test_nodes_that_all_have_every_shard_share_the_work():
    runs = place_shards([dict.fromkeys(range(6), 10)] * 3, 6)
    assert [sum(map(len, r)) for r in runs] == [20, 20, 20]
    assert sorted(i for node in runs for run in node for i in run) == list(range(60))


def test_a_shard_that_no_node_has_is_named():
    with pytest.raises(StoreError, match="1 of 3 shards are on no node, the first of them is 1"):
        place_shards([{0: 5}, {2: 5}], 3)
