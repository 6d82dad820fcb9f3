"""Losses from class numbers and from soft targets. Optimisers: what decays, and a step of each."""

import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F

from imagelmdb.config import Config
from imagelmdb.train.optim import group_parameters, make_loss, make_optimizer, set_lr


def decayed(model: nn.Module, skip: str) -> set[str]:
    names = {id(p): name for name, p in model.named_parameters()}
    groups = group_parameters(model, weight_decay=0.1, skip=skip)
    assert sum(len(g["params"]) for g in groups) == len(names)
    return {names[id(p)] for g in groups if g["weight_decay"] for p in g["params"]}


def test_no_weight_decay_on_norm_leaves_weights_and_the_heads_bias():
    model = torchvision.models.resnet18(num_classes=3)
    everything = {name for name, _ in model.named_parameters()}
    assert decayed(model, "none") == everything
    assert decayed(model, "norm") == {n for n in everything if "bn" not in n and "downsample.1" not in n}
    assert decayed(model, "norm+bias") == decayed(model, "norm") - {"fc.bias"}


def test_frozen_parameters_are_left_out():
    model = nn.Linear(2, 2)
    model.weight.requires_grad_(False)
    assert group_parameters(model, weight_decay=0.1, skip="none") == [
        {"params": [model.bias], "weight_decay": 0.1}
    ]


def step_once(weights: torch.Tensor, gradient: torch.Tensor, **options) -> torch.Tensor:
    model = nn.Linear(2, 2, bias=False)
    model.weight.data = weights.clone()
    optimizer = make_optimizer(Config(**options), model)
    set_lr(optimizer, options["lr"])
    model.weight.grad = gradient.clone()
    optimizer.step()
    return model.weight.data


W = torch.tensor([[1.0, -2.0], [0.5, 3.0]])
G = torch.tensor([[0.3, 0.1], [-0.2, 0.4]])


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"optimizer": "sgd"}, W - 0.1 * (G + 0.01 * W)),
        ({"optimizer": "sgd", "nesterov": True}, W - 0.1 * 1.9 * (G + 0.01 * W)),
        ({"optimizer": "sgdw"}, W * (1 - 0.1 * 0.01) - 0.1 * G),
        ({"optimizer": "adamw"}, W * (1 - 0.1 * 0.01) - 0.1 * G.sign()),
        ({"optimizer": "lars"}, W - 0.1 * (G + 0.01 * W) * 1e-3 * W.norm() / (G.norm() + 0.01 * W.norm())),
        (
            {"optimizer": "lamb"},
            W - 0.1 * (G.sign() + 0.01 * W) * W.norm() / (G.sign() + 0.01 * W).norm(),
        ),
    ],
)
def test_the_first_step_is_the_published_update(options, expected):
    found = step_once(W, G, lr=0.1, weight_decay=0.01, **options)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


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
