"""What a run refuses before any work: jobs whose fields are fine one by one, but not together or with the data."""

from __future__ import annotations

from moe_dist.data.stream.stream import require_divisible, require_no_window
from moe_dist.errors import UserError
from moe_dist.job import Job
from moe_dist.methods.base import Method
from moe_dist.methods.phases import UNCHANGED, Stage
from moe_dist.parallel.placement import place


def refuse_early(job: Job, method: Method, validation_images: int) -> None:
    """Raise UserError where a stage, or the division over workers, cannot be as the job says.

    That the method fits the dataset has been checked when it was opened.
    """
    for stage in method.stages():
        require_divisible(stage.batch_size, job.workers)
        require_no_window(stage.sampling, job.data)
        _require_validation(stage, validation_images)
        _require_labels_mixed(stage, method)
        _require_takes_samples(stage, method)
    if job.data.use != "split" and method.predicts != "clusters":
        raise UserError(
            f"data.use = {job.data.use}: {method.config.name} learns from labels, and would be tested on images "
            "that it was trained on; set it to split"
        )
    whole = any(stage.whole_batch for stage in method.stages())
    if whole and job.parallel.accumulate(job.workers) > 1:
        raise UserError(
            f"parallel.micro_batches = {job.parallel.micro_batches}: a loss of {method.config.name} is no sum over the "
            f"samples of a batch, which can therefore not be cut into parts; set it to 1, or workers higher"
        )
    if job.resources.compile and job.parallel.expert > 1:
        raise UserError(
            f"resources.compile with parallel.expert = {job.parallel.expert}: what ranks exchange inside the network "
            "cannot be compiled; set one of the two to its default"
        )
    if method.expert_costs() and job.parallel.expert > 1:
        place(method.expert_costs(), job.parallel.expert)  # refuses more ranks than experts


def _require_labels_mixed(stage: Stage, method: Method) -> None:
    if (stage.augment.mixup or stage.augment.cutmix) and not method.mixes_labels:
        raise UserError(
            f"stage {stage.name}: {method.config.name} has no loss for images of two labels; set augment.mixup and "
            "augment.cutmix to 0, or choose a method that has one (dense, traditional_moe)"
        )


def _require_takes_samples(stage: Stage, method: Method) -> None:
    if not method.info.vector_size:
        return
    if not method.takes_vectors:
        raise UserError(f"{method.config.name} sees images, and the dataset's samples are vectors; choose another one")
    if stage.augment != UNCHANGED:
        raise UserError(f"stage {stage.name}: the dataset's samples are vectors; leave out augment, which is of images")


def _require_validation(stage: Stage, validation_images: int) -> None:
    if validation_images:
        return
    if stage.patience_epochs is not None:
        raise UserError(
            f"stage {stage.name}: it is stopped by the validation loss, and there is no validation split; set "
            "data.val_fraction above 0"
        )
    if stage.schedule.kind == "plateau":
        raise UserError(
            f"stage {stage.name}: a plateau schedule waits for the validation loss, and there is no validation split; "
            "set data.val_fraction above 0, or choose another schedule.kind"
        )
