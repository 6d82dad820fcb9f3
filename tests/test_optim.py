"""Optimisers: what decays, and one step of each against its formula."""

import pytest
import torch
import torchvision
from torch import nn

from imagelmdb.config import Config
from imagelmdb.train.optim import group_parameters, make_optimizer, set_lr


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
