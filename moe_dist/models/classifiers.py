"""Last layers of a classifier: linear, and cosine (normalised weights and features, times a scale).

Letters in shapes: B samples of a batch, C classes, D features. Both compute in float32 also under autocast: a cosine in
bfloat16, times 30, is a logit with an error of 0.1.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

ClassifierKind = Literal["cosine", "linear"]


class CosineClassifier(nn.Module):
    """logit_c = scale * cosine(weight_c, features): [B, D] -> [B, C] in [-scale, scale]."""

    def __init__(self, features: int, classes: int, scale: float) -> None:
        super().__init__()
        self.scale = scale
        self.weight = nn.Parameter(functional.normalize(torch.empty(classes, features).uniform_(-1, 1), dim=1))

    def forward(self, features: Tensor) -> Tensor:
        """Logits [B, C]; features of length zero give logits of zero."""
        with torch.autocast(features.device.type, enabled=False):
            directions = functional.normalize(features.to(self.weight.dtype), dim=1)
            return functional.linear(self.scale * directions, functional.normalize(self.weight, dim=1))


class LinearClassifier(nn.Linear):
    """logit_c = weight_c . features + bias_c: [B, D] -> [B, C]."""

    def forward(self, features: Tensor) -> Tensor:
        """Logits [B, C]."""
        with torch.autocast(features.device.type, enabled=False):
            return super().forward(features.to(self.weight.dtype))
