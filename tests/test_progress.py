"""Readings are exact for any split of the steps, and the verdict names what to try."""

import math
import time

import pytest
import torch
import torch.distributed as dist

from imagelmdb.train.feed import Feed
from imagelmdb.train.progress import Meter, Progress, describe_bottleneck
from imagelmdb.train.world import World

CPU = torch.device("cpu")


def make_meter(capacity=4):
    return Meter(World(dist.HashStore()), Feed([], CPU), capacity=capacity)


def test_a_meter_gives_each_loss_once_and_names_each_that_is_not_finite():
    meter = make_meter()
    for value in (1.0, math.nan, 2.0, math.inf):
        meter.add(torch.tensor(value))
    measured = meter.read()
    assert measured.losses[0] == 1.0 and measured.losses[2] == 2.0
    assert measured.broken == [(1, 0), (3, 0)]
    assert meter.read().losses == []


@pytest.mark.parametrize("wishes", [{"save": True}, {"stop": True}, {"save": True, "stop": True}, {}])
def test_a_reading_carries_the_wishes_of_the_ranks(wishes):
    measured = make_meter().read(**wishes)
    assert (measured.save, measured.stop) == ("save" in wishes, "stop" in wishes)


def test_the_time_before_the_clock_is_restarted_does_not_count():
    meter = make_meter()
    time.sleep(0.05)
    meter.restart_clock()
    assert meter.read().seconds < 0.05


def test_a_resumed_sum_of_losses_is_the_same_to_the_last_bit():
    losses = torch.rand(9, generator=torch.Generator().manual_seed(0)).tolist()

    def progress_of(*parts):
        meter, progress = make_meter(capacity=9), Progress()
        for part in parts:
            for loss in part:
                meter.add(torch.tensor(loss))
            progress.add(meter.read(), batch_size=3)
        return progress.loss_sum, progress.epoch_images

    assert progress_of(losses) == progress_of(losses[:4], losses[4:])


def test_the_feed_counts_the_time_it_waited():
    def slow():
        for _ in range(3):
            time.sleep(0.02)
            yield torch.zeros(1), torch.zeros(1)

    feed = Feed(slow(), CPU)
    assert sum(1 for _ in iter(feed.take, None)) == 3
    assert feed.take_wait() >= 0.06
    assert feed.take_wait() == 0


def test_the_verdict_names_both_rates_and_what_to_try(monkeypatch):
    monkeypatch.setattr("imagelmdb.train.progress.count_cores", lambda: 8)
    fed = Progress(seconds=10, wait_seconds=0.2)
    starved = Progress(seconds=10, wait_seconds=5, timed_images=20_000)
    assert describe_bottleneck(fed, workers=8, local_size=1, lmdb=True) == "compute-bound"
    assert describe_bottleneck(starved, workers=6, local_size=1, lmdb=False) == (
        "data-bound: the loader delivers 2,000 images/s, "
        "the model could train on 4,000 images/s; try --workers 8"
    )
    assert "--lmdb" in describe_bottleneck(starved, workers=8, local_size=1, lmdb=False)
    assert "--max-size" in describe_bottleneck(starved, workers=8, local_size=1, lmdb=True)


def test_the_verdict_shares_the_machines_cores_among_its_ranks(monkeypatch):
    monkeypatch.setattr("imagelmdb.train.progress.count_cores", lambda: 8)
    starved = Progress(seconds=10, wait_seconds=5, timed_images=20_000)
    assert "--workers 2" in describe_bottleneck(starved, workers=1, local_size=4, lmdb=True)
    assert "--workers" not in describe_bottleneck(starved, workers=2, local_size=4, lmdb=True)
