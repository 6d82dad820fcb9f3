"""GPU decode on DALI's CPU backend, which runs the same pipeline; what needs a GPU skips without one."""

import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from odd_files import make_odd_files
from stores import make_tree, write_store

from imagelmdb.data.batches import TrainCrop
from imagelmdb.data.loader import make_eval_loader, make_train_loader
from imagelmdb.decode import make_decoder
from imagelmdb.decode.dali import DaliDecoder
from imagelmdb.errors import StoreError, UserError
from imagelmdb.store.reader import LMDBStore

needs_dali = pytest.mark.skipif(
    not find_spec("nvidia") or not find_spec("nvidia.dali"),
    reason="NVIDIA DALI is not installed: pip install '.[dali]' (Linux only)",
)
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA GPU")


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    return make_tree(tmp_path_factory.mktemp("data") / "tree", {"a": 30, "b": 11, "c": 20})


@pytest.fixture(scope="module")
def store(tree):
    return write_store(tree, tree.parent / "store.lmdb")


def train_loader(path, **options):
    return make_train_loader(path, **{"batch_size": 12, "seed": 5, "size": 32, "workers": 0} | options)


def eval_loader(path, **options):
    return make_eval_loader(path, **{"batch_size": 16, "size": 28, "resize": 32, "workers": 0} | options)


def on_dali(make, path, **options):
    """The loader with DALI's CPU backend."""
    return make(path, decode=DaliDecoder(device_id=None), **options)


def read(loader, epoch=0, **options):
    batches = list(loader.epoch(epoch, **options))
    loader.close()
    return batches


def assert_close(ours, theirs):
    """Image by image; so close too where one row of pixels from outside a crop would show."""
    assert len(ours) == len(theirs) > 0
    for (images, labels), (expected, expected_labels) in zip(ours, theirs, strict=True):
        assert torch.equal(labels, expected_labels)
        assert images.shape == expected.shape and images.dtype == torch.uint8
        assert images.is_contiguous(memory_format=torch.channels_last)
        difference = (images.int() - expected.int()).abs()
        assert difference.float().mean((1, 2, 3)).max() <= 1 and difference.max() <= 16


@needs_dali
@pytest.mark.parametrize("workers", [0, 2])
def test_images_labels_and_their_order_are_those_of_the_cpu_decode(tree, store, workers):
    for path in (tree, store):
        expected = train_loader(path)
        loader = on_dali(train_loader, path, workers=workers)
        assert loader.classes == ["a", "b", "c"]
        assert loader.steps_per_epoch == 5 and loader.images_per_epoch == 60
        for epoch in range(2):
            assert_close(list(loader.epoch(epoch)), list(expected.epoch(epoch)))
        loader.close()
        assert loader.decoder.decoded_on_cpu == 0


@needs_dali
@pytest.mark.parametrize("size", [32, 96])
def test_crops_far_larger_and_smaller_than_their_images_are_resized_alike(store, size):
    options = {"crop": TrainCrop(scale=(0.01, 0.05), hflip=1.0), "size": size}
    assert_close(read(on_dali(train_loader, store, **options)), read(train_loader(store, **options)))


@needs_dali
@pytest.mark.parametrize("world_size", [1, 3])
def test_evaluation_has_every_image_once_and_a_short_last_batch(store, world_size):
    counts = []
    for rank in range(world_size):
        options = {"rank": rank, "world_size": world_size, "batch_size": 30}
        ours = read(on_dali(eval_loader, store, **options))
        assert_close(ours, read(eval_loader(store, **options)))
        counts.append([len(labels) for _, labels in ours])
    assert counts == ([[30, 30, 1]] if world_size == 1 else [[10, 10, 1], [10, 10], [10, 10]])


@needs_dali
def test_an_epoch_starts_at_any_step_also_after_one_that_was_left_early(store):
    whole = read(train_loader(store), 7)
    loader = on_dali(train_loader, store, workers=1)
    next(loader.epoch(3))
    assert_close(read(loader, 7, start_step=2), whole[2:])


@needs_dali
def test_the_size_may_change_from_epoch_to_epoch(store):
    expected = train_loader(store)
    loader = on_dali(train_loader, store)
    for epoch, size in enumerate([48, 24, None]):
        assert_close(list(loader.epoch(epoch, size=size)), list(expected.epoch(epoch, size=size)))


@needs_dali
def test_batches_stay_what_they_are_while_others_follow(store):
    kept = [(images, images.clone()) for images, _ in on_dali(train_loader, store).epoch(0)]
    assert all(torch.equal(images, copy) for images, copy in kept)


@needs_dali
def test_threads_and_open_files_do_not_grow_with_epochs(store):
    loader = on_dali(train_loader, store, workers=1)
    counts = []
    for epoch in range(4):
        for _ in loader.epoch(epoch):
            pass
        counts.append([len(list(Path("/proc/self", kind).iterdir())) for kind in ("task", "fd")])
    loader.close()
    for later in counts[2:]:  # what earlier tests left may end meanwhile, so they may fall
        assert all(now <= before for now, before in zip(later, counts[1], strict=True)), counts


@needs_dali
@pytest.mark.parametrize("workers", [0, 1])
def test_other_formats_and_colours_are_decoded_by_the_cpu_and_counted(tree, tmp_path, workers):
    odd = tmp_path / "odd"
    files = make_odd_files(tmp_path)
    for label, kind in enumerate(("cmyk", "png", "progressive", "grey")):
        (odd / f"{label}_{kind}").mkdir(parents=True)
        (odd / f"{label}_{kind}" / "x.JPEG").write_bytes(files[kind].read_bytes())
        (odd / f"{label}_{kind}" / "y.JPEG").write_bytes((tree / "a" / f"{label}.JPEG").read_bytes())
    expected = eval_loader(odd, batch_size=3)
    loader = on_dali(eval_loader, odd, batch_size=3, workers=workers)
    assert_close(read(loader), read(expected))
    assert loader.decoder.decoded_on_cpu == 2


