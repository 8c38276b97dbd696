"""The parts by name; sizes are those of the papers, and in a dry run tiny ones."""

from __future__ import annotations

import importlib.util
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time

import torch

from benchmarks.on_gpu.running import ROOT, Options, Outcome, Part
from benchmarks.on_gpu.steps import cifar_stream, compiled, joint, recipe_steps, same_bits, sizes_of
from benchmarks.on_gpu.trainings import recipes


def tests(options: Options) -> Outcome:
    """`pytest -m gpu` of the files that have such tests; in a dry run they are only found."""
    files = [path for path in sorted((ROOT / "tests").rglob("test_*.py")) if "pytest.mark.gpu" in path.read_text()]
    names = [str(path.relative_to(ROOT)) for path in files]
    if options.dry:
        return Outcome(f"{len(files)} files have tests for a GPU", {"files": names})
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q", "-m", "gpu", *names]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    print(done.stdout, done.stderr, sep="\n")
    said = [line for line in done.stdout.splitlines() if re.search(r"passed|failed|error", line)]
    facts = {"files": names, "code": done.returncode, "failures": re.findall(r"^FAILED (\S+)", done.stdout, re.M)}
    if done.returncode:
        raise RuntimeError(f"pytest -m gpu: {said[-1] if said else done.stderr[-300:]}")
    return Outcome(said[-1] if said else "no tests", facts)


def banks(options: Options) -> Outcome:
    """43 experts x 16 trials trained together in banks, and one after another."""
    from bank import drawn, make_contenders

    from moe_dist.settings.augment import AugmentConfig

    experts, trials, samples = (2, 2, 16) if options.dry else (43, 16, 192)
    device, taken = torch.device(options.device), {}
    contenders = make_contenders(drawn(experts * trials), samples, AugmentConfig(), device)
    for name in ("bank", "one_after_another"):
        seconds = []
        for _ in range(2):  # the first round warms up
            started = time.perf_counter()
            contenders[name]()
            _wait(device)
            seconds.append(time.perf_counter() - started)
        taken[name] = seconds[-1]
    ratio = taken["one_after_another"] / taken["bank"]
    line = f"an epoch of {experts} experts x {trials} trials: bank {taken['bank']:.2f} s, one by one {ratio:.1f} x"
    return Outcome(line, {"experts": experts, "trials": trials, "seconds_of": taken, "ratio": ratio})


def module(options: Options) -> Outcome:
    """GMM-MoE's network with its modules and without: forward and training step."""
    import gmm_moe

    if options.dry:
        gmm_moe.SIDE = 64
    batch, rounds = (2, 1) if options.dry else (64, 20)
    device = torch.device(options.device)
    made = {name: gmm_moe.build(name).to(device) for name in (("gmm",) if options.dry else gmm_moe.CONTENDERS)}
    images = torch.randn(batch, 3, gmm_moe.SIDE, gmm_moe.SIDE, device=device)
    forward = {name: gmm_moe.forward_of(each, images) for name, each in made.items()}
    training = {name: gmm_moe.step_of(each, images) for name, each in made.items()}
    facts = {
        "batch": batch,
        "side": gmm_moe.SIDE,
        "forward_ms": gmm_moe.milliseconds(forward, rounds, device),
        "training_step_ms": gmm_moe.milliseconds(training, rounds, device),
    }
    told = ", ".join(f"{name} {value:.1f} ms" for name, value in facts["training_step_ms"].items())
    return Outcome(f"training step of {batch} images of {gmm_moe.SIDE} pixels: {told}", facts)


def stream(options: Options) -> Outcome:
    """Batches of CIFAR's size with CIFAR's changes, as they arrive on the device, by number of loader processes."""
    device, found = torch.device(options.device), {}
    for workers in (0,) if options.dry else (0, 1, 2, 4, 8):
        made = cifar_stream(options, device, workers)
        seconds = []
        for _ in range(2 if options.dry else 4):  # the first epoch starts the processes
            started = time.perf_counter()
            steps = sum(1 for _ in made.epoch())
            _wait(device)
            seconds.append((time.perf_counter() - started) / steps)
            for _ in range(steps):
                made.advance()
        found[str(workers)] = round(1e3 * statistics.median(seconds[1:]), 2)
    told = ", ".join(f"{workers} processes {taken} ms" for workers, taken in found.items())
    return Outcome(f"a batch of {sizes_of(options).batch} on {options.device}: {told}", {"ms_a_batch": found})


def spreading(options: Options) -> Outcome:
    """The start of expert parallelism over nccl on one rank; nothing is exchanged. With DeepSpeed where it is."""
    device, facts = torch.device(options.device), {}
    backend = "nccl" if device.type == "cuda" else "gloo"
    with tempfile.TemporaryDirectory() as folder:
        torch.distributed.init_process_group(backend, f"file://{folder}/store", rank=0, world_size=1)
        try:
            ones = torch.ones(4, device=device)
            torch.distributed.all_reduce(ones)
            facts = {"backend": backend, "all_reduce": ones.tolist(), "deepspeed": "not installed"}
            if importlib.util.find_spec("deepspeed") is not None:
                facts["deepspeed"] = "not in a dry run" if options.dry else _deepspeed_step(device)
        finally:
            torch.distributed.destroy_process_group()
    return Outcome(f"{backend} on one rank starts; DeepSpeed: {facts['deepspeed']}", facts)


def _deepspeed_step(device: torch.device) -> str:
    """A step of spread experts by DeepSpeed's engine."""
    os.environ.setdefault("LOCAL_RANK", "0")
    from functools import partial

    from expert_parallel import CLASSES, SIDE, Mixture

    from moe_dist.engine.choose import make_engine
    from moe_dist.parallel.experts import ExpertParallel
    from moe_dist.settings.resources import ParallelConfig
    from moe_dist.settings.training import OptimiserConfig

    network = Mixture(partial(ExpertParallel, ep_size=1)).to(device)
    engine = make_engine(
        network, {"": OptimiserConfig()}, parallel=ParallelConfig(), clip_norm=1.0, device=device, bf16=False, ranks=1,
        deepspeed=True,
    )  # fmt: skip
    images, labels = torch.rand(8, 3, SIDE, SIDE, device=device), torch.randint(CLASSES, (8,), device=device)
    loss = torch.nn.functional.cross_entropy(network(images), labels)
    engine.backward(loss)
    engine.step()
    return f"a step of 43 experts has loss {loss.item():.3f}"


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


PARTS = {
    "tests": Part("pytest -m gpu", tests),
    "steps": Part("ICL's and SHIKE's step, eager and as CUDA graphs: ms, images/s, kernels, idle share", recipe_steps),
    "compiled": Part("ICL's step through torch.compile", compiled),
    "bits": Part("two runs beside each other: how far they differ, and what `deterministic` costs", same_bits),
    "stream": Part("batches of CIFAR by number of loader processes, through pinned memory", stream),
    "joint": Part("DFCP-MoE's joint step of 43 experts, in eager mode and as CUDA graphs", joint),
    "banks": Part("43 experts x 16 trials, by bank against one after another", banks),
    "module": Part("GMM-MoE's modules in DenseNet-121", module),
    "spreading": Part("the start of expert parallelism over nccl on one rank, and DeepSpeed where it is", spreading),
    "recipes": Part("whole recipes side by side, as many as --recipe names; given again it goes on", recipes),
}
