"""Models are found by name, recipes change them as their papers say, and they can be exported."""

import dataclasses
import importlib.util
import math

import pytest
import torch
import torchvision
from timm.layers import BlurPool2d
from torch import nn

from imagelmdb.config import Config
from imagelmdb.errors import UserError
from imagelmdb.train.checkpoint import save
from imagelmdb.train.model import check_export, export_checkpoint, make_model


def build(**options) -> nn.Module:
    return make_model(Config(**options), classes=10, device=torch.device("cpu")).eval()


@pytest.mark.parametrize("arch", ["resnet18", "timm:resnet18", "googlenet"])
def test_a_model_has_an_output_for_each_class(arch):
    assert build(arch=arch)(torch.zeros(2, 3, 64, 64)).shape == (2, 10)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"arch": "resnet1"}, "resnet1 is not a torchvision model: did you mean resnet1"),
        ({"arch": "resnet26"}, "use timm:resnet26"),
        ({"arch": "timm:resnet1"}, "timm:resnet1 is not a timm model: did you mean resnet1"),
        ({"arch": "resnet18", "drop_path": 0.1}, "does not support stochastic depth; try timm:resnet18"),
        ({"arch": "timm:vgg11", "drop_path": 0.1}, "timm's vgg11 does not support stochastic depth"),
        ({"arch": "mobilenet_v2", "zero_init": True}, "--zero-init: mobilenet_v2 has no residual block"),
        ({"arch": "squeezenet1_1", "loss": "bce", "prior_bias": True}, "has no linear layer"),
    ],
)
def test_an_unfitting_model_is_one_line_with_the_way_out(options, message):
    with pytest.raises(UserError) as error:
        build(**options)
    assert message in str(error.value)


@pytest.mark.parametrize("arch", ["resnet18", "googlenet", "inception_v3"])
def test_trained_weights_get_a_new_head_and_are_not_fetched_for_a_checkpoint(arch, monkeypatch):
    fetched = []

    def fetch(*args, **options):
        fetched.append(args)
        return torchvision.models.get_model(
            arch, **({} if arch == "resnet18" else {"init_weights": False})
        ).state_dict()

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", fetch)
    trained = build(arch=arch, pretrained=True)
    assert len(fetched) == 1
    config = Config(arch=arch, pretrained=True)
    resumed = make_model(config, classes=10, device=torch.device("cpu"), fetch=False).eval()
    assert len(fetched) == 1
    resumed.load_state_dict(trained.state_dict())
    images = torch.rand(2, 3, 96, 96)
    assert torch.equal(resumed(images), trained(images))
    assert trained.train()(images).shape == (2, 10)


@pytest.mark.parametrize("arch", ["resnet18", "resnet50", "timm:resnet50"])
def test_with_zero_init_each_residual_block_starts_as_the_identity(arch):
    model = build(arch=arch, zero_init=True)
    blocks = [m for m in model.modules() if hasattr(m, "conv2") and hasattr(m, "downsample")]
    assert blocks
    for block in blocks:
        if block.downsample is None:
            x = torch.rand(1, block.conv1.in_channels, 8, 8)
            assert torch.equal(block(x), x)


def test_blurpool_blurs_before_each_strided_convolution_but_the_stem():
    plain, blurred = build(arch="resnet50"), build(arch="resnet50", blurpool=True)
    strided = [m for m in plain.modules() if isinstance(m, nn.Conv2d) and m.stride == (2, 2)]
    blurs = [m for m in blurred.modules() if isinstance(m, BlurPool2d)]
    assert len(blurs) == len(strided) - 1 == 6
    assert isinstance(blurred.conv1, nn.Conv2d)
    assert isinstance(blurred.layer2[0].conv2[0], BlurPool2d)
    x = torch.rand(1, 3, 64, 64)
    assert blurred(x).shape == plain(x).shape
    assert len(blurred.state_dict()) == len(plain.state_dict())