@needs_dali
def test_what_dali_refuses_is_decoded_by_the_cpu_and_counted_and_the_rest_by_dali(tree, tmp_path):
    copy = make_tree(tmp_path / "tree", {"a": 9})
    file = copy / "a" / "4.JPEG"
    data = file.read_bytes()
    file.write_bytes(data[:2] + b"\xff\x01" + data[2:])  # a marker without meaning, which libjpeg passes over
    expected = eval_loader(copy, batch_size=2)
    loader = on_dali(eval_loader, copy, batch_size=2)
    with pytest.warns(UserWarning, match="the CPU decodes a batch that DALI cannot: nvImageCodec failure"):
        assert_close(list(loader.epoch(0)), list(expected.epoch(0)))
    assert loader.decoder.decoded_on_cpu == 2
    with pytest.warns(UserWarning):
        assert_close(read(loader, 1), read(expected, 1))


@needs_dali
@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_record_is_named_also_where_its_jpeg_decodes(tree, tmp_path, workers):
    path = write_store(tree, tmp_path / "s.lmdb")
    image, name = bytes(LMDBStore(path)[37].image), LMDBStore(path).name(37)
    data = bytearray(path.read_bytes())
    at = data.index(image) + len(image) // 2
    data[at] ^= 4
    damaged = tmp_path / "damaged.lmdb"
    damaged.write_bytes(data)
    loader = on_dali(eval_loader, damaged, workers=workers)
    with pytest.raises(StoreError, match=rf" key 00000037 \(index 37, {name}\): its checksum differs"):
        read(loader)


@needs_dali
def test_a_truncated_file_is_named_after_the_batches_before_it(tmp_path):
    copy = make_tree(tmp_path / "tree", {"a": 9})
    file = copy / "a" / "4.JPEG"
    file.write_bytes(file.read_bytes()[:-700])
    batches = []
    with pytest.raises(StoreError, match=r"a/4.JPEG \(index 4, a/4.JPEG\) does not decode"):
        for batch in on_dali(eval_loader, copy, batch_size=2).epoch(0):
            batches.append(batch)
    assert len(batches) == 2


@needs_dali
def test_a_transform_of_single_images_is_refused(store):
    with pytest.raises(UserError, match="a transform of single images needs them on the CPU"):
        on_dali(train_loader, store, transform=torch.flip)


def test_options_of_the_cpu_decoder_are_refused():
    with pytest.raises(UserError, match="dct_scale is an option of the libjpeg decoder"):
        make_decoder("gpu", dct_scale=True)


@needs_dali
def test_a_raw_store_is_refused(tree, tmp_path):
    raw = write_store(tree, tmp_path / "raw.lmdb", encoding="raw")
    with pytest.raises(UserError, match=r"raw.lmdb has raw pixels"):
        on_dali(train_loader, raw)


def test_without_dali_the_message_has_the_pip_command(store, monkeypatch):
    monkeypatch.setitem(sys.modules, "nvidia.dali", None)
    with pytest.raises(UserError, match="pip install nvidia-dali-cuda130") as caught:
        on_dali(train_loader, store)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_there_is_one_line(store):
    for make in (train_loader, eval_loader):
        with pytest.raises(UserError, match="decode gpu needs a CUDA GPU, and torch finds none"):
            make(store, decode="gpu")


@needs_dali
@needs_gpu
def test_the_gpu_shows_what_the_cpu_shows(tree, store):
    for path in (tree, store):
        ours = read(train_loader(path, decode="gpu", workers=2))
        assert all(images.is_cuda and labels.is_cuda for images, labels in ours)
        for (images, labels), (expected, expected_labels) in zip(ours, read(train_loader(path)), strict=True):
            assert torch.equal(labels.cpu(), expected_labels)
            assert images.is_contiguous(memory_format=torch.channels_last)
            difference = (images.cpu().int() - expected.int()).abs().float()
            assert difference.mean((1, 2, 3)).max() <= 2


@needs_dali
@needs_gpu
def test_memory_of_a_batch_that_kernels_still_read_is_not_given_to_another(store):
    expected = [images.sum().item() for images, _ in read(train_loader(store, decode="gpu"))]
    sums = []
    for images, _ in train_loader(store, decode="gpu").epoch(0):
        torch.cuda._sleep(50_000_000)  # some 30 ms, in which the host runs ahead
        sums.append(images.sum())
        del images
    assert [total.item() for total in sums] == expected


@needs_dali
@needs_gpu
def test_gpu_memory_does_not_grow_with_epochs(store):
    loader = train_loader(store, decode="gpu", workers=2)
    free = []
    for epoch in range(5):
        for _ in loader.epoch(epoch):
            pass
        torch.cuda.synchronize()
        free.append(torch.cuda.mem_get_info()[0])
    loader.close()
    assert free[1:] == [free[1]] * 4


@needs_dali
@needs_gpu
def test_a_truncated_file_is_named_on_the_gpu(tmp_path):
    copy = make_tree(tmp_path / "tree", {"a": 9})
    file = copy / "a" / "4.JPEG"
    file.write_bytes(file.read_bytes()[: len(file.read_bytes()) // 3])
    with pytest.raises(StoreError, match=r"a/4.JPEG"):
        read(eval_loader(copy, batch_size=2, decode="gpu"))
