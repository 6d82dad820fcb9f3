"""Memory for batches: used again, but never while a tensor or a view of one needs it."""

import torch

from imagelmdb.data.store_loader import Pool


def test_memory_returns_when_nothing_refers_to_it():
    pool = Pool()
    first = pool.make_bytes(400)
    address = first.data_ptr()
    del first
    assert pool.make_bytes(200).data_ptr() == address


def test_memory_in_use_is_never_given_out_again():
    pool, kept = Pool(), []
    for number in range(20):
        batch = pool.make_bytes(2 * 8 * 8 * 3).fill_(number)
        view = batch.view(2, 8, 8, 3).permute(0, 3, 1, 2)[1, :, 4:]
        kept.append(view if number % 2 else view.numpy())  # a view alone keeps it, numpy's too
        del batch, view
    for number, view in enumerate(kept):
        assert (view == number).all()


def test_a_larger_batch_gets_memory_of_its_own():
    pool = Pool()
    pool.make_bytes(100)
    assert pool.make_bytes(500).fill_(7).sum() == 3500


def test_memory_does_not_grow_with_batches():
    pool, addresses = Pool(), set()
    for _ in range(100):
        batch = pool.make_bytes(1 << 20)
        addresses.add(batch.data_ptr())
        torch.add(batch, 1)
    assert len(addresses) <= 2
