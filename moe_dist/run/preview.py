"""`moe-dist show`: the settings of a job, the sizes of its networks, the placement of experts and the time it needs."""

from __future__ import annotations

import time

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from moe_dist.data.batch import Batch, DatasetInfo
from moe_dist.data.datasets.catalog import open_contents
from moe_dist.data.image.vectors import VECTOR, decode_vector
from moe_dist.data.longtail import class_counts
from moe_dist.data.opened.opened import are_whole, long_tail_of, open_shards
from moe_dist.engine.choose import IN_ONE_PROCESS
from moe_dist.job import Job, dump_job
from moe_dist.methods.base import Method
from moe_dist.methods.phases import Progress, Stage, phase_name
from moe_dist.methods.registry import method_class
from moe_dist.parallel.placement import loads, place
from moe_dist.places import cache_folder
from moe_dist.run.exchanged import bytes_between_ranks
from moe_dist.run.notices import notices
from moe_dist.terminal import plain_table, say, say_table
from moe_dist.train.elastic import worker_counts

MEASURED_STEPS = 3


def preview(job: Job, console: Console) -> None:
    """Print the resolved job, and for each model its size, the placement of its experts and an estimate of time.

    Nothing is trained or written; for the estimate, a few steps on random images are timed.
    """
    say(console, dump_job(job))
    info = expected_info(job)
    kind = f"vectors of {info.vector_size:,} numbers" if info.vector_size else "images"
    say(console, f"{job.data.dataset}: about {info.train_images} training {kind}, {info.classes} classes")
    for sentence in notices(job):
        say(console, ("!", "yellow"), f" {sentence}")
    for model, config in job.models.items():
        say(console, "\n", (model, "bold"))
        for sentence in config.notices():
            say(console, ("!", "yellow"), f" {sentence}")
        _preview_method(job, method_class(config.name)(config, info), console)


def expected_info(job: Job) -> DatasetInfo:
    """The classes and about the samples that the job trains on, before it is run."""
    class_names, counts, vector_size = _classes_and_counts(job)
    images = int(counts.sum())
    share = min(images, job.data.max_train_images or images) * (1 - job.data.val_fraction) / images
    return DatasetInfo(
        classes=len(class_names),
        class_names=class_names,
        image_size=job.data.image_size,
        train_images=round(share * images),
        class_counts=tuple(max(1, round(share * count)) for count in counts.tolist()),
        vector_size=vector_size,
    )


def _classes_and_counts(job: Job) -> tuple[tuple[str, ...], np.ndarray, int]:
    """The names of the classes, their numbers of training samples [C], and the length of a vector (0 for images).

    They are read from the shards, or else from the source.
    """
    if job.data.shards is not None and are_whole(job.data.shards, job.data):
        shards = open_shards(job.data, job.data.shards, cache_folder())
        names, labels = shards["train"].class_names, {split: of_split.labels for split, of_split in shards.items()}
        first = shards["train"].read(0) if shards["train"].holds_vectors else b""
    else:
        contents = open_contents(job.data.dataset, job.data.source, long_tail_of(job.data))
        names, labels = contents.class_names, {split: contents.labels(split) for split in contents.counts}
        sample = contents.sample("train", 0)
        first = sample.image if sample.extension == VECTOR else b""
    used = {"split": ["train"], "test": ["test"], "all": list(labels)}[job.data.use]
    counts = class_counts(np.concatenate([labels[split] for split in used]), len(names))
    return names, counts, len(decode_vector(first)) if first else 0


def _preview_method(job: Job, method: Method, console: Console) -> None:
    say(console, "phases: " + ", ".join(phase_name(phase) for phase in method.phases()))
    network = method.build(IN_ONE_PROCESS, {}, job.seed)
    parameters = sum(parameter.numel() for parameter in network.parameters())
    say(console, f"network: {parameters:,} parameters, {parameters * 4 / 2**20:.1f} MiB in fp32")
    if counts := worker_counts(job, method):
        say(console, f"workers: {', '.join(map(str, counts))}, as many of these as the cluster has room for")
    if method.expert_costs():
        say_table(console, _placement_table(job, method))
    for stage in method.stages():
        steps = steps_of(method, stage)
        length = f"at most {stage.epochs} epochs, {steps:,} steps" if stage.epochs else f"at most {steps:,} steps"
        if not can_be_timed(stage):
            say(console, f"stage {stage.name}: {length} of {stage.batch_size} images")
            continue  # its loss needs results of earlier phases
        seconds = seconds_a_step(method, network, stage)
        say(
            console,
            f"stage {stage.name}: {length} of {stage.batch_size} images; a step on "
            f"random images took {seconds * 1e3:.0f} ms here on {torch.get_num_threads()} threads of a CPU: about "
            f"{steps * seconds / 60:.0f} min on one such worker",
        )


def steps_of(method: Method, stage: Stage) -> int:
    """The steps of a stage that is not stopped early."""
    return stage.steps or (stage.epochs or 0) * -(-method.info.train_images // stage.batch_size)


def can_be_timed(stage: Stage) -> bool:
    """Whether the stage's loss needs nothing that phases before it make."""
    return stage.build is None and stage.loss is None and stage.refresh is None


def _placement_table(job: Job, method: Method) -> Table:
    """A table of the experts and the load of each rank, and the bytes that the ranks exchange."""
    costs = method.expert_costs()
    placement = place(costs, job.parallel.expert)
    shares = loads(costs, placement)
    rows = [
        (str(rank), ", ".join(map(str, experts)), f"{share:.1%}")
        for rank, (experts, share) in enumerate(zip(placement, shares))
    ]
    ranks = job.parallel.expert
    batch = method.stages()[-1].batch_size * ranks // job.workers
    moved = bytes_between_ranks(method, job.seed, ranks, batch) if ranks > 1 else 0
    title = f"{len(costs)} experts over {ranks} ranks"
    caption = f"{moved / 2**20:.2f} MiB exchanged between ranks in a step, with all samples to all experts"
    return plain_table(("rank", "experts", "load"), rows, title, caption)


def seconds_a_step(method: Method, network: nn.Module, stage: Stage) -> float:
    """The seconds of a forward and backward pass of a global batch of random images, in this process."""
    side = method.info.image_size
    labels = torch.arange(stage.batch_size) % method.info.classes
    weight = torch.full((stage.batch_size,), 1 / stage.batch_size)
    batch = Batch(torch.rand(stage.batch_size, 3, side, side), labels, torch.arange(stage.batch_size), weight)
    method.set_training(network, stage.name)  # a frozen part is then computed once, as in the training
    started = 0.0
    for step in range(MEASURED_STEPS + 1):
        if step == 1:  # the first one warms up
            started = time.perf_counter()
        terms = method.loss(network, batch, Progress(stage.name, 0, stage.epochs or 1, step))
        torch.stack(list(terms.values())).sum().backward()
    return (time.perf_counter() - started) / MEASURED_STEPS
