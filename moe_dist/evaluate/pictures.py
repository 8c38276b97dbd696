"""What a trained model's features and experts look like, on a few test images: t-SNE points and Grad-CAM maps.

Letters: n images, M experts, D features, K channels, S image side, s map side.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from sklearn.manifold import TSNE
from torch import Tensor, nn

from moe_dist.data.batch import Batch
from moe_dist.data.longtail import largest_first
from moe_dist.data.opened.opened import OpenedData
from moe_dist.data.stream.stream import evaluation_batches
from moe_dist.methods.base import Method
from moe_dist.models.makers import ExpertMaps

PROJECTED_CLASSES = 10
"""As many as the paper's Figure 5 shows."""
PROJECTED_OF_A_CLASS = 100
LOOKED_AT = 6
FEWEST_PROJECTED = 10
"""t-SNE of fewer images has no neighbourhoods to keep."""
PERPLEXITY = 30.0
BATCH = 128
"""Images at a time: few, so that the gradients of a large network's maps fit beside it."""


@torch.inference_mode()
def project_features(
    method: Method, network: nn.Module, data: OpenedData, device: torch.device
) -> dict[str, np.ndarray]:
    """t-SNE of the features of test images of ten classes: points [n, 2] and labels [n], the largest class first.

    Nothing where the method shows no features, or where there are too few images.
    """
    features: list[Tensor] = []
    labels: list[Tensor] = []
    for batch in _test_batches(data, PROJECTED_CLASSES, PROJECTED_OF_A_CLASS, device):
        shown = method.features(network, batch.images)
        if shown is None:
            return {}
        features.append(shown[batch.weight > 0].float().cpu())
        labels.append(batch.labels[batch.weight > 0].cpu())
    images = sum(map(len, labels))
    if images < FEWEST_PROJECTED:
        return {}
    projection = TSNE(perplexity=min(PERPLEXITY, (images - 1) / 3), init="pca", random_state=0)
    return {"points": projection.fit_transform(torch.cat(features).numpy()), "labels": torch.cat(labels).numpy()}


def look_at_images(method: Method, network: nn.Module, data: OpenedData, device: torch.device) -> dict[str, np.ndarray]:
    """Where each expert sees the true class, on one test image each of a few classes, the largest first.

    images [n, 3, S, S] uint8, labels [n], predicted [n, M] int16: every expert's choice, cams [n, M, s, s] float32.
    Nothing where the method shows no maps.
    """
    collected: dict[str, list[np.ndarray]] = {}
    for batch in _test_batches(data, LOOKED_AT, 1, device):
        shown = method.expert_maps(network, batch.images)
        if shown is None:
            return {}
        valid = batch.weight > 0
        arrays = {
            "images": data.test.images.uint8(batch.samples[valid].cpu().numpy()),
            "labels": batch.labels[valid],
            "predicted": shown.logits.argmax(2).to(torch.int16)[valid],
            "cams": grad_cam(shown, batch.labels)[valid],
        }
        for name, array in arrays.items():
            collected.setdefault(name, []).append(array.cpu().numpy())
    return {name: np.concatenate(parts) for name, parts in collected.items()}


@torch.inference_mode()
def own_pictures(method: Method, network: nn.Module, data: OpenedData, device: torch.device) -> dict[str, np.ndarray]:
    """What the method's own figures show, of the test images that look_at_images looks at."""
    return dict(method.pictures(network, next(iter(_test_batches(data, LOOKED_AT, 1, device)))))


def grad_cam(shown: ExpertMaps, labels: Tensor) -> Tensor:
    """Grad-CAM (Selvaraju et al. 2017) of every expert's logit of `labels` [n]: maps [n, M, s, s], not negative.

    A channel's weight is the mean gradient over its map; the weighted sum of the channels is cut at 0.
    """
    scores = shown.logits.gather(2, labels[:, None, None].expand(-1, shown.logits.shape[1], 1))
    # An expert's logit hangs on its own map alone, and without batch statistics on its own image: one sum serves all.
    gradients = torch.autograd.grad(scores.sum(), shown.maps)
    cams = [
        (gradient.mean(dim=(2, 3), keepdim=True) * deep).sum(dim=1).relu()
        for gradient, deep in zip(gradients, shown.maps)
    ]
    return torch.stack(cams, dim=1).detach().float()


def _test_batches(data: OpenedData, classes: int, of_a_class: int, device: torch.device) -> Iterator[Batch]:
    """Test images, at most `of_a_class` of each of `classes` classes equally spaced by size, in batches."""
    labels = data.test.labels[data.test_samples]
    by_size = largest_first(np.asarray(data.info.class_counts))
    shown = spaced(by_size[np.isin(by_size, labels)], classes)
    chosen = np.concatenate([data.test_samples[labels == label][:of_a_class] for label in shown])
    return evaluation_batches(
        data.test.images, chosen, data.test.labels[chosen], data.config, batch_size=BATCH, device=device
    )


def spaced(values: np.ndarray, number: int) -> np.ndarray:
    """At most `number` of `values`, equally spaced, the first and the last among them."""
    return values[np.unique(np.linspace(0, len(values) - 1, number).round().astype(int))]
