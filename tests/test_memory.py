"""Memory for batches: used again, but never while a tensor or a view of one needs it."""

import pickle

import torch

from imagelmdb.data.memory import Pool


def test_memory_returns_when_nothing_refers_to_it():
    pool = Pool()
    first = pool.make_empty((2, 8, 8, 3))
    address = first.data_ptr()
    del first
    assert pool.make_empty((1, 8, 8, 3)).data_ptr() == address


def test_memory_in_use_is_never_given_out_again():
    pool, kept = Pool(), []
    for number in range(20):
        batch = pool.make_empty((2, 8, 8, 3))
        batch.fill_(number)
        kept.append(batch.permute(0, 3, 1, 2)[1, :, 4:])  # a view alone holds it
        del batch
    for number, view in enumerate(kept):
        assert (view == number).all()


def test_a_larger_batch_gets_memory_of_its_own():
    pool = Pool()
    pool.make_empty((1, 8, 8, 3))
    assert pool.make_empty((5, 8, 8, 3)).shape == (5, 8, 8, 3)


def test_another_process_has_a_pool_of_its_own():
    pool = Pool()
    kept = pool.make_empty((1, 8, 8, 3)).fill_(7)
    pickle.loads(pickle.dumps(pool)).make_empty((1, 8, 8, 3)).fill_(9)
    assert torch.equal(kept, torch.full((1, 8, 8, 3), 7, dtype=torch.uint8))
