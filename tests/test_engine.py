"""A step is that of the published algorithm, and nothing around it changes a number."""

import copy
import itertools
import math
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
import torchvision
from processes import run_ranks
from torch import nn

from imagelmdb.config import Config
from imagelmdb.errors import Diverged, Stopped
from imagelmdb.train.checkpoint import Checkpoints, describe_options, load
from imagelmdb.train.distributed import launch
from imagelmdb.train.engine import Trainer
from imagelmdb.train.evaluate import evaluate
from imagelmdb.train.world import World

CPU = torch.device("cpu")
CLASSES = 10


def make_batches(count=10, batch=8, size=32):
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(256, (count, batch, 3, size, size), dtype=torch.uint8, generator=generator)
    labels = torch.randint(CLASSES, (count, batch), generator=generator)
    return list(zip(images, labels, strict=True))


def normalize(images):
    return images.float().div(255).sub(0.45).div(0.22)


def prepare(images, labels):
    return normalize(images), labels


def make_model():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, CLASSES)
    )


def make_trainer(model, *, world=None, steps=10, prepare=prepare, **options):
    """A trainer whose learning rate is 0.1 in the first epoch and 0.01 in the second."""
    config = Config(**{"batch_size": 8, "lr": 0.1, "lr_step_epochs": 1} | options)
    world = world or World(dist.HashStore())
    return Trainer(config, model, prepare=prepare, steps_per_epoch=steps, world=world)


def weights(model):
    return torch.cat([p.detach().double().flatten() for p in model.parameters()])


