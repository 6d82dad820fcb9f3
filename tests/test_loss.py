"""Losses from class numbers and from soft targets."""

import torch
from torch.nn import functional as F

from imagelmdb.config import Config
from imagelmdb.train.loss import make_loss

LOGITS = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 3, 1, 1, 2])
ONE_HOT = F.one_hot(LABELS, 4).float()


def loss(targets: torch.Tensor, **options) -> torch.Tensor:
    return make_loss(Config(**options))(LOGITS, targets)


def test_class_numbers_and_their_one_hot_targets_give_the_same_loss():
    for options in ({"loss": "ce"}, {"loss": "bce"}, {"loss": "bce", "bce_sum": True}):
        for smoothing in (0.0, 0.1):
            options["label_smoothing"] = smoothing
            torch.testing.assert_close(loss(LABELS, **options), loss(ONE_HOT, **options))


def test_smoothing_spreads_its_share_over_all_classes():
    soft = ONE_HOT * 0.9 + 0.1 / 4
    expected = -(soft * F.log_softmax(LOGITS, 1)).sum(1).mean()
    torch.testing.assert_close(loss(LABELS, label_smoothing=0.1), expected)


def test_bce_sums_over_the_classes_or_takes_their_mean():
    expected = F.binary_cross_entropy_with_logits(LOGITS, ONE_HOT)
    torch.testing.assert_close(loss(LABELS, loss="bce"), expected)
    torch.testing.assert_close(loss(LABELS, loss="bce", bce_sum=True), expected * 4)


def test_under_a_threshold_each_mixed_in_class_counts_whole():
    mixed = 0.7 * ONE_HOT + 0.3 * ONE_HOT.roll(1, 0)
    found = loss(mixed, loss="bce", bce_threshold=0.2)
    torch.testing.assert_close(found, F.binary_cross_entropy_with_logits(LOGITS, (mixed > 0).float()))
