"""What training minimises, and how: the loss and the optimiser."""

from collections.abc import Callable

import torch
from timm.loss import BinaryCrossEntropy
from timm.optim import SGDW, Lamb, Lars
from torch import Tensor, nn

from imagelmdb.config import Config


def make_loss(config: Config) -> Callable[[Tensor, Tensor], Tensor]:
    """A function of (logits, targets) that returns the mean over the batch.

    Targets are class numbers, or shares of each class (batch x classes) after mixup.
    """
    if config.loss == "ce":
        return nn.CrossEntropyLoss(label_smoothing=config.label_smoothing)
    bce = BinaryCrossEntropy(
        smoothing=config.label_smoothing,
        target_threshold=config.bce_threshold or None,
        sum_classes=config.bce_sum,
    )

    def loss_of(logits: Tensor, targets: Tensor) -> Tensor:
        # timm smooths class numbers, but not soft targets.
        if targets.ndim == 2:
            off = config.label_smoothing / targets.shape[1]
            targets = targets * (1 - config.label_smoothing) + off
        return bce(logits, targets)

    return loss_of


def make_optimizer(config: Config, model: nn.Module) -> torch.optim.Optimizer:
    """The optimiser that --optimizer names, for a model that is on its device already."""
    groups = group_parameters(model, weight_decay=config.weight_decay, skip=config.wd_skip)
    sgd = {"lr": config.lr, "momentum": config.momentum, "nesterov": config.nesterov}
    adam = {"lr": config.lr, "betas": config.betas, "eps": config.eps}
    # On a GPU, one kernel updates all parameters. On a CPU, torch's plain loop gives the published figures
    # to the last bit.
    fused = {"fused": True} if next(model.parameters()).is_cuda else {}
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, **sgd, **fused)
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, **adam, **fused)
    if config.optimizer == "sgdw":
        return SGDW(groups, **sgd)
    if config.optimizer == "lamb":
        return Lamb(groups, **adam)
    return Lars(groups, **sgd, eps=config.eps, trust_coeff=config.trust_coefficient)


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr


def group_parameters(model: nn.Module, *, weight_decay: float, skip: str) -> list[dict]:
    """Parameters with and without weight decay.

    `skip` names those without it: "none", "norm" (gamma and beta of the norm layers) or "norm+bias".
    """
    norm = {id(p) for m in model.modules() if _is_norm(m) for p in m.parameters(recurse=False)}
    decayed, exempt = [], []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        is_bias = name.endswith(".bias") or parameter.ndim <= 1
        free = skip != "none" and (id(parameter) in norm or (skip == "norm+bias" and is_bias))
        (exempt if free else decayed).append(parameter)
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": exempt, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def _is_norm(module: nn.Module) -> bool:
    # By name, because BatchNorm, LayerNorm2d and RMSNorm of torch, torchvision and timm share no base class.
    return "norm" in type(module).__name__.lower()
