"""Training steps as train/loop.py takes them, on made-up images: their speed by how they are launched, their bits."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any, Literal, cast

import numpy as np
import torch
from held_images import HeldImages
from torch import Tensor

from benchmarks.on_gpu.running import Options, Outcome
from moe_dist.data.batch import Batch, DatasetInfo, TrainingSet
from moe_dist.data.longtail import profile
from moe_dist.data.stream.stream import Stream
from moe_dist.engine.captured import WARM_UP, CapturedPasses, CudaRecorder
from moe_dist.engine.choose import IN_ONE_PROCESS, make_engine
from moe_dist.methods.base import Method
from moe_dist.methods.dfcp.config import DfcpConfig
from moe_dist.methods.dfcp.method import Dfcp
from moe_dist.methods.icl.config import IclConfig
from moe_dist.methods.icl.method import Icl
from moe_dist.methods.longtail.config import CIFAR_AUGMENT
from moe_dist.methods.longtail.method import CLASSIFIERS, FEATURES
from moe_dist.methods.longtail.shike import Shike, ShikeConfig
from moe_dist.methods.phases import Progress
from moe_dist.settings.data import DataConfig
from moe_dist.settings.resources import ParallelConfig
from moe_dist.train.loop import train_step
from moe_dist.train.session import GradientShares, Session
from moe_dist.train.task import compile_calls, compute_the_same_bits

CLASSES, LARGEST_CLASS, IMBALANCE = 100, 500, 100.0
Launched = Literal["eager", "graph", "compiled"]


@dataclass(frozen=True)
class Sizes:
    """Of images, networks, batches, and of a measurement."""

    side: int = 32
    width: int = 16
    batch: int = 128
    images: int = 10_847
    steps: int = 60


TINY = Sizes(side=16, width=2, batch=8, images=40, steps=2)


def sizes_of(options: Options) -> Sizes:
    """Those of the papers, or tiny ones."""
    return TINY if options.dry else Sizes()


def cifar_info(sizes: Sizes) -> tuple[DatasetInfo, np.ndarray]:
    """CIFAR-100-LT's facts, and a label [N] for each of its images."""
    labels = np.repeat(np.arange(CLASSES), profile(LARGEST_CLASS, IMBALANCE, CLASSES))
    counts = tuple(np.bincount(labels).tolist())
    info = DatasetInfo(CLASSES, tuple(map(str, range(CLASSES))), sizes.side, len(labels), counts)
    return info, np.random.default_rng(0).permutation(labels)[: sizes.images]


def cifar_stream(options: Options, device: torch.device, workers: int | None = None) -> Stream:
    """Batches of as many made-up images, with CIFAR's changes."""
    sizes = sizes_of(options)
    _, labels = cifar_info(sizes)
    pixels = np.random.default_rng(0).integers(0, 256, (len(labels), 3, sizes.side, sizes.side), np.uint8)
    return Stream(
        HeldImages(pixels),
        TrainingSet(np.arange(len(labels)), labels),
        DataConfig(image_size=sizes.side, loader_workers=workers),
        seed=0,
        global_batch=sizes.batch,
        rank=0,
        ranks=1,
        augment=CIFAR_AUGMENT,
        device=device,
    )


class Steps:
    """A stage's steps on one process, as a session takes them."""

    def __init__(self, method: Method, stage: str, device: torch.device, bf16: bool, launched: Launched) -> None:
        self.method, self.stage, self.device, self._number = method, stage, device, 0
        (of_name,) = (each for each in method.stages() if each.name == stage)
        network = method.build(IN_ONE_PROCESS, {}, seed=0).to(device)
        if launched == "compiled":
            compile_calls(network, device)
        method.set_training(network, stage)
        engine = make_engine(
            network,
            of_name.optimisers,
            parallel=ParallelConfig(),
            clip_norm=of_name.clip_norm,
            device=device,
            bf16=bf16,
            ranks=1,
            deepspeed=False,
        )
        captured = CapturedPasses(list(network.parameters()), CudaRecorder(device)) if launched == "graph" else None
        parts = {"engine": engine, "stage": of_name, "gradients": GradientShares(0, 1), "accumulate": 1}
        self.session: Any = SimpleNamespace(**parts, captured=captured)

    def take(self, batch: Batch, epoch: int = 0) -> Tensor:
        """One step; its loss."""
        self._number += 1
        progress = Progress(self.stage, epoch, 200, self._number)
        losses = train_step(self.method, cast(Session, self.session), batch, progress)
        return torch.stack(list(losses.values())).sum()

    def weights(self) -> Tensor:
        """All parameters in one row."""
        return torch.cat([each.detach().flatten() for each in self.session.engine.network.parameters()])


