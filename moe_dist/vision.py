"""The one place that imports torchvision, so that it works beside a CPU-only torch.

torchvision's wheels on the registry are built for CUDA. Beside a CPU-only torch their compiled operators do not load,
and `import torchvision` fails while it registers fake kernels for two operators that nobody defined. Defining the
schemas of these two first is enough: transforms and models (all that is used here) need no compiled operator.
"""

import torch

_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)

if not torch.cuda.is_available() and torch.version.cuda is None:
    _library = torch.library.Library("torchvision", "FRAGMENT")  # kept alive: the schemas go when it does
    for _schema in _SCHEMAS:
        _library.define(_schema)

import torchvision  # noqa: E402
import torchvision.transforms.v2  # noqa: E402  (a submodule that `import torchvision` leaves out)

__all__ = ["torchvision"]
