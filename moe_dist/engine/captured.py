"""The passes of a training step as CUDA graphs: forward pass, loss and backward pass, launched as one.

On a GPU, a step of a small network waits for Python: ICL's has about 1,200 kernels of a few microseconds each. A graph
holds the kernels that were launched once, and launches them all together; they are the same kernels.

1. The first WARM_UP steps of a form are ordinary steps of the training, on the stream that is captured afterwards.
2. The next step is captured, which computes nothing, and then replayed, as are all that follow. A batch is copied to
   where the graph reads it. Losses, gradients and buffers (running statistics, ICL's memory) are where it writes them.
3. A form is a phase of the loss (Method.loss_phase) and the shapes of a batch. Graphs of an earlier phase are dropped.

Where a capture fails, all further steps are ordinary ones, and a warning says why.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from moe_dist.data.batch import Batch

WARM_UP = 3
"""Ordinary steps before a capture: libraries choose their kernels and allocate their workspaces in them."""

Passes = Callable[[Batch], Any]
"""Forward and backward pass of a batch; it leaves gradients in `.grad`, and returns tensors or what contains them."""


class Recorder(Protocol):
    """How launched kernels are recorded."""

    def warm(self, run: Callable[[], Any]) -> Any:
        """The result of `run`, computed where `record` would record it."""

    def record(self, run: Callable[[], Any]) -> tuple[Any, Callable[[], None]]:
        """The recorded `run`: its result, whose tensors have no values yet, and a function that computes them anew."""


class CudaRecorder:
    """Records on a stream of its own."""

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device)

    def warm(self, run: Callable[[], Any]) -> Any:
        """See Recorder. The two streams wait for each other, so that neither reuses memory the other still reads."""
        current = torch.cuda.current_stream(self._stream.device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            result = run()
        current.wait_stream(self._stream)
        return result

    def record(self, run: Callable[[], Any]) -> tuple[Any, Callable[[], None]]:
        """See Recorder. The loader's thread goes on pinning memory meanwhile, which the strictest mode would forbid."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
            result = run()
        return result, graph.replay


@dataclass(frozen=True)
class _Graph:
    """A recorded form: the batch that it reads, the result and gradients that it writes."""

    batch: Batch
    result: Any
    gradients: Sequence[Tensor | None]
    replay: Callable[[], None]


class CapturedPasses:
    """Runs a step's passes, from a graph where their form has been captured.

    parameters: those whose gradients the passes compute. how: what the last step was, for the log.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], recorder: Recorder) -> None:
        self.how = "eager"
        self._parameters, self._recorder = parameters, recorder
        self._phase: Hashable = None
        self._graphs: dict[Hashable, _Graph] = {}
        self._steps: Counter[Hashable] = Counter()
        self._failed = False

    def __call__(self, phase: Hashable, batch: Batch, passes: Passes) -> Any:
        """The result of `passes` for `batch`, and its gradients; phase: None for a loss that cannot be captured.

        The tensors of a result hold until the next call.
        """
        self.how = "eager"
        if phase is None or self._failed:
            return passes(batch)
        if phase != self._phase:
            self._phase = phase
            self._graphs.clear()
            self._steps.clear()
        form = tuple((name, tensor.shape, tensor.dtype) for name, tensor in batch.tensors().items())
        self._steps[form] += 1
        if self._steps[form] <= WARM_UP:
            return self._recorder.warm(lambda: passes(batch))
        graph = self._graphs.get(form) or self._capture(form, batch, passes)
        return passes(batch) if graph is None else self._replay(graph, batch)

    def _capture(self, form: Hashable, batch: Batch, passes: Passes) -> _Graph | None:
        """The graph of a form, whose result has no values yet; None where its kernels cannot be captured."""
        own = batch.mapped(torch.clone)
        try:
            result, replay = self._recorder.record(lambda: passes(own))
        except RuntimeError as error:
            self._failed = True
            logging.getLogger(__name__).warning(
                "steps are not captured as CUDA graphs, so the GPU waits for Python: %s", str(error).partition("\n")[0]
            )
            for parameter in self._parameters:
                parameter.grad = None
            return None
        self._graphs[form] = _Graph(own, result, [parameter.grad for parameter in self._parameters], replay)
        return self._graphs[form]

    def _replay(self, graph: _Graph, batch: Batch) -> Any:
        given = batch.tensors()
        for name, tensor in graph.batch.tensors().items():
            tensor.copy_(given[name], non_blocking=True)
        graph.replay()
        for parameter, gradient in zip(self._parameters, graph.gradients):
            parameter.grad = gradient
        self.how = "graph"
        return graph.result