def recipe_steps(options: Options) -> Outcome:
    """ICL's stages and SHIKE's first: of each way to launch a step its time, images/s, kernels and idle share."""
    sizes, device = sizes_of(options), torch.device(options.device)
    info, _ = cifar_info(sizes)
    base = {"network": {"width": sizes.width}, "experts": 3}
    icl = Icl(IclConfig.model_validate(base | {"t_ad": 200, "t_cl": 0}), info)
    shike = Shike(ShikeConfig.model_validate(base), info)
    batches = kept_batches(options, device, 4)
    found: dict[str, Any] = {}
    for name, method, stage, bf16 in (
        ("icl bf16", icl, FEATURES, True),
        ("icl fp32", icl, FEATURES, False),
        ("icl stage two bf16", icl, CLASSIFIERS, True),
        ("shike bf16", shike, FEATURES, True),
    ):
        if options.dry and bf16:
            continue  # emulated on most processors
        found[name] = {way: measured(method, stage, device, bf16, way, batches, sizes) for way in ways(options)}
    if not options.dry:
        found["icl bf16, with its loader"] = with_loader(icl, options, device, sizes)
    first = next(iter(found))
    told = ", ".join(f"{way} {about.get('ms', about)}" for way, about in found[first].items())
    return Outcome(f"{first}, ms a step of {sizes.batch}: {told}", {"steps": found})


def ways(options: Options) -> tuple[Launched, ...]:
    """How steps are launched; graphs need a GPU."""
    return ("eager",) if options.device == "cpu" else ("eager", "graph")


def compiled(options: Options) -> Outcome:
    """ICL's step through torch.compile, a part of its own because compiling alone takes a minute."""
    if options.dry:
        return Outcome("not in a dry run: compiling takes longer than all of it")
    sizes, device = sizes_of(options), torch.device(options.device)
    config = IclConfig.model_validate({"experts": 3, "t_ad": 200, "t_cl": 0})
    method, batches = Icl(config, cifar_info(sizes)[0]), kept_batches(options, device, 4)
    found = measured(method, FEATURES, device, True, "compiled", batches, sizes)
    return Outcome(f"icl bf16, ms a step of {sizes.batch}: {found.get('ms', found)}", {"step": found})


def kept_batches(options: Options, device: torch.device, count: int) -> list[Batch]:
    """The first batches of the stream, on the device."""
    batches = []
    for batch in cifar_stream(options, device, 0).epoch():
        batches.append(batch)
        if len(batches) == count:
            break
    return batches


def measured(
    method: Method, stage: str, device: torch.device, bf16: bool, way: Launched, batches: list[Batch], sizes: Sizes
) -> dict[str, Any]:
    """Milliseconds and kernels of a step on batches that lie on the device; a failure is told in their place."""
    try:
        steps = Steps(method, stage, device, bf16, way)
        losses = [float(steps.take(batches[number % len(batches)])) for number in range(WARM_UP + 3)]
        taken = milliseconds(partial(_take_one_of, steps, batches), sizes.steps, device)
        launched = kernels(lambda: steps.take(batches[0]), device)
    except Exception as error:  # of one way; the others are still measured
        return {"failed": f"{type(error).__name__}: {error}".partition("\n")[0]}
    about = {"ms": round(taken, 2), "images_per_second": round(1e3 * sizes.batch / taken), "first_losses": losses}
    captured = steps.session.captured
    return about | launched | ({} if captured is None else {"steps_by": captured.how})


def with_loader(method: Method, options: Options, device: torch.device, sizes: Sizes) -> dict[str, Any]:
    """Milliseconds of a captured step whose batches come from the stream, with its loader processes."""
    stream, steps = cifar_stream(options, device), Steps(method, FEATURES, device, True, "graph")
    arriving = endless(stream)
    for _ in range(WARM_UP + 3):
        steps.take(next(arriving))
    taken = milliseconds(lambda number: steps.take(next(arriving)), 2 * len(stream), device)
    return {"graph": {"ms": round(taken, 2), "images_per_second": round(1e3 * sizes.batch / taken)}}


