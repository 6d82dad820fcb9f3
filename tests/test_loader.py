import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import torch
import torch.distributed as dist
from processes import run_ranks
from stores import make_tree, write_store
from torchvision.transforms import v2

from imagelmdb.data.batches import TrainCrop
from imagelmdb.data.loader import make_eval_loader, make_train_loader
from imagelmdb.decode import decode
from imagelmdb.errors import LoaderError, StoreError, UserError
from imagelmdb.order.plan import plan_eval
from imagelmdb.store.reader import LMDBStore, find_local_shards

# The caller, threads, and processes make the batches.
ENGINES = pytest.mark.parametrize(
    "engine",
    [{"workers": 0}, {"workers": 2}, {"workers": 2, "decode": "libjpeg"}],
    ids=["caller", "threads", "processes"],
)


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    return make_tree(tmp_path_factory.mktemp("data") / "tree", {"a": 30, "b": 11, "c": 20})


@pytest.fixture(scope="module")
def store(tree):
    return write_store(tree, tree.parent / "store.lmdb")


@pytest.fixture(scope="module")
def shards(tree):
    return write_store(tree, tree.parent / "shards", shard_ends=[13, 40, 61])


def train_loader(path, **options):
    defaults = {"batch_size": 12, "seed": 5, "size": 32, "workers": 0}
    return make_train_loader(path, **defaults | options)


def eval_loader(path, **options):
    defaults = {"batch_size": 16, "size": 28, "resize": 32, "workers": 0}
    return make_eval_loader(path, **defaults | options)


def read(loader, epoch=0, **options):
    batches = [(images.clone(), labels.clone()) for images, labels in loader.epoch(epoch, **options)]
    loader.close()
    return batches


def assert_same(ours, theirs):
    assert len(ours) == len(theirs) > 0
    for (images, labels), (expected_images, expected_labels) in zip(ours, theirs, strict=True):
        assert torch.equal(images, expected_images) and torch.equal(labels, expected_labels)


