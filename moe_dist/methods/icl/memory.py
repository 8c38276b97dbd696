"""What ICL keeps between batches: how often each class is mistaken for each other (Eq 4), and class prototypes (Eq 5).

Letters in shapes: B samples of a rank's share, C classes, D features, E experts, G samples of the global batch. It
takes 4 E C (C + D) bytes: 0.2 MB on CIFAR-100, 37 MB on ImageNet-LT and 1.0 GB on iNaturalist 2018 with three experts,
on every rank and in a checkpoint.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from moe_dist.methods.ranks import gather


class Memory(nn.Module):
    """Confusion matrices [E, C, C] (rows: true classes) and prototypes [E, C, D], initially 0.

    with_diagonal: whether samples that are classified rightly are counted, too; without, the diagonal stays 0.
    They are buffers, so that checkpoints hold them. Every rank updates them with the whole global batch, so that all
    ranks hold the same.
    """

    confusion: Tensor
    prototypes: Tensor

    def __init__(self, experts: int, classes: int, width: int, with_diagonal: bool = False) -> None:
        super().__init__()
        self.with_diagonal = with_diagonal
        self.register_buffer("confusion", torch.zeros(experts, classes, classes))
        self.register_buffer("prototypes", torch.zeros(experts, classes, width))

    @torch.no_grad()
    def update(
        self, features: Tensor, logits: Tensor, labels: Tensor, valid: Tensor, alpha: float, beta: float
    ) -> None:
        """Eq 4 and 5 with this rank's share of a batch: features [B, E, D], logits [B, E, C], labels [B], valid [B].

        alpha, beta: the weights of the old values. Rows that are not valid (padding) are ignored. Collective.
        """
        seen = torch.cat([labels[:, None], valid[:, None].long(), logits.argmax(2)], 1)
        features, seen = gather(features.detach()), gather(seen)
        labels, valid, predicted = seen[:, 0], seen[:, 1].bool(), seen[:, 2:]
        update_confusion(self.confusion, predicted, labels, valid, alpha, self.with_diagonal)
        update_prototypes(self.prototypes, features, labels, valid, beta)


def update_confusion(
    confusion: Tensor, predicted: Tensor, labels: Tensor, valid: Tensor, alpha: float, with_diagonal: bool = False
) -> None:
    """Eq 4, in place: alpha * old + (1 - alpha) * how often each class was mistaken for each other one.

    confusion [E, C, C], predicted [G, E], labels [G], valid [G]; with_diagonal: also how often for itself.
    """
    mistaken = valid[:, None] & ((predicted != labels[:, None]) | with_diagonal)
    experts = torch.arange(len(confusion), device=labels.device).expand_as(predicted)
    rows = labels[:, None].expand_as(predicted)
    confusion.mul_(alpha)
    confusion.index_put_((experts, rows, predicted), (1 - alpha) * mistaken.to(confusion.dtype), accumulate=True)


def update_prototypes(prototypes: Tensor, features: Tensor, labels: Tensor, valid: Tensor, beta: float) -> None:
    """Eq 5, in place: beta * old + (1 - beta) * the batch's mean of each class in it; other classes do not change.

    prototypes [E, C, D], features [G, E, D], labels [G], valid [G].
    """
    alike = ((labels[:, None] == labels) & valid).to(features.dtype)
    count = alike.sum(1)
    # Every sample of a class writes the same row, computed for its first sample, so their order does not matter.
    first = alike.argmax(1)
    means = (alike @ features.flatten(1)).view_as(features)[first].transpose(0, 1) / count.clamp_min(1)[:, None]
    old = prototypes[:, labels]
    prototypes[:, labels] = torch.where(count[:, None] > 0, beta * old + (1 - beta) * means, old)
