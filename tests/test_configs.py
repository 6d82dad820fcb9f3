"""Every recipe parses, builds and takes two steps at a tiny size; each is stated as published."""

import dataclasses
from pathlib import Path

import pytest
import torch
import yaml

from imagelmdb.config import Config, parse_config
from imagelmdb.data.augment import make_batch_augment, make_sample_transform
from imagelmdb.train.model import make_model
from imagelmdb.train.optim import make_loss, make_optimizer, set_lr
from imagelmdb.train.schedule import lr_at, size_at

CONFIGS = sorted((Path(__file__).parent.parent / "configs").glob("*.yaml"))
CPU = torch.device("cpu")
CLASSES, BATCH, SIZE = 10, 4, 32


def load(path: Path) -> Config:
    config, _ = parse_config(["--config", str(path), "--train", "T", "--val", "V"])
    return config


def named(name: str) -> Config:
    return load(next(path for path in CONFIGS if path.stem == name))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_recipe_takes_two_steps(path):
    torch.manual_seed(0)
    config = load(path)
    # The same family at the smallest depth: what a recipe does to a model does not depend on it.
    config = dataclasses.replace(config, arch=config.arch.replace("resnet50", "resnet18"))
    model = make_model(config, classes=CLASSES, device=CPU)
    optimizer = make_optimizer(config, model)
    loss_of = make_loss(config)
    augment = make_batch_augment(config, classes=CLASSES, device=CPU)
    transform = make_sample_transform(config.auto_augment)
    images = torch.randint(0, 256, (BATCH, 3, SIZE, SIZE), dtype=torch.uint8)
    labels = torch.arange(BATCH)
    before = [p.detach().clone() for p in model.parameters()]
    for step in (config.epochs, config.epochs + 1):
        batch = images if transform is None else torch.stack([transform(image) for image in images])
        set_lr(optimizer, lr_at(config, step, steps_per_epoch=2))
        inputs, targets = augment(batch, labels)
        loss = loss_of(model(inputs), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        assert loss.isfinite()
    after = list(model.parameters())
    assert all(p.isfinite().all() for p in after)
    assert sum(not torch.equal(a, b) for a, b in zip(before, after, strict=True)) > len(before) * 0.9


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_recipe_says_on_top_what_it_claims_and_how_to_run_it(path):
    comment = [line for line in path.read_text().splitlines() if line.startswith("#")]
    text = "\n".join(comment)
    assert "Source:" in text or path.stem == "quickstart"
    assert "Measured here:" in text
    assert "top-1" in text and "%" in text
    assert f"main.py --config configs/{path.name}" in text


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_recipe_holds_only_what_differs_from_the_defaults_or_its_base(path):
    values = yaml.safe_load(path.read_text())
    base = values.pop("base", None)
    below = load(path.parent / base) if base else Config()
    this = load(path)
    # A length, batch, model and optimiser may be spelled out: they are what a reader looks for.
    spelled = {
        "arch",
        "epochs",
        "batch_size",
        "lr",
        "momentum",
        "weight_decay",
        "trust_coefficient",
        "lr_power",
    }
    assert not [k for k in values if getattr(this, k) == getattr(below, k) and k not in spelled]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_recipes_rate_peaks_at_its_lr_once_and_its_sizes_end_at_the_training_size(path):
    config = load(path)
    rates = [lr_at(config, step, steps_per_epoch=100) for step in range(100 * config.epochs)]
    assert max(rates) == pytest.approx(config.lr)
    assert rates[int(config.warmup_epochs * 100)] == pytest.approx(config.lr)
    assert rates[-1] < config.lr / 50
    sizes = [size_at(config, epoch) for epoch in range(config.epochs)]
    assert sizes[-1] == config.train_size
    assert sizes == sorted(sizes)


def test_the_published_table_is_what_the_recipes_say():
    rows = {
        "rn50_torchvision_v1": ("sgd", 256, 0.1, 1e-4, 90, 224, 256, 224),
        "rn50_torchvision_v2": ("sgd", 1024, 0.5, 2e-5, 600, 176, 232, 224),
        "rn50_90e": ("sgd", 2048, 2.048, 2**-15, 90, 224, 256, 224),
        "rn50_250e": ("sgd", 2048, 2.048, 2**-15, 250, 224, 256, 224),
        "rn50_rsb_a1": ("lamb", 2048, 5e-3, 0.01, 600, 224, 235, 224),
        "rn50_rsb_a2": ("lamb", 2048, 5e-3, 0.02, 300, 224, 235, 224),
        "rn50_rsb_a3": ("lamb", 2048, 8e-3, 0.02, 100, 160, 235, 224),
        "rn50_mosaicml_mild": ("sgdw", 2048, 2.048, 5e-4 / 2.048, 27, 176, 232, 224),
        "rn50_mlperf": ("lars", 3264, 10.5, 5e-5, 37, 224, 256, 224),
        "rn50_ffcv": ("sgd", 4096, 1.7, 1e-4, 16, 192, 292, 256),
        "rn18_ffcv": ("sgd", 1024, 0.5, 5e-5, 16, 192, 292, 256),
    }
    assert {path.stem for path in CONFIGS} == {*rows, "quickstart"}
    for name, row in rows.items():
        c = named(name)
        found = (
            c.optimizer,
            c.batch_size,
            c.lr,
            c.weight_decay,
            c.epochs,
            c.train_size,
            c.eval_resize,
            c.val_size,
        )
        assert found == pytest.approx(row), name


def test_torchvisions_average_is_its_published_decay_after_its_own_scaling():
    c = named("rn50_torchvision_v2")
    published = 1 - (1 - 0.99998) * c.batch_size * c.ema_every / c.epochs
    assert c.ema_decay == pytest.approx(published, abs=1e-6)
    assert named("rn50_mosaicml_mild").ema_decay == pytest.approx(0.5 ** (20 / 100), abs=1e-6)
