"""The model: a torchvision classifier by its name, or a timm model as timm:NAME.

model = make_model(config, classes=1000, device=torch.device("cuda"))
export_checkpoint(run_dir / "best.pt", "model.pt2", config)  # --export: a file that runs without this package
torch.export.load("model.pt2").module()(images)              # images: normalised float32, any number
"""

import contextlib
import dataclasses
import importlib.util
import math
from collections.abc import Iterator
from pathlib import Path

import timm
import torch
import torchvision
from timm.layers import BlurPool2d
from torch import nn

from imagelmdb.command_line import nearest
from imagelmdb.config import Config
from imagelmdb.errors import UserError, first_line
from imagelmdb.train.checkpoint import load, load_weights


def make_model(config: Config, *, classes: int, device: torch.device, fetch: bool = True) -> nn.Module:
    """The model on its device and in its memory format, neither compiled nor wrapped for several ranks.

    Without `fetch`, --pretrained does not fetch weights, because those of a checkpoint will replace them.
    """
    library, make = "torchvision", _make_torchvision
    if config.arch.startswith("timm:"):
        library, make = "timm", _make_timm
    name = config.arch.removeprefix("timm:")
    pretrained = config.pretrained and fetch
    try:
        model = make(config, classes, pretrained)
    except TypeError as error:
        if "stochastic_depth_prob" not in str(error) and "drop_path_rate" not in str(error):
            raise
        hint = f"; try timm:{config.arch}" if timm.is_model(config.arch) else ""
        raise UserError(f"--drop-path: {library}'s {name} does not support stochastic depth{hint}") from None
    except (OSError, RuntimeError) as error:
        if not pretrained:
            raise
        why = first_line(getattr(error, "reason", error))
        raise UserError(f"--pretrained: the weights of {name} cannot be fetched: {why}") from None
    if config.zero_init:
        zero_last_gammas(model, arch=config.arch)
    if config.prior_bias:
        nn.init.constant_(_head(model, arch=config.arch)[1].bias, -math.log(classes))
    if config.blurpool:
        add_blurpool(model, max_pools=config.blurpool_maxpool)
    if config.sync_bn:
        if device.type != "cuda":
            raise UserError("--sync-bn needs GPUs: torch cannot synchronise BatchNorm on CPUs")
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    memory_format = torch.channels_last if config.channels_last else torch.contiguous_format
    return model.to(device=device, memory_format=memory_format)


def zero_last_gammas(model: nn.Module, *, arch: str) -> None:
    """Set the last BatchNorm's gamma of each residual block to 0: the block starts as the identity."""
    blocks = [m for m in model.modules() if hasattr(m, "downsample") and hasattr(m, "bn2")]
    if not blocks:
        raise UserError(f"--zero-init: {arch} has no residual block that ends in a BatchNorm")
    for block in blocks:
        nn.init.zeros_(getattr(block, "bn3", block.bn2).weight)


def add_blurpool(module: nn.Module, *, max_pools: bool) -> None:
    """Blur the input of each strided convolution with 16 channels or more, as FFCV and Composer do.

    The blur is timm's, which pads by reflection. FFCV and Composer pad with zeros.
    """
    for name, child in module.named_children():
        if isinstance(child, nn.Conv2d) and max(child.stride) > 1 and child.in_channels >= 16:
            setattr(module, name, nn.Sequential(BlurPool2d(child.in_channels, stride=1), child))
        elif isinstance(child, nn.MaxPool2d) and max_pools and child.stride == 2:
            child.stride = 1
            setattr(module, name, nn.Sequential(child, BlurPool2d(stride=2)))
        else:
            add_blurpool(child, max_pools=max_pools)


def check_export(path: str | Path) -> None:
    """UserError if the packages that write this kind of file are missing."""
    if Path(path).suffix == ".onnx" and not all(map(importlib.util.find_spec, ("onnx", "onnxscript"))):
        raise UserError(f"--export {path} needs two packages: pip install onnx onnxscript")


