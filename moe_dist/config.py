"""The job schema: what a YAML file under jobs/ may say, and how it is loaded, overridden and refused."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    Field,
    SerializeAsAny,
    ValidationError,
    ValidationInfo,
    model_validator,
)

from moe_dist.errors import UserError
from moe_dist.methods.registry import METHODS, method_class
from moe_dist.paths import local_path
from moe_dist.schema import AbsolutePath, Count, Fraction, NonNegative, Part, Positive, Strict
from moe_dist.tune.config import TuneConfig

Place = Annotated[
    str, AfterValidator(lambda place: place if "://" in place else str(Path(place).expanduser().absolute()))
]
"""A folder, made absolute, or a URL (s3://bucket/folder and whatever else fsspec knows)."""
Sampling = Literal["instance", "balanced", "square_root", "progressive"]
"""How often an epoch shows a class of n images: instance: n times (every image once); balanced: as often as any other;
square_root: in proportion to sqrt(n); progressive: from instance in the first epoch to balanced in the last."""
Weights = Annotated[
    str, AfterValidator(lambda name: str(local_path(name).expanduser().absolute()) if "." in name else name)
]
"""torchvision's name of weights, or the path of a file (which has a suffix)."""
MOST_RANDAUGMENT_OPERATIONS = 8
"""Random numbers are set aside for so many operations of an image."""


def _ascending(shares: tuple[float, float]) -> tuple[float, float]:
    if shares[0] > shares[1]:
        raise ValueError(f"the smaller share comes first: write [{shares[1]:g}, {shares[0]:g}]")
    return shares


AreaShares = Annotated[tuple[Fraction, Annotated[float, Field(gt=0, le=1)]], AfterValidator(_ascending)]


class AugmentConfig(Strict):
    """Random changes of a training image, drawn per sample from (seed, epoch, sample). All off by default."""

    shift: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Largest translation, as a fraction of the side."""
    rotate: Annotated[float, Field(ge=0, le=180)] = 0.0
    """Largest rotation, in degrees."""
    zoom: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Largest change of scale: factors in [1 - zoom, 1 + zoom]."""
    flip: bool = False
    """Horizontal flip with probability one half."""
    brightness: Annotated[float, Field(ge=0, le=1)] = 0.0
    contrast: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Factors in [1 - v, 1 + v]."""
    cutout: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Side of one grey square, as a fraction of the image side."""
    pad_crop: Annotated[int, Field(ge=0)] = 0
    """A crop of the image's own size from the image with so many black pixels added on every side."""
    resized_crop: AreaShares | None = None
    """Least and largest share of the area that a random crop keeps, resized to the side; aspect ratio 3/4 to 4/3."""
    policy: Literal["autoaugment_cifar10", "autoaugment_imagenet", "randaugment"] | None = None
    """Operations of a published policy, drawn anew for every image."""
    randaugment_operations: Annotated[int, Field(ge=1, le=MOST_RANDAUGMENT_OPERATIONS)] = 2
    randaugment_magnitude: Annotated[int, Field(ge=0, le=30)] = 9
    """randaugment: operations an image gets, and their strength on torchvision's scale of 31."""
    mixup: NonNegative = 0.0
    """alpha of MixUp: an image and another of the batch, blended by Beta(alpha, alpha), and their labels with them."""
    cutmix: NonNegative = 0.0
    """alpha of CutMix: a rectangle of another image of the batch. With both, either is taken with probability 1/2."""


class OptimiserConfig(Strict):
    """A torch optimiser: kind, rate and decay."""

    kind: Literal["sgd", "rmsprop", "adam", "adamw"] = "adam"
    learning_rate: Positive = 1e-3
    weight_decay: NonNegative = 0.0
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Of SGD; the other kinds have none."""


class ScheduleConfig(Strict):
    """How the learning rates change from epoch to epoch."""

    kind: Literal["constant", "plateau", "step", "cosine"] = "constant"
    factor: Annotated[float, Field(gt=0, le=1)] = 0.1
    """plateau, step: what the rate is multiplied by."""
    patience_epochs: Annotated[int, Field(ge=0)] = 10
    """plateau: epochs without a lower validation loss before the rate drops."""
    step_epochs: Count = 30
    """step: epochs between two drops."""
    warmup_epochs: Annotated[int, Field(ge=0)] = 0
    """cosine: epochs of linear warm-up."""


class RemoteConfig(Strict):
    """How shards under a URL are fetched: whole, into a cache on the node's own disk."""

    cache_gib: Positive = 20.0
    """Largest size of the cache; the shards read longest ago are dropped first."""
    timeout_seconds: Positive = 60.0
    """Longest silence of the store, when connecting and between two reads, before a try counts as failed."""
    retries: Annotated[int, Field(ge=0)] = 6
    """Further tries of a fetch, each after a pause twice as long as the last (1 s, 2 s, ... up to 30 s)."""


class DataConfig(Strict):
    """Which images, where they are, and how they are split and held.

    What only decides which images those are is a part of none: the digests of the samples are counted instead.
    """

    dataset: Annotated[str, Part.NONE] = "digits"
    """A name of the catalogue (`moe-dist shards list` shows them)."""
    source: Annotated[AbsolutePath | None, Part.NONE] = None
    """The downloaded dataset: a folder or a tar. Not needed for digits."""
    shards: Annotated[Place | None, Part.NONE] = None
    """Its shards: a folder, where they are built if they are not there yet, or a URL, which must hold them. Default:
    runs/cache/shards/<dataset>-<fingerprint>."""
    imbalance: Annotated[float | None, Field(ge=1, allow_inf_nan=False), Part.NONE] = None
    """Long-tailed form: class c of C keeps int(n * (1 / imbalance)^(c / (C - 1))) training images, n: the largest's."""
    imbalance_choice: Annotated[Literal["first", "random"], Part.NONE] = "first"
    """Which images a class keeps: its first ones, or ones drawn with `imbalance_seed`."""
    imbalance_seed: Annotated[int, Field(ge=0, lt=2**31), Part.NONE] = 0
    image_size: Annotated[int, Field(ge=8, le=1024)] = 32
    """Side of the square images the networks see, in pixels."""
    crop_roi: bool = False
    """Cut every image to its region of interest before resizing, where the dataset has one."""
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[Positive, Positive, Positive] = (0.5, 0.5, 0.5)
    """Per RGB channel, on pixels scaled to [0, 1]: what networks see is (pixel - mean) / std."""
    frame: Literal["stretch", "centre_crop"] = "stretch"
    """How an image becomes a square: stretched; or its centre, the short side resized to 8/7 of the square's."""
    val_fraction: Annotated[float, Field(ge=0, lt=1), Part.NONE] = 0.1
    """Share of the training images set aside for validation, stratified by class and kept by group (track). A dataset
    with a published validation split uses that and sets none aside. 0: no validation, and the last epoch counts."""
    on_bad_sample: Annotated[Literal["fail", "skip"], Part.NONE] = "fail"
    """An image that cannot be read or decoded ends the run, or is left out (a black image of weight 0 in training, no
    part of any accuracy), counted and named in the report. Steps before a training see it black."""
    bad_samples_limit: Annotated[Count, Part.NONE] = 100
    """skip: more bad samples than this end the run after all."""
    max_train_images: Annotated[Count | None, Part.NONE] = None
    """Keep only about this many training images (whole groups, stratified): to try a job out."""
    max_test_images: Annotated[Count | None, Part.NONE] = None
    """The same for the test images, and for a published validation split."""
    hold: Annotated[Literal["auto", "memory", "disk"], Part.NONE] = "auto"
    """memory: decode once into one shared array per node; disk: decode each time; auto: memory up to 2 GiB."""
    loader_workers: Annotated[int, Field(ge=0, le=64), Part.NONE] = 0
    """disk: decoding processes per rank."""
    remote: Annotated[RemoteConfig, Part.NONE] = RemoteConfig()
    window_shards: Annotated[int, Field(ge=0)] = 0
    """disk: shuffle inside a window of so many shuffled shards (slow storage); 0 shuffles the whole epoch."""


def _zero_stage(stage: int) -> int:
    if stage == 3:
        raise ValueError("ZeRO 3 shards the very parameters that expert parallelism places; choose 0, 1 or 2")
    if not 0 <= stage <= 2:
        raise ValueError("choose 0, 1 or 2")
    return stage


class ParallelConfig(Strict):
    """How ranks share the work of one training.

    A part of none by itself; where a network looks at its share of a batch, the shares are counted (fingerprints.py).
    """

    expert: Annotated[Count, Part.NONE] = 1
    """Expert-parallel size: experts are divided over so many ranks; it divides `workers`."""
    zero: Annotated[int, AfterValidator(_zero_stage), Part.NONE] = 0
    """DeepSpeed ZeRO stage, 0 to 2."""
    micro_batches: Annotated[Count, Part.NONE] = 1
    """Parts a global batch is cut into, over all workers; each worker adds up the gradients of its own. With 2, one
    worker and two compute the very same parts: without dropout and batch normalisation, their curves are the same."""

    def accumulate(self, workers: int) -> int:
        """Micro-batches of one worker in a step."""
        return max(1, self.micro_batches // workers)


class ResourceConfig(Strict):
    """What one worker asks of the cluster."""

    cpus_per_worker: Annotated[float, Field(gt=0), Part.NONE] = 1
    gpus_per_worker: Annotated[float, Field(ge=0), Part.NONE] = 0
    """0 trains on the CPU."""
    cpus_per_task: Annotated[float, Field(gt=0), Part.NONE] = 1
    """Of tasks beside the joint training (an expert alone, features, evaluation)."""
    gpus_per_task: Annotated[float, Field(ge=0), Part.NONE] = 0
    """A fraction lets several tasks share a GPU."""
    precision: Annotated[Literal["auto", "fp32", "bf16"], Part.NONE] = "auto"
    """auto: bf16 autocast on a GPU, fp32 on a CPU. Counted as decided."""
    compile: bool = False
    """The training's passes through torch.compile, on a GPU captured as CUDA graphs, which pays off where launching
    kernels takes longer than they run, as with small images. Equal to eager up to rounding."""


class CheckpointConfig(Strict):
    """When the training state is saved and how much of it is kept."""

    every_epochs: Annotated[Count, Part.EVALUATION] = 1
    every_steps: Annotated[int, Field(ge=0), Part.NONE] = 0
    """Also inside an epoch, every so many steps; 0: only at epoch ends."""
    keep: Annotated[Count, Part.EVALUATION] = 2
    """So many of the newest stay, and besides them the one that did best on the validation split; under Ray Train, so
    many that did best there, and besides them the newest."""
    max_failures: Annotated[int, Field(ge=0), Part.NONE] = 3
    """How often a training is restarted from its last checkpoint after a worker died."""


class MethodConfig(Strict):
    """What every method's configuration starts with."""

    name: str

    def check(self, classes: int) -> None:
        """Raise UserError where this configuration cannot work with a dataset of `classes` classes."""

    def notices(self) -> Sequence[str]:
        """What the user should know of settings that are allowed and do nothing: a sentence each."""
        return ()


def _method_config(value: Any, info: ValidationInfo) -> Any:
    if isinstance(value, MethodConfig):
        return value
    if isinstance(value, str):
        value = {"name": value}
    if not isinstance(value, dict) or "name" not in value:
        raise ValueError(f"needs a `name`, one of {', '.join(sorted(METHODS))}")
    if not isinstance(value["name"], str) or value["name"] not in METHODS:
        raise ValueError(f"no method is called {value['name']!r}; choose one of {', '.join(sorted(METHODS))}")
    return method_class(value["name"]).Config.model_validate(value, context=info.context)


AnyMethod = Annotated[SerializeAsAny[MethodConfig], BeforeValidator(_method_config)]
Label = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")]
"""Of a model; also its folder in the run directory."""


class Job(Strict):
    """One YAML file: what is trained, on which data, by how many workers, and what it is compared with."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_.-]*$"), Part.NONE]
    kind: Annotated[Literal["train", "reproduce", "tune"], Part.NONE]
    """train: one method; reproduce: several on the same data, with a table beside the paper's; tune: a search for the
    hyper-parameters of one method, or of each of its experts."""
    title: Annotated[str, Part.NONE] = ""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    workers: Annotated[Count, Part.NONE] = 1
    """Ranks of the joint training. Not part of the result: any number sees the same global batches."""
    data: DataConfig = DataConfig()
    method: AnyMethod | None = None
    methods: dict[Label, AnyMethod] = Field(default={})
    tune: Annotated[TuneConfig | None, Part.NONE] = None
    """What is searched, and with what budget."""
    paper_table: Annotated[str | None, Part.NONE] = None
    """Key of the paper's table that the report puts beside ours (moe_dist/report/paper.yaml)."""
    parallel: ParallelConfig = ParallelConfig()
    resources: ResourceConfig = ResourceConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()

    @model_validator(mode="after")
    def _one_kind(self) -> Job:
        if self.kind in ("train", "tune") and (self.method is None or self.methods):
            raise ValueError(f"a job of kind `{self.kind}` has one `method` and no `methods`")
        if (self.kind == "tune") != (self.tune is not None):
            raise ValueError("a job of kind `tune` has a section `tune`, and no other kind has one")
        if self.kind == "reproduce" and (self.method is not None or not self.methods):
            raise ValueError("a job of kind `reproduce` has `methods` (label: method) and no `method`")
        if "figures" in self.methods:
            raise ValueError("`figures` is the report's folder in a run directory: give the method another label")
        if self.workers % self.parallel.expert:
            raise ValueError(f"parallel.expert = {self.parallel.expert} does not divide workers = {self.workers}")
        if self.parallel.micro_batches > self.workers and self.parallel.micro_batches % self.workers:
            raise ValueError(
                f"parallel.micro_batches = {self.parallel.micro_batches} is no multiple of workers = {self.workers}"
            )
        return self

    @property
    def models(self) -> dict[str, MethodConfig]:
        """The methods this job trains, by the label their results carry."""
        return dict(self.methods) if self.method is None else {self.method.name: self.method}


def load_job(path: Path, overrides: list[str] | tuple[str, ...] = ()) -> Job:
    """Read a job's YAML, apply overrides (`a.b=c`, or `@FILE` with one a line) and validate it.

    Relative paths of data and weights start at the current directory, as a shell would have it, and are resolved here;
    a recipe that the job loads is looked for beside the job file.
    Raises UserError naming the field, what was given and what is allowed.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such job file")
    try:
        content = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: a job is a mapping of fields, this file holds {type(content).__name__}")
    for override in _expanded(overrides):
        _set(content, override)
    return parse_job(content, str(path), path.absolute().parent)


def parse_job(content: dict[str, Any], where: str, folder: Path = Path()) -> Job:
    """Validate a job given as a mapping; `where` names it in errors, recipes it loads are looked for in `folder`."""
    try:
        return Job.model_validate(content, context={"folder": folder})
    except ValidationError as error:
        raise UserError(f"{where}: {explain(error)}") from None


def dump_job(job: Job) -> str:
    """The resolved job as YAML, every default written out."""
    return yaml.safe_dump(job.model_dump(mode="json"), sort_keys=False)


def _expanded(overrides: list[str] | tuple[str, ...]) -> list[str]:
    """The overrides, each `@FILE` replaced by the ones in it: one a line, `#` opens a comment."""
    expanded = []
    for override in overrides:
        if not override.startswith("@"):
            expanded.append(override)
            continue
        path = Path(override[1:])
        if not path.is_file():
            raise UserError(f"--set {override}: no such file of overrides")
        lines = (line.partition("#")[0].strip() for line in path.read_text().splitlines())
        expanded += [line for line in lines if line]
    return expanded


def _set(content: dict[str, Any], override: str) -> None:
    """Apply one `a.b=c`; the value is read as YAML. The path must lead through mappings."""
    field, equals, text = override.partition("=")
    if not equals or not field:
        raise UserError(f"--set {override}: write it as field=value, for example --set workers=2")
    *parents, last = field.split(".")
    _refuse_other_kind(content, parents, override)
    node = content
    for depth, parent in enumerate(parents):
        child = {} if node.get(parent) is None else node[parent]
        if not isinstance(child, dict):
            raise UserError(f"--set {override}: {'.'.join(parents[: depth + 1])} holds a value, not fields")
        # A copy: other fields may hold the same mapping, by an anchor of the file.
        node[parent] = dict(child)
        node = node[parent]
    try:
        node[last] = yaml.safe_load(text)
    except yaml.YAMLError:
        raise UserError(f"--set {override}: {text!r} is not a YAML value") from None


def _refuse_other_kind(content: dict[str, Any], parents: list[str], override: str) -> None:
    """Say what to write where an override speaks of one method and the job has several, or the other way round."""
    if parents[:1] == ["method"] and content.get("methods"):
        labels = ", ".join(content["methods"])
        raise UserError(f"--set {override}: the job has several methods ({labels}); write methods.LABEL.FIELD=VALUE")
    if parents[:1] == ["methods"] and content.get("method"):
        raise UserError(f"--set {override}: the job has one method; write method.FIELD=VALUE, without a label")


def explain(error: ValidationError) -> str:
    """A pydantic error in the field's words: every problem names its field, the value given and what is allowed."""
    return "; ".join(_explain_one(problem) for problem in error.errors())


def _explain_one(problem: Any) -> str:
    field = ".".join(str(part) for part in problem["loc"] if part != "function-before[_method_config(), MethodConfig]")
    if problem["type"] == "extra_forbidden":
        return f"{field}: unknown field"
    message = problem["msg"].removeprefix("Value error, ")
    message = message[0].lower() + message[1:]
    given = problem.get("input")
    shown = "" if isinstance(given, dict | list | BaseModel) else f", got {given!r}"
    return f"{field}: {message}{shown}" if field else message