def test_blurred_max_pools_keep_their_output_size():
    model = build(arch="resnet18", blurpool=True, blurpool_maxpool=True)
    x = torch.rand(1, 64, 32, 32)
    assert model.maxpool(x).shape == nn.MaxPool2d(3, 2, 1)(x).shape


def test_stochastic_depth_grows_to_the_last_block():
    model = build(arch="timm:resnet18", drop_path=0.1)
    rates = [m.drop_prob for m in model.modules() if type(m).__name__ == "DropPath"]
    assert rates == sorted(rates)
    assert rates[-1] == pytest.approx(0.1)


def test_prior_bias_starts_each_class_at_one_over_their_number():
    model = build(arch="resnet18", loss="bce", prior_bias=True)
    assert model.fc.bias.tolist() == pytest.approx([-math.log(10)] * 10)


def test_the_memory_format_follows_the_option():
    for channels_last in (True, False):
        weight = build(arch="resnet18", channels_last=channels_last).layer1[0].conv1.weight
        assert weight.is_contiguous(memory_format=torch.channels_last) is channels_last


def test_sync_bn_without_a_gpu_is_one_line():
    with pytest.raises(UserError, match="--sync-bn needs GPUs"):
        build(arch="resnet18", sync_bn=True)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="SyncBatchNorm needs a GPU")
def test_sync_bn_replaces_every_batchnorm_on_a_gpu():
    model = make_model(Config(sync_bn=True), classes=10, device=torch.device("cuda"))
    norms = [m for m in model.modules() if "BatchNorm" in type(m).__name__]
    assert norms and all(isinstance(m, nn.SyncBatchNorm) for m in norms)


CONFIG = Config(arch="squeezenet1_1", val_size=64, sync_bn=True)
CLASSES = ["a", "b", "c"]


def save_checkpoint(path) -> torch.nn.Module:
    """A checkpoint whose average is the model returned, and whose weights are others."""
    torch.manual_seed(0)
    config = dataclasses.replace(CONFIG, sync_bn=False)  # which needs GPUs; exporting does not
    model, average = (make_model(config, classes=3, device=torch.device("cpu")).eval() for _ in range(2))
    save({"model": model.state_dict(), "ema": average.state_dict(), "classes": CLASSES}, path)
    return average


def test_an_exported_program_gives_the_averaged_models_outputs_at_any_batch_size(tmp_path):
    model = save_checkpoint(tmp_path / "best.pt")
    export_checkpoint(tmp_path / "best.pt", tmp_path / "out" / "model.pt2", CONFIG)
    program = torch.export.load(tmp_path / "out" / "model.pt2").module()
    for count in (1, 2, 5):
        images = torch.randn(count, 3, 64, 64)
        torch.testing.assert_close(program(images), model(images), rtol=1e-4, atol=1e-5)


def test_an_exported_onnx_file_gives_the_averaged_models_outputs(tmp_path):
    for package in ("onnx", "onnxscript"):
        pytest.importorskip(package, reason=f"{package} is not installed")
    model = save_checkpoint(tmp_path / "best.pt")
    export_checkpoint(tmp_path / "best.pt", tmp_path / "model.onnx", CONFIG)
    from onnx.reference import ReferenceEvaluator

    images = torch.randn(3, 3, 64, 64)
    found = ReferenceEvaluator(str(tmp_path / "model.onnx")).run(None, {"images": images.numpy()})[0]
    torch.testing.assert_close(torch.tensor(found), model(images), rtol=1e-3, atol=1e-4)


def test_what_is_missing_for_an_export_is_one_line(tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"there is no .*best\.pt"):
        export_checkpoint(tmp_path / "best.pt", tmp_path / "model.pt2", CONFIG)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    check_export("model.pt2")
    with pytest.raises(UserError, match="pip install onnx onnxscript"):
        check_export("model.onnx")
