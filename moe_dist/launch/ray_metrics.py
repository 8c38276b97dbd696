"""A training's numbers as metrics of Ray, which each node's metrics agent gives to Prometheus with the prefix `ray_`.

Rank 0 tells what the log gets, and the controller counts restarts. cluster/grafana.json draws them.
"""

from __future__ import annotations

from typing import Any

from ray.util.metrics import Counter, Gauge

from moe_dist.train.log import Log

PREFIX = "moe_dist_"
TAGS = ("job_name", "model")
"""The job is not called `job`, which is the name that Prometheus gives to what it collects from."""
GAUGES = {
    "step": "Last step that was logged.",
    "of_steps": "Steps of the whole training.",
    "epoch": "Epoch of the stage, from 0.",
    "loss": "Training loss of the last logged step.",
    "images_per_second": "Training images a second, since the epoch began.",
    "step_seconds": "Seconds a step, mean since the line of the log before.",
    "data_wait_seconds": "Seconds of a step that it waited for its batch, mean since the line of the log before.",
    "gradient_norm": "Norm of the gradient before clipping, where it is clipped.",
}
"""Values of the log that are exported under their own names, and what they are."""
OF_EXPERTS = {
    "load": "Share of the gate's weight on the validation split, by expert.",
    "gradient_share": "Share of the epoch's gradient, by expert.",
}
"""Values of the log called <name>/expert_<e>, which are exported with the expert as a tag."""
CHECKPOINTS, CHECKPOINT_SECONDS, RESTARTS = "checkpoints", "checkpoint_seconds", "restarts"
COUNTERS = {
    CHECKPOINTS: "Checkpoints that were saved.",
    CHECKPOINT_SECONDS: "Seconds in which steps waited for checkpoints.",
    RESTARTS: "Restarts after a worker or node was lost, by the kind of fault.",
}


class TrainingMetrics:
    """The metrics of one training, in the process of its rank 0."""

    def __init__(self, job: str, model: str) -> None:
        self._tags = {"job_name": job, "model": model}
        self._gauges = {name: Gauge(PREFIX + name, text, TAGS) for name, text in GAUGES.items()}
        self._of_experts = {name: Gauge(PREFIX + name, text, (*TAGS, "expert")) for name, text in OF_EXPERTS.items()}
        self._counters = {name: Counter(PREFIX + name, COUNTERS[name], TAGS) for name in COUNTERS if name != RESTARTS}

    def line(self, values: dict[str, Any]) -> None:
        """Export what a line of the log has of these."""
        for name in GAUGES.keys() & values.keys():
            self._gauges[name].set(values[name], self._tags)
        for name, value in values.items():
            kind, _, expert = name.partition("/expert_")
            if kind in OF_EXPERTS:
                self._of_experts[kind].set(value, self._tags | {"expert": expert})

    def checkpoint(self, seconds: float) -> None:
        """Count a checkpoint that took so long."""
        self._counters[CHECKPOINTS].inc(1, self._tags)
        self._counters[CHECKPOINT_SECONDS].inc(seconds, self._tags)


class MeteredLog:
    """A log that also exports what it is told."""

    def __init__(self, log: Log, metrics: TrainingMetrics) -> None:
        self._log, self._metrics = log, metrics

    def write(self, kind: str, stage: str, epoch: int, step: int, values: dict[str, float], **facts: Any) -> None:
        """See Log."""
        self._log.write(kind, stage, epoch, step, values, **facts)
        self._metrics.line({**values, **facts, "epoch": epoch, "step": step})

    def close(self) -> None:
        """See Log."""
        self._log.close()


def restarts_counter(job: str, model: str) -> Counter:
    """The counter of a training's restarts; its tag `kind` is that of the fault."""
    counter = Counter(PREFIX + RESTARTS, COUNTERS[RESTARTS], (*TAGS, "kind"))
    counter.set_default_tags({"job_name": job, "model": model})
    return counter
