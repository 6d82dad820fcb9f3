"""Learning rates equal the published formulas at every step, and crop sizes equal the published ramps."""

import math

import numpy as np
import pytest
import torch

from imagelmdb.config import Config
from imagelmdb.train.schedule import lr_at, size_at

STEPS = 7  # in an epoch


def rates(**options) -> list[float]:
    config = Config(**options)
    return [lr_at(config, step, steps_per_epoch=STEPS) for step in range(config.epochs * STEPS)]


def rates_of_torch(make_scheduler, *, lr: float, steps: int) -> list[float]:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=lr)
    scheduler = make_scheduler(optimizer)
    found = []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


def test_step_is_steplr_of_pytorch_examples():
    expected = rates_of_torch(
        lambda o: torch.optim.lr_scheduler.StepLR(o, step_size=30 * STEPS, gamma=0.1),
        lr=0.1,
        steps=90 * STEPS,
    )
    assert rates(epochs=90, lr=0.1, schedule="step") == pytest.approx(expected, rel=1e-9)


def test_cosine_is_torchvisions_linear_warm_up_then_cosine_annealing():
    warm_up, total = 5 * STEPS, 20 * STEPS

    def make(optimizer):
        rise = torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=0.01, total_iters=warm_up)
        fall = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=total - warm_up, eta_min=0.005)
        return torch.optim.lr_scheduler.SequentialLR(optimizer, [rise, fall], milestones=[warm_up])

    expected = rates_of_torch(make, lr=0.5, steps=total)
    found = rates(epochs=20, lr=0.5, schedule="cosine", warmup_epochs=5, warmup_start=0.01, lr_end=0.01)
    assert found == pytest.approx(expected, rel=1e-6)


def test_cosine_is_nvidias_formula():
    lr, warm_up, epochs = 2.048, 8, 90
    expected = []
    for step in range(epochs * STEPS):
        epoch = step / STEPS
        if epoch < warm_up:
            expected.append(lr * epoch / warm_up)
        else:
            expected.append(0.5 * (1 + math.cos(math.pi * (epoch - warm_up) / (epochs - warm_up))) * lr)
    assert rates(epochs=epochs, lr=lr, schedule="cosine", warmup_epochs=warm_up) == pytest.approx(expected)


@pytest.mark.parametrize("schedule", ["triangular", "linear"])
def test_triangular_is_ffcvs_interpolation(schedule):
    epochs = np.arange(16 * STEPS) / STEPS
    expected = np.interp(epochs, [0, 2, 16], [1e-4 * 1.7, 1.7, 0])
    found = rates(epochs=16, lr=1.7, schedule=schedule, warmup_epochs=2, warmup_start=1e-4)
    assert found == pytest.approx(expected.tolist(), rel=1e-9)


def test_linear_without_warm_up_falls_from_the_peak():
    expected = [1 - 0.5 * step / (2 * STEPS) for step in range(2 * STEPS)]
    assert rates(epochs=2, lr=1.0, schedule="linear", lr_end=0.5) == pytest.approx(expected)


def test_poly_is_mlperfs_formula():
    lr, end, warm_up, epochs = 10.5, 1e-4, 2, 37
    expected = []
    for step in range(epochs * STEPS):
        warm_steps, total = warm_up * STEPS, epochs * STEPS
        if step < warm_steps:
            expected.append(lr * step / warm_steps)
        else:
            left = 1 - (step - warm_steps) / (total - warm_steps)
            expected.append((lr - end) * left**2 + end)
    found = rates(epochs=epochs, lr=lr, schedule="poly", lr_power=2, warmup_epochs=warm_up, lr_end=end / lr)
    assert found == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(
    ("epochs", "start", "end"),
    [(16, 11, 13), (24, 17, 20), (32, 23, 27), (40, 29, 34), (56, 41, 48), (88, 65, 76)],
)
def test_two_shares_of_the_run_give_each_of_ffcvs_ramps(epochs, start, end):
    options = {"start_size": 160, "train_size": 192, "grow_from": 0.75, "grow_until": 0.875}
    config = Config(epochs=epochs, **options)
    for epoch in range(epochs):
        size = np.interp(epoch, [start, end], [160, 192])
        assert size_at(config, epoch) == int(np.round(size / 32)) * 32, epoch


def test_sizes_grow_in_multiples_from_the_first_to_the_last():
    options = {"start_size": 88, "train_size": 176, "grow_from": 0.4, "grow_until": 0.8, "size_step": 8}
    config = Config(epochs=36, **options)
    sizes = [size_at(config, epoch) for epoch in range(36)]
    assert sizes == sorted(sizes)
    assert (sizes[0], sizes[-1]) == (88, 176)
    assert len(set(sizes)) > 8
    assert not any(size % 8 for size in sizes)


def test_without_a_start_size_all_epochs_have_the_training_size():
    assert {size_at(Config(epochs=3, train_size=96), epoch) for epoch in range(3)} == {96}
