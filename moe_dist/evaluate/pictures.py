"""Pictures of a trained model on a few test images: t-SNE of its features, Grad-CAM of its experts.

Letters: V images that are shown, E experts, D features, K channels, S image side, s map side.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn

from moe_dist.data.batch import Batch
from moe_dist.data.longtail import largest_first, spaced
from moe_dist.data.opened.opened import OpenedData
from moe_dist.data.stream.stream import evaluation_batches
from moe_dist.methods.base import Method
from moe_dist.models.makers import ExpertMaps

PROJECTED_CLASSES = 10
"""Number of classes in the t-SNE, as in Figure 5 of the ICL paper."""
PROJECTED_OF_A_CLASS = 100
LOOKED_AT = 6
FEWEST_PROJECTED = 10
"""With fewer images there is no t-SNE: there are no neighbourhoods to keep."""
PERPLEXITY = 30.0
BATCH = 128
"""Images in a batch: few, so that the gradients of a large network's maps fit into memory."""


@torch.inference_mode()
def project_features(
    method: Method, network: nn.Module, data: OpenedData, device: torch.device
) -> dict[str, np.ndarray]:
    """t-SNE of the features of test images: points [V, 2] and labels [V], sorted by the size of the class.

    Empty if the method shows no features, or there are too few images.
    """
    from sklearn.manifold import TSNE  # takes seconds to import

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
    """Grad-CAM of each expert for the true class, on one test image each of a few classes, sorted by class size.

    Returns images [V, 3, S, S] uint8, labels [V], predicted [V, E] int16 (each expert's class) and
    cams [V, E, s, s] float32; empty if the method shows no maps.
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
    """The arrays for the method's own figures (Method.pictures), on the test images of look_at_images."""
    return dict(method.pictures(network, next(iter(_test_batches(data, LOOKED_AT, 1, device)))))


def grad_cam(shown: ExpertMaps, labels: Tensor) -> Tensor:
    """Grad-CAM (Selvaraju et al. 2017) of each expert's logit of `labels` [V]: maps [V, E, s, s], not negative.

    The weight of a channel is the mean gradient over its map; negative values of the weighted sum are set to 0.
    """
    scores = shown.logits.gather(2, labels[:, None, None].expand(-1, shown.logits.shape[1], 1))
    # An expert's logit depends only on its own map and, in eval mode, on its own image, so one sum gives all gradients.
    gradients = torch.autograd.grad(scores.sum(), shown.maps)
    cams = [
        (gradient.mean(dim=(2, 3), keepdim=True) * deep).sum(dim=1).relu()
        for gradient, deep in zip(gradients, shown.maps)
    ]
    return torch.stack(cams, dim=1).detach().float()


def _test_batches(data: OpenedData, classes: int, of_a_class: int, device: torch.device) -> Iterator[Batch]:
    """Batches of test images: at most `of_a_class` of each of `classes` classes, which are equally spaced by size."""
    labels = data.test.labels[data.test_samples]
    by_size = largest_first(np.asarray(data.info.class_counts))
    shown = spaced(by_size[np.isin(by_size, labels)], classes)
    chosen = np.concatenate([data.test_samples[labels == label][:of_a_class] for label in shown])
    return evaluation_batches(
        data.test.images, chosen, data.test.labels[chosen], data.config, batch_size=BATCH, device=device
    )
