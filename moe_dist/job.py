"""The job file: the fields of a YAML file under jobs/, and how it is loaded and checked."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, SerializeAsAny, ValidationError, ValidationInfo, model_validator

from moe_dist.errors import UserError
from moe_dist.files import read_text
from moe_dist.methods.config import MethodConfig
from moe_dist.methods.registry import method_class, method_names
from moe_dist.overrides import apply_overrides
from moe_dist.settings.data import DataConfig
from moe_dist.settings.explain import explain
from moe_dist.settings.grid import GridConfig
from moe_dist.settings.resources import ParallelConfig, ResourceConfig
from moe_dist.settings.schema import AbsolutePlace, Count, Part, Strict
from moe_dist.settings.training import CheckpointConfig
from moe_dist.settings.tune import TuneConfig
from moe_dist.yaml_core import WRITTEN_BY_1_2, dump_yaml, load_yaml


def _method_config(value: Any, info: ValidationInfo) -> Any:
    """The configuration of the method `value`, which is its name, or a mapping with the field `name`."""
    if isinstance(value, MethodConfig):
        return value
    if isinstance(value, str):
        value = {"name": value}
    if not isinstance(value, dict) or "name" not in value:
        raise ValueError(f"needs a `name`, one of {', '.join(method_names())}")
    if not isinstance(value["name"], str):
        raise ValueError(f"no method is called {value['name']!r}; choose one of {', '.join(method_names())}")
    try:
        method = method_class(value["name"])
    except UserError as error:
        raise ValueError(str(error).removeprefix("method.name: ")) from None
    return method.Config.model_validate(value, context=info.context)


AnyMethod = Annotated[SerializeAsAny[MethodConfig], BeforeValidator(_method_config)]
"""The configuration of any registered method, loaded by its `name`."""
ModelName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")]
"""The name that a job gives to a model; also the model's folder in the run directory."""


class Job(Strict):
    """A job: what is trained, on which data, and by how many workers."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_.-]*$"), Part.NONE]
    kind: Annotated[Literal["train", "reproduce", "tune"], Part.NONE]
    """train: one method. reproduce: several methods on the same data in one run, or a grid of runs (`grid`), with a
    table beside the paper's. tune: a search for the hyper-parameters of a method, or of each of its experts."""
    title: Annotated[str, Part.NONE] = ""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    workers: Annotated[Count, Part.NONE] = 1
    """Number of ranks of a training. The result does not depend on it: any number sees the same global batches."""
    min_workers: Annotated[Count | None, Part.NONE] = None
    """Where the cluster has no room for all `workers`, a training goes on with fewer, but with so many at least, and
    with more again when there is room (train/elastic.py says which numbers are possible)."""
    data: DataConfig = DataConfig()
    method: AnyMethod | None = None
    methods: dict[ModelName, AnyMethod] = Field(default={})
    tune: Annotated[TuneConfig | None, Part.NONE] = None
    """The search of a job of kind `tune`: its spaces and its budget."""
    grid: Annotated[GridConfig | None, Part.NONE] = None
    """A job of kind `reproduce` as a grid: its methods on several data, with changed settings and several seeds, each
    cell a run by itself."""
    paper_table: Annotated[str | None, Part.NONE] = None
    """Name of the paper's table that the report shows beside this run's figures (methods/*/paper.yaml)."""
    init_from: Annotated[AbsolutePlace | None, Part.NONE] = None
    """A finished run, or an exported model, here or at a URL, from whose weights trainings begin. What depends on it
    counts through the weights' digests."""
    parallel: ParallelConfig = ParallelConfig()
    resources: ResourceConfig = ResourceConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()

    @model_validator(mode="after")
    def _fields_agree(self) -> Job:
        if self.kind in ("train", "tune") and (self.method is None or self.methods):
            raise ValueError(f"a job of kind `{self.kind}` has one `method` and no `methods`")
        if (self.kind == "tune") != (self.tune is not None):
            raise ValueError("a job of kind `tune` has a section `tune`, and no other kind has one")
        if self.kind == "reproduce" and (self.method is not None or not self.methods):
            raise ValueError("a job of kind `reproduce` has `methods` (name: method) and no `method`")
        if self.init_from is not None and self.kind == "tune":
            raise ValueError("`init_from` is not for a job of kind `tune`: its trainings begin anew; leave it out")
        if self.grid is not None and self.kind != "reproduce":
            raise ValueError("only a job of kind `reproduce` has a section `grid`")
        if self.grid is not None and self.grid.seeds and self.seed:
            raise ValueError("a job with `grid.seeds` has no `seed`: write all seeds there")
        if "figures" in self.methods:
            raise ValueError("`figures` is the report's folder in a run directory: give the model another name")
        if self.fewest_workers > self.workers:
            raise ValueError(f"min_workers = {self.min_workers} is more than workers = {self.workers}")
        if self.workers % self.parallel.expert:
            raise ValueError(f"parallel.expert = {self.parallel.expert} does not divide workers = {self.workers}")
        if self.parallel.micro_batches > self.workers and self.parallel.micro_batches % self.workers:
            raise ValueError(
                f"parallel.micro_batches = {self.parallel.micro_batches} is not a multiple of workers = {self.workers}"
            )
        return self

    @property
    def fewest_workers(self) -> int:
        """The fewest workers with which a training goes on."""
        return self.min_workers or self.workers

    @property
    def models(self) -> dict[str, MethodConfig]:
        """The configurations of the models that this job trains, by the model's name."""
        return dict(self.methods) if self.method is None else {self.method.name: self.method}


def load_job(path: Path, overrides: list[str] | tuple[str, ...] = ()) -> Job:
    """Read a job's YAML file, apply overrides (`a.b=c`, or `@FILE` with one on each line) and validate the job.

    Relative paths of data and weights are made absolute, starting at the current directory. A recipe that the job loads
    is searched beside the job file. Raises UserError, which names the field, what was given and what is allowed.
    """
    try:
        content = load_yaml(read_text(path, str(path), "job file"))
    except ValueError as error:
        raise UserError(f"{path}: not valid YAML: {error}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: a job is a mapping of fields, this file holds {type(content).__name__}")
    apply_overrides(content, overrides)
    return parse_job(content, str(path), path.absolute().parent)


def parse_job(content: dict[str, Any], where: str, folder: Path = Path()) -> Job:
    """Validate a job given as a mapping. `where` names it in errors, and recipes that it loads are in `folder`."""
    try:
        return Job.model_validate(content, context={"folder": folder})
    except ValidationError as error:
        raise UserError(f"{where}: {explain(error)}") from None


def dump_job(job: Job) -> str:
    """The resolved job as YAML, with all defaults."""
    return WRITTEN_BY_1_2 + dump_yaml(job.model_dump(mode="json"))
