import numpy as np
import pytest
import torch
from torchvision.transforms import RandomResizedCrop

from imagelmdb.order.plan import plan_eval, plan_seeds, plan_train

SCALE, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)


def torchvision_boxes(size, count, scale=SCALE, ratio=RATIO):
    torch.manual_seed(0)
    image = torch.empty(3, size[1], size[0], device="meta")
    boxes = [RandomResizedCrop.get_params(image, scale, ratio) for _ in range(count)]
    return np.array(boxes)[:, [1, 0, 3, 2]]


def ks_distance(a, b):
    grid = np.unique(np.concatenate([a, b]))
    a, b = (np.searchsorted(np.sort(x), grid, side="right") / len(x) for x in (a, b))
    return np.abs(a - b).max()


@pytest.mark.parametrize("size", [(500, 375), (300, 900), (17, 13)])
def test_boxes_have_torchvisions_distribution(size):
    ours_count, theirs_count = 100_000, 10_000
    theirs = torchvision_boxes(size, theirs_count)
    ours, flips = plan_train(5, 2, np.arange(ours_count), np.tile(size, (ours_count, 1)))
    limit = 1.95 * np.sqrt(1 / ours_count + 1 / theirs_count)  # p = 0.001
    for column in range(4):
        assert ks_distance(ours[:, column], theirs[:, column]) < limit
    for derive in (lambda b: b[:, 2] * b[:, 3], lambda b: b[:, 2] / b[:, 3], lambda b: b[:, 0] + b[:, 2]):
        assert ks_distance(derive(ours), derive(theirs)) < limit
    assert abs(flips.mean() - 0.5) < 0.01


def test_if_no_box_fits_the_fallback_is_torchvisions():
    for size in [(1000, 10), (10, 1000), (1, 1), (100, 80)]:
        scale = (4.0, 5.0) if size == (100, 80) else SCALE
        if size == (1, 1):
            scale = (0.01, 0.02)
        theirs = torchvision_boxes(size, 20, scale=scale)
        ours, _ = plan_train(0, 0, np.arange(20), np.tile(size, (20, 1)), scale=scale)
        assert (theirs == theirs[0]).all()
        assert np.array_equal(ours, theirs)


def test_boxes_are_inside_the_image():
    sizes = np.random.default_rng(0).integers(1, 60, (20_000, 2))
    boxes, _ = plan_train(0, 0, np.arange(20_000), sizes)
    assert (boxes[:, :2] >= 0).all() and (boxes[:, 2:] >= 1).all()
    assert (boxes[:, :2] + boxes[:, 2:] <= sizes).all()
    boxes = plan_eval(sizes, size=224, resize=256)
    assert (boxes[:, :2] >= 0).all() and (boxes[:, 2:] >= 1).all()
    assert (boxes[:, :2] + boxes[:, 2:] <= sizes).all()


def test_any_slice_of_the_plan_can_be_computed_alone():
    sizes = np.tile((500, 375), (1000, 1))
    boxes, flips = plan_train(1, 2, np.arange(1000), sizes)
    rows = np.array([999, 3, 500])
    some, some_flips = plan_train(1, 2, rows, sizes[rows])
    assert np.array_equal(some, boxes[rows]) and np.array_equal(some_flips, flips[rows])
    assert np.array_equal(plan_seeds(1, 2, rows), plan_seeds(1, 2, np.arange(1000))[rows])
    assert not np.array_equal(plan_train(1, 3, rows, sizes[rows])[0], some)


@pytest.mark.parametrize("size, box", [((500, 375), (85, 23, 328, 329)), ((256, 256), (16, 16, 224, 224))])
def test_evaluation_cuts_the_centre(size, box):
    assert plan_eval(np.array([size]), size=224, resize=256).tolist() == [list(box)]


def test_without_a_centre_crop_evaluation_cuts_the_largest_square_to_a_pixel():
    assert plan_eval(np.array([[500, 375]]), size=224, resize=224).tolist() == [[62, 0, 376, 375]]