def endless(stream: Stream) -> Iterator[Batch]:
    """Its batches, epoch after epoch."""
    while True:
        for batch in stream.epoch():
            stream.advance()
            yield batch


def milliseconds(step: Callable[[int], object], steps: int, device: torch.device) -> float:
    """The median over three rounds of the mean time of a step, each round waited for."""
    means = []
    for _ in range(3):
        wait(device)
        started = time.perf_counter()
        for number in range(steps):
            step(number)
        wait(device)
        means.append((time.perf_counter() - started) / steps)
    return 1e3 * statistics.median(means)


def kernels(step: Callable[[], object], device: torch.device, steps: int = 5) -> dict[str, Any]:
    """Kernels and copies of a step, and the share of the time in which none of them runs; nothing on a CPU."""
    if device.type != "cuda":
        return {}
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        wait(device)
        started = time.perf_counter()
        for _ in range(steps):
            step()
        wait(device)
        wall = time.perf_counter() - started
    ran = [event for event in profile.events() if event.device_type == torch.autograd.DeviceType.CUDA]
    busy = sum(event.time_range.elapsed_us() for event in ran) / 1e6
    return {
        "kernels": round(len(ran) / steps),
        "busy_ms": round(1e3 * busy / steps, 2),
        "idle_share": round(max(0.0, 1 - busy / wall), 3),
    }


def joint(options: Options) -> Outcome:
    """DFCP-MoE's joint step: many small experts, each with its own optimiser, and the managing network."""
    sizes, device = sizes_of(options), torch.device(options.device)
    classes = 3 if options.dry else 43
    info = DatasetInfo(classes, tuple(map(str, range(classes))), sizes.side, 100, (100 // classes,) * classes)
    config = DfcpConfig.model_validate({} if not options.dry else {"gate": {"filters": [4, 8], "hidden": [16]}})
    method = Dfcp(config, info)
    batch = made_batch(32 if not options.dry else 4, sizes.side, classes, device)
    found = {way: measured(method, "joint", device, not options.dry, way, [batch], sizes) for way in ways(options)}
    told = ", ".join(f"{way} {about.get('ms', about)}" for way, about in found.items())
    return Outcome(f"{classes} experts, ms a step of {len(batch.labels)}: {told}", {"steps": found})


def made_batch(size: int, side: int, classes: int, device: torch.device) -> Batch:
    """A batch of noise."""
    random = torch.Generator().manual_seed(0)
    images, labels = torch.randn(size, 3, side, side, generator=random), torch.arange(size) % classes
    batch = Batch(images, labels, torch.arange(size), torch.full((size,), 1 / size))
    return batch.mapped(lambda tensor: tensor.to(device))


def same_bits(options: Options) -> Outcome:
    """How far two trainings of equal settings are apart, by all kernels and by deterministic ones, and their time."""
    sizes, device = sizes_of(options), torch.device(options.device)
    info, _ = cifar_info(sizes)
    config = IclConfig.model_validate({"network": {"width": sizes.width}, "experts": 3, "t_ad": 200, "t_cl": 0})
    batches, found = kept_batches(options, device, 8), {}
    way: Launched = "eager" if device.type == "cpu" else "graph"
    for name in ("all kernels", "deterministic"):
        if name == "deterministic":
            compute_the_same_bits()
        try:
            ends, taken = [], []
            for _ in range(2):
                steps = Steps(Icl(config, info), FEATURES, device, not options.dry, way)
                taken.append(milliseconds(partial(_take_one_of, steps, batches), sizes.steps, device))
                ends.append(steps.weights())
            largest = float((ends[0] - ends[1]).abs().max())
            found[name] = {"largest_difference": largest, "ms": round(min(taken), 2), "steps": 3 * sizes.steps}
        except RuntimeError as error:
            found[name] = {"failed": str(error).partition("\n")[0]}
        finally:
            torch.use_deterministic_algorithms(False)
    told = "; ".join(f"{name} {about}" for name, about in found.items())
    return Outcome(f"weights of two runs after {3 * sizes.steps} steps: {told}", {"runs": found})


def _take_one_of(steps: Steps, batches: list[Batch], number: int) -> Tensor:
    return steps.take(batches[number % len(batches)])


def wait(device: torch.device) -> None:
    """Wait until the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