def noisy(image):
    """A transform that draws from every generator there is."""
    import random

    noise = torch.randint(0, 9, image.shape) + int(np.random.randint(9)) + random.randrange(9)  # noqa: NPY002
    return (image // 2 + noise).to(torch.uint8)


def test_batches_are_channels_last_uint8_with_int64_labels(store):
    loader = train_loader(store)
    batches = read(loader)
    assert len(batches) == loader.steps_per_epoch == 5 and loader.images_per_epoch == 60
    assert loader.classes == ["a", "b", "c"]
    for images, labels in batches:
        assert images.shape == (12, 3, 32, 32) and images.dtype == torch.uint8
        assert images.is_contiguous(memory_format=torch.channels_last)
        assert labels.dtype == torch.int64 and labels.shape == (12,)


@pytest.mark.parametrize(
    "options", [{}, {"shuffle": "block"}, {"repeats": 3}], ids=["full", "block", "repeats"]
)
def test_workers_ranks_shards_and_files_do_not_change_a_batch(tree, store, shards, options):
    expected = read(train_loader(store, **options), 3)
    for workers in (1, 2, 4):
        assert_same(read(train_loader(store, workers=workers, **options), 3), expected)
    for workers in (1, 2):
        assert_same(read(train_loader(store, workers=workers, decode="libjpeg", **options), 3), expected)
    options |= {"transform": noisy}
    expected = read(train_loader(store, **options), 3)
    for workers in (1, 2, 4):
        assert_same(read(train_loader(store, workers=workers, **options), 3), expected)
    assert_same(read(train_loader(shards, **options), 3), expected)
    assert_same(read(train_loader(tree, **options), 3), expected)
    for world_size in (2, 3):
        ranks = [
            read(train_loader(store, rank=r, world_size=world_size, **options), 3) for r in range(world_size)
        ]
        merged = [
            tuple(torch.stack(parts, 1).flatten(0, 1) for parts in zip(*batches, strict=True))
            for batches in zip(*ranks, strict=True)
        ]
        assert_same(merged, expected)


@pytest.fixture
def spawning():
    before = multiprocessing.get_start_method()
    multiprocessing.set_start_method("spawn", force=True)
    yield
    multiprocessing.set_start_method(before, force=True)


def test_spawned_workers_give_the_same_batches_and_live_through_epochs_and_sizes(store, spawning):
    loader, expected = train_loader(store, workers=1, decode="libjpeg"), train_loader(store)
    for epoch, size, start_step in [(0, None, 0), (1, 48, 0), (1, None, 3)]:
        ours = [(i.clone(), x.clone()) for i, x in loader.epoch(epoch, start_step=start_step, size=size)]
        assert_same(ours, read_again(expected, epoch, size)[start_step:])
    loader.close()


def read_again(loader, epoch, size):
    return [(i.clone(), x.clone()) for i, x in loader.epoch(epoch, size=size)]


@ENGINES
def test_a_restart_in_the_middle_of_an_epoch_goes_on_where_it_stopped(store, engine):
    whole = read(train_loader(store), 7)
    loader = train_loader(store, **engine)
    next(iter(loader.epoch(7)))  # an epoch left early does not leak into the next
    assert_same(read(loader, 7, start_step=2), whole[2:])


@ENGINES
def test_an_epoch_ends_with_an_error_when_the_next_one_has_begun(store, engine):
    expected = read(train_loader(store), 1)
    loader = train_loader(store, **engine)
    older, newer = loader.epoch(0), loader.epoch(1)
    next(older)
    received = [next(newer)]
    with pytest.raises(
        LoaderError, match="epoch 0 cannot be read on: another epoch of this loader has begun"
    ):
        next(older)
    assert_same([*received, *newer], expected)  # which goes on as if nothing had happened
    loader.close()


@ENGINES
def test_epochs_read_in_threads_are_right_or_end_with_an_error(store, engine):
    expected = [read(train_loader(store), epoch) for epoch in range(4)]
    loader, ends = train_loader(store, **engine), []

    def read_epoch(epoch):
        batches = []
        try:
            for images, labels in loader.epoch(epoch):
                batches.append((images.clone(), labels.clone()))
        except LoaderError as error:
            ends.append(str(error))
        assert_same(batches or expected[epoch], expected[epoch][: len(batches) or None])
        ends.append(len(batches))

    threads = [threading.Thread(target=read_epoch, args=(epoch,)) for epoch in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    loader.close()
    assert len([end for end in ends if isinstance(end, int)]) == 4  # no thread failed otherwise
    assert loader.steps_per_epoch in ends


def test_a_closed_loader_says_so(store):
    loader = train_loader(store, workers=1)
    batches = loader.epoch(0)
    next(batches)
    loader.close()
    with pytest.raises(LoaderError, match="it was closed"):
        next(batches)


def test_batches_that_are_kept_are_not_written_over(store):
    kept = list(train_loader(store, workers=2, batch_size=3).epoch(0))
    assert_same(kept, read(train_loader(store, batch_size=3)))
    assert kept[0][0].is_contiguous(memory_format=torch.channels_last)


def test_path_and_batch_size_are_enough(tree, store):
    for path in (tree, store):
        images, labels = next(make_train_loader(path, batch_size=4, workers=0).epoch(0))
        assert images.shape == (4, 3, 224, 224) and labels.shape == (4,)
        images, labels = next(make_eval_loader(path, batch_size=4, workers=0).epoch(0))
        assert images.shape == (4, 3, 224, 224) and labels.shape == (4,)


def print_share(path):
    dist.init_process_group("gloo")
    labels = [labels.tolist() for _, labels in make_eval_loader(path, batch_size=8, workers=0).epoch(0)]
    print("share", [label for batch in labels for label in batch], flush=True)
    dist.destroy_process_group()
    return 0


def test_ranks_of_torch_distributed_share_the_data_by_themselves(store, tmp_path):
    codes, texts = run_ranks(print_share, store, size=2, output=tmp_path)
    assert codes == [0, 0], texts
    labels = LMDBStore(store).labels.tolist()
    assert f"share {labels[::2]}" in texts[0] and f"share {labels[1::2]}" in texts[1]


def test_lmdb_overrules_what_would_be_found_out(tree, store):
    with pytest.raises(UserError, match="is a store: add --lmdb"):
        train_loader(store, lmdb=False)
    with pytest.raises(UserError, match="is not a store"):
        train_loader(tree, lmdb=True)


def test_epochs_and_seeds_differ(store):
    first = read(train_loader(store), 0)[0][0]
    assert not torch.equal(first, read(train_loader(store), 1)[0][0])
    assert not torch.equal(first, read(train_loader(store, seed=6), 0)[0][0])


def test_the_loader_leaves_the_global_random_states_alone(store):
    torch.manual_seed(0)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    read(train_loader(store, transform=noisy, workers=0))
    read(train_loader(store, transform=noisy, workers=1))
    assert torch.equal(before[0], torch.get_rng_state())
    assert np.array_equal(before[1], np.random.get_state()[1])  # noqa: NPY002


def test_torchvisions_v2_transforms_work(store):
    transform = v2.Compose([v2.TrivialAugmentWide(), v2.RandomErasing(p=1)])
    batches = read(train_loader(store, transform=transform))
    assert_same(batches, read(train_loader(store, transform=transform, workers=2)))
    assert not torch.equal(batches[0][0], read(train_loader(store))[0][0])


def test_a_transform_that_changes_the_shape_is_refused(store):
    with pytest.raises(UserError, match=r"\(3, 16, 16\)"):
        read(train_loader(store, transform=v2.Resize((16, 16))))


@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
def test_evaluation_sees_every_image_once_and_pads_nothing(tree, store, world_size):
    records = LMDBStore(store)
    boxes = plan_eval(records.sizes, size=28, resize=32).tolist()
    expected = sorted(decode(records[i], tuple(boxes[i]), 28).numpy().tobytes() for i in range(61))
    seen = []
    for rank in range(world_size):
        loader = eval_loader(store, rank=rank, world_size=world_size)
        assert loader.images_per_epoch == 61
        seen += [image.numpy().tobytes() for images, _ in read(loader) for image in images]
    assert sorted(seen) == expected
    assert_same(read(eval_loader(tree)), read(eval_loader(store, workers=2)))


def test_a_rank_without_a_share_of_the_last_batch_yields_fewer(store):
    counts = [len(read(eval_loader(store, rank=r, world_size=3, batch_size=30))) for r in range(3)]
    assert counts == [3, 2, 2]


def test_local_shards_are_read_where_they_lie(shards, tmp_path):
    nodes = []
    for number, files in enumerate([[0, 2], [1]]):
        nodes.append(tmp_path / str(number))
        nodes[-1].mkdir()
        for shard in files:
            os.link(shards / f"shard-{shard:05d}.lmdb", nodes[-1] / f"shard-{shard:05d}.lmdb")
    found = [find_local_shards(node) for node in nodes]
    assert found == [{0: 13, 2: 21}, {1: 27}]
    crop = TrainCrop(scale=(1, 1), ratio=(1, 1), hflip=0.0)
    options = {"shuffle": "local", "node_shards": found, "world_size": 4, "crop": crop}
    loaders = [train_loader(nodes[rank // 2], rank=rank, **options) for rank in range(4)]
    batches = [read(loader) for loader in loaders]
    assert [len(b) for b in batches] == [5] * 4
    images = [image.numpy().tobytes() for b in batches for images, _ in b for image in images]
    assert len(images) == len(set(images)) == loaders[0].images_per_epoch == 61


@ENGINES
def test_a_corrupt_record_stops_the_run_and_is_named(tree, tmp_path, engine):
    path = write_store(tree, tmp_path / "s.lmdb")
    image, name = bytes(LMDBStore(path)[37].image), LMDBStore(path).name(37)
    data = bytearray(path.read_bytes())
    at = data.index(image) + len(image) // 2
    data[at : at + 512] = bytes(512)  # as a disk loses a sector
    damaged = tmp_path / "damaged.lmdb"
    damaged.write_bytes(data)
    for check, message in {
        "once": rf"damaged.lmdb key 00000037 \(index 37, {name}\): its checksum differs",
        "off": rf"damaged.lmdb key 00000037 \(index 37, {name}\) does not decode",
    }.items():
        with pytest.raises(StoreError, match=message) as caught:
            read(eval_loader(damaged, **engine, size=32, check=check))
        assert "Traceback" not in str(caught.value)


def test_a_file_that_went_away_is_named(tmp_path):
    tree = make_tree(tmp_path / "tree", {"a": 5})
    loader = eval_loader(tree)
    (tree / "a" / "3.JPEG").unlink()
    with pytest.raises(UserError, match=r"cannot read .*a/3.JPEG: No such file"):
        read(loader)


CAN_UNSHARE = shutil.which("unshare") and not subprocess.call(["unshare", "--mount", "true"])


@pytest.mark.skipif(not CAN_UNSHARE, reason="needs root and Linux, to mount a small /dev/shm")
def test_a_small_dev_shm_is_one_line_with_the_way_out(store):
    script = (
        "from imagelmdb.data.loader import make_train_loader\n"
        f"make_train_loader({str(store)!r}, batch_size=60, workers=1, decode='libjpeg')"
    )
    command = f'mount -t tmpfs -o size=1m tmpfs /dev/shm && exec {sys.executable} -c "$0"'
    done = subprocess.run(
        ["unshare", "--mount", "bash", "-c", command, script], capture_output=True, text=True
    )
    assert re.search(r"UserError: no room for 27 MB of shared memory .*--shm-size", done.stderr), done.stderr


def die(image):
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_dead_worker_stops_the_run_and_says_where(store):
    started = time.monotonic()
    with pytest.raises(
        LoaderError,
        match=r"loader worker 0 \(pid \d+\) was killed by SIGKILL; .*dmesg.* The loader of .*store.lmdb "
        r"waited for epoch 2, step 0, .* index \d+, .* key 000000\d\d",
    ):
        read(train_loader(store, workers=1, transform=die), 2)
    assert time.monotonic() - started < 20


def test_prefetching_and_pillow_change_no_more_than_they_should(store):
    expected = read(train_loader(store))
    assert_same(read(train_loader(store, prefetch_pages=True, workers=2)), expected)
    reference = read(train_loader(store, decode="pillow"))
    assert max((a[0].int() - b[0].int()).abs().max() for a, b in zip(expected, reference, strict=True)) <= 1


@pytest.mark.parametrize(
    "options, message",
    [
        ({"decode": "magic"}, "auto, tiles, libjpeg, gpu, pillow"),
        ({"batch_size": 62}, "61 records are fewer"),
    ],
)
def test_wrong_options_are_named(store, options, message):
    with pytest.raises(UserError, match=message):
        train_loader(store, **options)
