"""The loss of a batch. Targets are class numbers, or shares of each class (batch x classes) after mixup.

loss_of = make_loss(config)
loss = loss_of(logits, targets)
"""

from collections.abc import Callable

from timm.loss import BinaryCrossEntropy
from torch import Tensor, nn

from imagelmdb.config import Config


def make_loss(config: Config) -> Callable[[Tensor, Tensor], Tensor]:
    """A function of (logits, targets) that returns the mean over the batch."""
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