def export_checkpoint(checkpoint: Path, path: str | Path, config: Config) -> None:
    """Write a .pt2 or .onnx file from the averaged weights, or from the plain ones if there are none.

    The outputs of a .pt2 file are compared with the model's.
    """
    if not checkpoint.exists():
        raise UserError(f"--export: there is no {checkpoint}; train first, or name the run with --output")
    state = load(checkpoint)
    # The export runs in one process on the CPU, where SyncBatchNorm does not work.
    config = dataclasses.replace(config, sync_bn=False, channels_last=False)
    model = make_model(config, classes=len(state["classes"]), device=torch.device("cpu"), fetch=False).eval()
    load_weights(model, state.get("ema") or state["model"])
    # Two images, because torch.export would treat a batch of one as a constant.
    images = torch.randn(2, 3, config.val_size, config.val_size)
    batch = torch.export.Dim("batch")
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".pt2":
        with _explained(config):
            program = torch.export.export(model, (images,), dynamic_shapes=({0: batch},))
        torch.export.save(program, path)
        found = torch.export.load(path).module()(images[:1])
        torch.testing.assert_close(found, model(images[:1]), rtol=1e-3, atol=1e-4)
        return
    with _explained(config):
        torch.onnx.export(
            model,
            (images,),
            path,
            input_names=["images"],
            output_names=["logits"],
            dynamic_shapes=({0: batch},),
            dynamo=True,
            external_data=False,
            verbose=False,
        )


@contextlib.contextmanager
def _explained(config: Config) -> Iterator[None]:
    """A model that cannot be exported, as a ViT of another image size, is the user's mistake."""
    try:
        yield
    except (AssertionError, ValueError, RuntimeError, TypeError) as error:
        raise UserError(
            f"--export: {config.arch} at --val-size {config.val_size} cannot be exported: {first_line(error)}"
        ) from error


def _make_torchvision(config: Config, classes: int, pretrained: bool) -> nn.Module:
    names = torchvision.models.list_models(module=torchvision.models)
    if config.arch not in names:
        hint = f": use timm:{config.arch}" if timm.is_model(config.arch) else nearest(config.arch, names)
        raise UserError(f"--arch {config.arch} is not a torchvision model{hint}")
    options = {"stochastic_depth_prob": config.drop_path} if config.drop_path else {}
    has_aux = config.arch in ("googlenet", "inception_v3")
    if has_aux:
        options["transform_input"] = config.pretrained  # the trained weights expect it
    if has_aux and not pretrained:
        options |= {"aux_logits": False, "init_weights": True}
    options |= {"weights": "DEFAULT"} if pretrained else {"num_classes": classes}
    model = torchvision.models.get_model(config.arch, **options)
    if pretrained:
        if config.arch == "inception_v3":  # torchvision adds the auxiliary head whenever it loads weights
            model.aux_logits, model.AuxLogits = False, None
        name, head = _head(model, arch=config.arch)
        if head.out_features != classes:
            model.set_submodule(name, nn.Linear(head.in_features, classes))
    return model


def _make_timm(config: Config, classes: int, pretrained: bool) -> nn.Module:
    name = config.arch.removeprefix("timm:")
    if not timm.is_model(name):
        raise UserError(f"--arch {config.arch} is not a timm model{nearest(name, timm.list_models())}")
    options = {"drop_path_rate": config.drop_path} if config.drop_path else {}
    return timm.create_model(name, pretrained=pretrained, num_classes=classes, **options)


def _head(model: nn.Module, *, arch: str) -> tuple[str, nn.Linear]:
    """The name of the last linear layer, and the layer."""
    linears = [(name, m) for name, m in model.named_modules() if isinstance(m, nn.Linear)]
    if not linears:
        raise UserError(f"--arch {arch} has no linear layer, which --pretrained and --prior-bias need")
    return linears[-1]
