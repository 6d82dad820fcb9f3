"""Augmentation: what comes out, and that it follows from the seeds alone."""

import pickle
import random

import numpy as np
import pytest
import torch

from imagelmdb.data.augment import MEAN, STD, BatchAugment, draw_boxes, erase, make_sample_transform
from imagelmdb.errors import UserError

CPU = torch.device("cpu")
POLICIES = ["ta_wide", "ra", "rand-m7-mstd0.5-inc1"]


def batch(count: int = 8, size: int = 32) -> tuple[torch.Tensor, torch.Tensor]:
    images = torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8)
    return images.contiguous(memory_format=torch.channels_last), torch.arange(count) % 4


def augment(**options) -> BatchAugment:
    return BatchAugment(**{"classes": 4, "device": CPU} | options)


@pytest.mark.parametrize("policy", POLICIES)
def test_a_sample_follows_from_torchs_seed_alone_and_survives_pickling(policy):
    transform = pickle.loads(pickle.dumps(make_sample_transform(policy)))
    image = torch.randint(0, 256, (3, 40, 30), dtype=torch.uint8)
    seen = []
    for seed in (1, 2, 3, 1, 2, 3):
        torch.manual_seed(seed)
        seen.append(transform(image))
        random.random()
        np.random.random()  # noqa: NPY002
        torch.rand(3)
    assert all(out.shape == image.shape and out.dtype == torch.uint8 for out in seen)
    assert all(torch.equal(a, b) for a, b in zip(seen[:3], seen[3:], strict=True))
    assert any(not torch.equal(seen[0], other) for other in seen[1:3])


def test_a_sample_leaves_the_other_generators_where_they_were():
    random.seed(5)
    expected = random.random()
    random.seed(5)
    make_sample_transform("rand-m7-mstd0.5-inc1")(torch.zeros(3, 8, 8, dtype=torch.uint8))
    assert random.random() == expected


def test_an_unknown_policy_is_one_line():
    assert make_sample_transform("") is None
    for policy in ("wide", "rand-q7"):
        with pytest.raises(UserError, match=f"--auto-augment {policy} is not ta_wide"):
            make_sample_transform(policy)


def test_normalised_images_are_totensor_and_normalize_in_the_loaders_memory_format():
    images, labels = batch()
    found, same = augment()(images, labels)
    mean, std = torch.tensor(MEAN).view(1, 3, 1, 1), torch.tensor(STD).view(1, 3, 1, 1)
    torch.testing.assert_close(found, (images / 255 - mean) / std, rtol=1e-6, atol=1e-6)
    assert same is labels
    assert found.is_contiguous(memory_format=torch.channels_last)


def test_a_batch_follows_from_torchs_seed_alone():
    images, labels = batch()
    mixing = augment(mixup=0.2, cutmix=1.0, random_erase=0.5)
    seen = []
    for seed in (1, 2, 3, 1, 2, 3):
        torch.manual_seed(seed)
        random.random()
        seen.append(mixing(images, labels))
    for (first, targets), (again, targets_again) in zip(seen[:3], seen[3:], strict=True):
        assert torch.equal(first, again)
        assert torch.equal(targets, targets_again)
    assert not torch.equal(seen[0][0], seen[1][0])
    assert not torch.equal(seen[1][0], seen[2][0])


def test_mixed_targets_hold_the_share_of_each_image():
    images = torch.zeros(4, 3, 16, 16, dtype=torch.uint8)
    images[1::2] = 255
    labels = torch.tensor([0, 1, 0, 1])
    shares = set()
    for seed in range(12):
        torch.manual_seed(seed)
        mixed, targets = augment(mixup=1.0, cutmix=1.0)(images, labels)
        torch.testing.assert_close(targets.sum(1), torch.ones(4))
        white = augment().normalize(images[1:2]).mean((1, 2, 3))
        black = augment().normalize(images[:1]).mean((1, 2, 3))
        share = (mixed.mean((1, 2, 3)) - black) / (white - black)
        torch.testing.assert_close(share, targets[:, 1], rtol=1e-4, atol=1e-4)
        shares.add(round(share[0].item(), 3))
    assert len(shares) > 8


def test_erased_boxes_have_torchvisions_areas_ratios_and_probability():
    torch.manual_seed(0)
    boxes = draw_boxes(4000, 224, 160, probability=0.25).double()
    h, w = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    hit = h > 0
    assert hit.double().mean() == pytest.approx(0.25, abs=0.02)
    share = (h * w)[hit] / (224 * 160)
    assert 0.019 < share.min() < 0.03 and 0.3 < share.max() < 0.34
    assert share.mean() == pytest.approx(0.17, abs=0.01)
    assert (h / w)[hit].min() > 0.28 and (h / w)[hit].max() < 3.5
    assert (boxes >= 0).all() and boxes[:, 2].max() <= 224 and boxes[:, 3].max() <= 160
    assert boxes[hit, 0].min() < 3 and boxes[hit, 3].max() > 157


def test_erasing_puts_the_mean_into_one_box_an_image():
    torch.manual_seed(1)
    images = torch.ones(16, 3, 32, 32)
    erased = erase(images, probability=1.0)
    assert erased is images
    boxes = set()
    for image in erased:
        rows, columns = (image[0] == 0).any(1).nonzero(), (image[0] == 0).any(0).nonzero()
        box = image[:, rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
        assert not box.any()
        assert image.sum() == 3 * 32 * 32 - box.numel()
        boxes.add((rows.min().item(), columns.min().item(), *box.shape[1:]))
    assert len(boxes) > 10
