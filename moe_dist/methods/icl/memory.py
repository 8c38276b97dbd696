"""What ICL remembers between batches: who was taken for whom (Eq 4), and where each class lies (Eq 5).

Letters: M experts, C classes, D features, N samples of the global batch. It takes 4 M C (C + D) bytes: 0.2 MB on
CIFAR-100, 37 MB on ImageNet-LT and 1.0 GB on iNaturalist 2018 with three experts, on every rank and in a checkpoint.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from moe_dist.methods.ranks import gather


class Memory(nn.Module):
    """Confusion matrices [M, C, C] (rows: true classes; the diagonal stays 0) and prototypes [M, C, D], both from 0.

    They are buffers, so that checkpoints carry them. Every rank updates them with the whole global batch, so that all
    ranks hold the same.
    """

    confusion: Tensor
    prototypes: Tensor

    def __init__(self, experts: int, classes: int, width: int) -> None:
        super().__init__()
        self.register_buffer("confusion", torch.zeros(experts, classes, classes))
        self.register_buffer("prototypes", torch.zeros(experts, classes, width))

    @torch.no_grad()
    def update(
        self, features: Tensor, logits: Tensor, labels: Tensor, valid: Tensor, alpha: float, beta: float
    ) -> None:
        """Eq 4 and 5 with this rank's share of a batch: features [B, M, D], logits [B, M, C], labels [B], valid [B].

        alpha, beta: the weights of the old values. Rows that are not valid (padding) count for nothing. Collective.
        """
        seen = torch.cat([labels[:, None], valid[:, None].long(), logits.argmax(2)], 1)
        features, seen = gather(features.detach()), gather(seen)
        labels, valid, predicted = seen[:, 0], seen[:, 1].bool(), seen[:, 2:]
        update_confusion(self.confusion, predicted, labels, valid, alpha)
        update_prototypes(self.prototypes, features, labels, valid, beta)


def update_confusion(confusion: Tensor, predicted: Tensor, labels: Tensor, valid: Tensor, alpha: float) -> None:
    """Eq 4, in place: alpha * old + (1 - alpha) * how often each class was taken for each other one.

    confusion [M, C, C], predicted [N, M], labels [N], valid [N].
    """
    mistaken = valid[:, None] & (predicted != labels[:, None])
    experts = torch.arange(len(confusion), device=labels.device).expand_as(predicted)
    rows = labels[:, None].expand_as(predicted)
    confusion.mul_(alpha)
    confusion.index_put_((experts, rows, predicted), (1 - alpha) * mistaken.to(confusion.dtype), accumulate=True)


def update_prototypes(prototypes: Tensor, features: Tensor, labels: Tensor, valid: Tensor, beta: float) -> None:
    """Eq 5, in place: beta * old + (1 - beta) * the batch's mean of each class in it; other classes stay as they are.

    prototypes [M, C, D], features [N, M, D], labels [N], valid [N].
    """
    alike = ((labels[:, None] == labels) & valid).to(features.dtype)
    count = alike.sum(1)
    # Every sample of a class writes the same row, taken from the first one: in which order they write does not matter.
    first = alike.argmax(1)
    means = (alike @ features.flatten(1)).view_as(features)[first].transpose(0, 1) / count.clamp_min(1)[:, None]
    old = prototypes[:, labels]
    prototypes[:, labels] = torch.where(count[:, None] > 0, beta * old + (1 - beta) * means, old)
