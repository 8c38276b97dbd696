"""The one place that imports torchvision and timm: late, and so that torchvision works beside a CPU-only torch.

Late: the two bring torch's compiler along, which is a third of what a process takes to start, and most processes (a
refused job, `show`, a driver on Ray, a loader) need neither.

torchvision's wheels on the registry are built for CUDA. Beside a CPU-only torch their compiled operators do not load,
and `import torchvision` fails while it registers fake kernels for two operators that nobody defined. Defining the
schemas of these two first is enough: transforms and models (all that is used here) need no compiled operator.
"""

from functools import cache
from types import ModuleType

import torch

_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_KEPT: list[torch.library.Library] = []
"""The library that defines the schemas, which go when it does."""


@cache
def torchvision() -> ModuleType:
    """torchvision, with its submodule transforms.v2."""
    if not torch.cuda.is_available() and torch.version.cuda is None:
        _KEPT.append(torch.library.Library("torchvision", "FRAGMENT"))
        for schema in _SCHEMAS:
            _KEPT[0].define(schema)
    import torchvision
    import torchvision.transforms.v2

    return torchvision


@cache
def timm() -> ModuleType:
    """timm, which imports torchvision."""
    torchvision()
    import timm

    return timm
