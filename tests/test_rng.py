import numpy as np
import pytest

from imagelmdb.order.rng import derive_key, permute, random_uniform


@pytest.mark.parametrize("count", [*range(1, 70), 255, 256, 257, 1000, 65536, 99991])
def test_a_permutation_has_every_value_once(count):
    for epoch in range(3):
        found = permute(count, derive_key(1, epoch), np.arange(count))
        assert np.array_equal(np.sort(found), np.arange(count))


def test_a_position_can_be_computed_alone_and_with_its_own_key():
    whole = permute(1_281_167, derive_key(7), np.arange(1_281_167))
    assert np.bincount(whole, minlength=1_281_167).max() == 1
    some = np.array([0, 5, 1_281_166, 640_000])
    assert np.array_equal(permute(1_281_167, derive_key(7), some), whole[some])
    keys = np.array([derive_key(i) for i in range(4)], np.uint64)
    alone = [permute(1000, int(k), np.array([9]))[0] for k in keys]
    assert np.array_equal(permute(1000, keys, np.full(4, 9)), alone)


def test_small_permutations_occur_equally_often():
    epochs = np.array([derive_key(3, e) for e in range(24_000)], np.uint64)
    orders = np.stack([permute(4, epochs, np.full(len(epochs), p)) for p in range(4)], axis=1)
    counts = np.unique(orders @ [64, 16, 4, 1], return_counts=True)[1]
    assert len(counts) == 24
    assert ((counts - 1000) ** 2 / 1000).sum() < 55  # chi-square, 23 degrees: p = 0.0002


def test_epochs_share_no_structure():
    """Neighbours separate, positions do not correlate, and fixed points are as rare as by chance."""
    count, positions = 100_000, np.arange(100_000)
    orders = [permute(count, derive_key(0, epoch), positions) for epoch in range(4)]
    for i, order in enumerate(orders):
        assert abs(np.corrcoef(positions, order)[0, 1]) < 0.02
        for lag in (1, 2, 256, 317):  # 317 is the side of the Feistel square
            assert abs(np.corrcoef(order[:-lag], order[lag:])[0, 1]) < 0.02
            near = (np.abs(order[:-lag] - order[lag:]) == 1).sum()
            assert near < 12  # 2 expected
        for other in orders[:i]:
            assert abs(np.corrcoef(order, other)[0, 1]) < 0.02
            assert (order == other).sum() < 10  # 1 expected
    halves = np.array([(o[: count // 2] < count // 2).sum() for o in orders])
    assert (np.abs(halves - count / 4) < 5 * np.sqrt(count / 16)).all()


def test_uniform_numbers_are_uniform_and_keys_independent():
    draws = [random_uniform(derive_key(seed, 0), np.arange(200_000)) for seed in (0, 1, -1)]
    for u in draws:
        assert u.min() >= 0 and u.max() < 1
        counts = np.histogram(u, 100, (0, 1))[0]
        assert ((counts - 2000) ** 2 / 2000).sum() < 160  # chi-square, 99 degrees: p = 0.0001
    assert abs(np.corrcoef(draws)[np.triu_indices(3, 1)]).max() < 0.01