def test_ten_sgd_steps_equal_the_plain_loop_of_pytorch_examples():
    torch.manual_seed(0)
    plain = torchvision.models.resnet18(num_classes=CLASSES)
    ours = copy.deepcopy(plain)
    batches = make_batches()

    criterion = nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(plain.parameters(), 0.1, momentum=0.9, weight_decay=1e-4)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.1)
    losses = []
    for epoch in range(2):
        plain.train()
        for images, target in batches[5 * epoch : 5 * epoch + 5]:
            loss = criterion(plain(normalize(images)), target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        scheduler.step()

    readings = []
    trainer = make_trainer(ours, steps=5, print_freq=1)
    for epoch in range(2):
        trainer.train_epoch(batches[5 * epoch : 5 * epoch + 5], on_reading=readings.append)
        assert trainer.progress.loss == pytest.approx(sum(losses[5 * epoch : 5 * epoch + 5]) / 5, abs=1e-6)
        trainer.progress = trainer.progress.next_epoch()
    assert [r.loss for r in readings] == pytest.approx(losses, abs=1e-6)
    assert [r.lr for r in readings] == pytest.approx([0.1] * 5 + [0.01] * 5)
    assert torch.allclose(weights(ours), weights(plain), rtol=0, atol=1e-6)
    for name, buffer in plain.named_buffers():
        assert torch.allclose(ours.get_buffer(name), buffer, atol=1e-6), name


@pytest.mark.parametrize("parts", [2, 3])
def test_a_batch_taken_in_parts_gives_the_same_step(parts):
    whole, split = make_model(), make_model()
    make_trainer(whole).train_epoch(make_batches())
    make_trainer(split, accumulate=parts).train_epoch(make_batches())
    assert torch.allclose(weights(whole), weights(split), atol=1e-6)


def test_gradients_are_clipped_after_they_are_unscaled():
    model = make_model()
    before = weights(model)
    trainer = make_trainer(model, steps=1, amp="fp16", clip_grad=1e-2, momentum=0.0)
    trainer.train_epoch(make_batches(1))
    moved = (weights(model) - before + 0.1 * 1e-4 * before).norm().item()
    assert moved == pytest.approx(0.1 * 1e-2, rel=1e-2)


def test_the_average_follows_the_weights():
    model = make_model()
    start = weights(model)
    trainer = make_trainer(model, steps=4, ema_decay=0.9, ema_every=2)
    seen = []
    trainer.train_epoch(make_batches(4), after_step=lambda: seen.append(weights(model)))
    expected = 0.9 * (0.9 * start + 0.1 * seen[1]) + 0.1 * seen[3]
    assert torch.allclose(weights(trainer.evaluated), expected, atol=1e-6)


@pytest.mark.parametrize("bad_step", [0, 3, 6])
def test_the_first_step_whose_loss_is_not_finite_is_named(bad_step):
    steps = iter(range(100))

    def loss(outputs, targets):
        return outputs.sum() * (math.nan if next(steps) >= bad_step else 1e-6)

    trainer = make_trainer(make_model(), print_freq=5)
    trainer.loss = loss
    with pytest.raises(Diverged, match=rf"at step {bad_step} \(epoch 0, rank 0\)"):
        trainer.train_epoch(make_batches())


def test_no_checkpoint_is_made_of_weights_that_are_not_finite(tmp_path):
    model = make_model()
    trainer = make_trainer(model)
    checkpoints = Checkpoints(Config(output=str(tmp_path)))
    trainer.save_checkpoint(checkpoints)
    good = (tmp_path / "last.pt").read_bytes()
    with torch.no_grad():
        model[0].weight[0, 0, 0, 0] = math.inf
    with pytest.raises(Diverged, match="a weight is no longer finite"):
        trainer.save_checkpoint(checkpoints)
    assert (tmp_path / "last.pt").read_bytes() == good


def test_every_step_draws_numbers_of_its_own_whatever_was_drawn_before():
    def draw(before):
        drawn = []

        def noisy(images, labels):
            drawn.append(torch.rand(()).item())
            return prepare(images, labels)

        torch.rand(before)
        make_trainer(make_model(), prepare=noisy, seed=5).train_epoch(make_batches())
        return drawn

    assert draw(0) == draw(7)
    assert len(set(draw(0))) == 10


def stop_after(trainer, steps):
    """A hook that makes the trainer's rank hear a signal after so many steps."""
    taken = itertools.count(1)

    def after_step():
        if next(taken) == steps:
            trainer.world.stop_requested = True

    return after_step


def test_an_interrupted_epoch_goes_on_as_if_never_stopped(tmp_path):
    options = {"ema_decay": 0.9, "amp": "fp16", "print_freq": 4, "output": str(tmp_path)}
    whole = make_trainer(make_model(), **options)
    whole.train_epoch(make_batches())

    first = make_trainer(make_model(), **options)
    checkpoints = Checkpoints(first.config, facts={"config": describe_options(first.config)})
    with pytest.raises(Stopped, match="after step 6: the checkpoint is written"):
        first.train_epoch(make_batches(), checkpoints=checkpoints, after_step=stop_after(first, 6))

    second = make_trainer(make_model(), **options)
    second.load_state_dict(load(tmp_path / "last.pt"))
    assert second.step == 6
    second.train_epoch(make_batches()[6:])
    assert torch.equal(weights(second.model), weights(whole.model))
    assert torch.equal(weights(second.evaluated), weights(whole.evaluated))
    assert second.progress.loss == whole.progress.loss
    assert second.step == whole.step == 10


def test_one_rank_stops_at_the_next_step_however_rare_the_readings():
    trainer = make_trainer(make_model(), print_freq=1000)
    with pytest.raises(Stopped, match="after step 3"):
        trainer.train_epoch(make_batches(), after_step=stop_after(trainer, 3))


def train_a_rank(config, world):
    trainer = make_trainer(make_model(), world=world, batch_size=16, print_freq=4)
    after_step = stop_after(trainer, 6) if world.rank == 1 else lambda: None
    checkpoints = Checkpoints(config) if config.output else None
    trainer.train_epoch(make_batches(), checkpoints=checkpoints, after_step=after_step)


def launch_a_rank(output):
    return launch(train_a_rank, Config(output=output))


def test_several_ranks_stop_together_at_the_next_reading_after_one_got_the_signal(tmp_path):
    codes, texts = run_ranks(launch_a_rank, str(tmp_path), size=2, output=tmp_path)
    assert codes == [75, 75]
    assert texts[0].startswith("stopped by a signal after step 8: the checkpoint is written")
    assert load(tmp_path / "last.pt")["step"] == 8


def test_a_run_without_checkpoints_says_so_when_it_is_stopped(tmp_path):
    codes, texts = run_ranks(launch_a_rank, "", size=2, output=tmp_path)
    assert codes == [143, 143]
    assert texts[0] == "stopped by a signal after step 8: the run has no checkpoints\n"


def test_progress_lines_come_every_so_many_steps_and_at_the_end_of_the_epoch():
    readings = []
    trainer = make_trainer(make_model(), print_freq=4)
    trainer.train_epoch(make_batches(), on_reading=readings.append)
    assert [reading.epoch_step for reading in readings] == [4, 8, 10]


def test_checkpoints_are_written_at_the_steps_asked_for_and_change_no_number(tmp_path):
    plain = make_trainer(make_model())
    plain.train_epoch(make_batches())
    saved = []

    class Recorder(Checkpoints):
        def write(self, state, **options):
            saved.append(state["step"])

    trainer = make_trainer(make_model(), checkpoint_steps=3, output=str(tmp_path))
    readings = []
    trainer.train_epoch(make_batches(), checkpoints=Recorder(trainer.config), on_reading=readings.append)
    assert saved == [3, 6, 9]
    assert readings[-1].loss == pytest.approx(plain.progress.loss, rel=1e-12)
    assert torch.equal(weights(trainer.model), weights(plain.model))


def test_a_loader_that_ends_early_is_an_error():
    with pytest.raises(RuntimeError, match="ended at step 7 of 10"):
        make_trainer(make_model()).train_epoch(make_batches(7))


def evaluate_all(model, inputs, labels, batch, *, images=None, **options):
    loader = SimpleNamespace(
        epoch=lambda epoch: zip(inputs.split(batch), labels.split(batch), strict=True),
        classes=[str(number) for number in range(CLASSES)],
        images_per_epoch=images or len(inputs),
    )
    config = Config(batch_size=batch, **options)
    return evaluate(config, model, loader, world=World(dist.HashStore()), normalize=normalize)


def test_evaluation_is_the_same_for_every_batch_size_and_padding():
    images, labels = (torch.cat(part)[:101] for part in zip(*make_batches(13), strict=True))
    model = make_model()
    results = [evaluate_all(model, images, labels, batch) for batch in (101, 16, 1)]
    results.append(evaluate_all(model, images, labels, 16, compile=True))
    assert len({(r.images, r.top1, r.top5) for r in results}) == 1
    assert all(r.loss == pytest.approx(results[0].loss, rel=1e-6) for r in results)


def test_flip_tta_evaluates_each_image_and_its_mirror_image():
    images, labels = make_batches(1)[0]
    model = make_model()
    both = evaluate_all(model, images, labels, 8, flip_tta=True)
    mirrored = evaluate_all(model, images.flip(-1), labels, 8, flip_tta=True)
    assert both.loss == pytest.approx(mirrored.loss, rel=1e-6)
    assert both.loss != evaluate_all(model, images, labels, 8).loss


def test_an_evaluation_that_missed_an_image_is_an_error():
    images, labels = make_batches(1)[0]
    with pytest.raises(RuntimeError, match="evaluated 8 images of 9"):
        evaluate_all(make_model(), images, labels, 8, images=9)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="waiting for the device shows on a GPU alone")
def test_a_step_never_waits_for_the_device():
    world = World(dist.HashStore())
    world.device = torch.device("cuda")
    model = torchvision.models.resnet18(num_classes=CLASSES).cuda()
    trainer = make_trainer(model, world=world, amp="bf16", ema_decay=0.9, clip_grad=1.0)
    batches = [(images.cuda(), labels.cuda()) for images, labels in make_batches()]
    trainer.take_step(*batches[0], 0)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for step in range(1, 10):
            trainer.take_step(*batches[step], step)
    finally:
        torch.cuda.set_sync_debug_mode("default")
