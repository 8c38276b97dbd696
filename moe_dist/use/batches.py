"""Samples read, predicted and put into rows, a batch at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from moe_dist.errors import UserError
from moe_dist.use.inputs import Item
from moe_dist.use.model import TrainedModel
from moe_dist.use.preprocess import Preprocessing
from moe_dist.use.rows import BEST, Row

if TYPE_CHECKING:
    from moe_dist.use.explain import Explainer

DIGITS = 6
"""Decimals of a probability in a row: what is read back from a file is what was counted and compared."""
DECODERS = 4
"""Threads that read and decode the next batch while one is computed."""


@dataclass(frozen=True)
class How:
    """How samples are predicted: by how many experts, how many at once, which are rejected, and where pictures go."""

    top_k: int | None = None
    batch: int = 256
    reject: float = 0.0
    explain: Path | None = None

    def explainer(self, model: TrainedModel) -> Explainer | None:
        """What writes pictures, if they are asked for. Raises UserError where the model shows no maps."""
        if self.explain is None:
            return None
        from moe_dist.use.explain import Explainer  # imports matplotlib, without which all else is done

        return Explainer(model, self.explain)


def predicted(model: TrainedModel, items: Sequence[Item], how: How) -> Iterator[list[Row]]:
    """The rows of `items`, a batch at a time."""
    # A gate of top-k has the weights of all experts only where more than one sample is computed.
    size = max(min(how.batch, len(items)), 1 if how.top_k is None else 2)
    full, explainer = model.preprocessing.empty(size), how.explainer(model)
    for number, (part, read) in enumerate(_read_ahead(model.preprocessing, items, size)):
        samples = model.preprocessing.empty(len(part))
        for row, sample in enumerate(read):
            if isinstance(sample, Tensor):
                samples[row] = sample
        if number == 0:
            full[: len(samples)] = samples
        predictions = model.predict_samples(samples, full, how.top_k)
        if explainer is not None:
            good = [row for row, sample in enumerate(read) if isinstance(sample, Tensor)]
            explainer.write([part[row].name for row in good], samples[good], predictions.labels[good])
        best = [[(name, round(share, DIGITS)) for name, share in row] for row in predictions.best(BEST)]
        gates = {name: gate.tolist() for name, gate in predictions.gates.items()}
        rows = []
        for row, item in enumerate(part):
            if isinstance(read[row], Tensor):
                own = {name: gate[row] for name, gate in gates.items()}
                rows.append(Row(item.name, best[row], own, item.label, rejected=best[row][0][1] < how.reject))
            else:
                rows.append(Row(item.name, label=item.label, reason=str(read[row])))
        yield rows


def _read_ahead(
    preprocessing: Preprocessing, items: Sequence[Item], size: int
) -> Iterator[tuple[Sequence[Item], list[Tensor | str]]]:
    """Batches of `size` items with their samples, or a sentence for one that cannot be used; the next is being read."""
    with ThreadPoolExecutor(DECODERS) as pool:
        ahead: list[tuple[Sequence[Item], list[Future[Tensor | str]]]] = []
        try:
            for start in range(0, len(items), size):
                part = items[start : start + size]
                ahead.append((part, [pool.submit(_read, preprocessing, item) for item in part]))
                if len(ahead) > 1:
                    before, futures = ahead.pop(0)
                    yield before, [future.result() for future in futures]
            for part, futures in ahead:
                yield part, [future.result() for future in futures]
        finally:
            pool.shutdown(cancel_futures=True)


def _read(preprocessing: Preprocessing, item: Item) -> Tensor | str:
    """The sample of an item, or why there is none."""
    try:
        return preprocessing.sample(item.read())
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    except (ValueError, UserError) as error:
        return " ".join(str(error).split())


def best_device() -> torch.device:
    """A GPU where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
