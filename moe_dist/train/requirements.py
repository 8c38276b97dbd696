"""Checks of a job before it runs: fields that are valid one by one, but not together or with the data."""

from __future__ import annotations

from moe_dist.data.stream.stream import require_divisible, require_no_window
from moe_dist.errors import UserError
from moe_dist.job import Job
from moe_dist.methods.base import Method
from moe_dist.methods.phases import UNCHANGED, Stage
from moe_dist.parallel.placement import place
from moe_dist.train.elastic import worker_counts


def require_trainable(job: Job, method: Method, validation_images: int) -> None:
    """Raise UserError if a stage of the method cannot be trained as the job says, or not by so many workers.

    validation_images: number of images in the validation split. `method` has checked itself against the dataset.
    """
    if method.predicts == "classes" and method.info.classes < 2:
        raise UserError(
            f"the data has one class ({method.info.class_names[0]}), and {method.config.name} tells classes apart: add "
            "a folder for each other class"
        )
    for stage in method.stages():
        require_divisible(stage.batch_size, 1 if stage.replicated else job.workers)
        require_no_window(stage.sampling, job.data)
        _require_validation(stage, validation_images)
        if (stage.augment.mixup or stage.augment.cutmix) and not method.mixes_labels:
            raise UserError(
                f"stage {stage.name}: {method.config.name} has no loss for images of two labels; set augment.mixup and "
                "augment.cutmix to 0, or choose a method that has one (dense, traditional_moe)"
            )
        _require_samples_it_takes(stage, method)
    if job.data.use != "split" and method.predicts != "clusters":
        raise UserError(
            f"data.use = {job.data.use}: {method.config.name} learns from labels, and would be tested on images "
            "that it was trained on; set it to split"
        )
    whole = any(stage.whole_batch for stage in method.stages())
    if whole and job.parallel.accumulate(job.workers) > 1:
        raise UserError(
            f"parallel.micro_batches = {job.parallel.micro_batches}: a loss of {method.config.name} is not a sum over "
            f"the samples of a batch, so the batch cannot be divided into parts; set it to 1, or workers higher"
        )
    if job.resources.compile and job.parallel.expert > 1:
        raise UserError(
            f"resources.compile with parallel.expert = {job.parallel.expert}: what ranks exchange inside the network "
            "cannot be compiled; set one of the two to its default"
        )
    if method.expert_costs() and job.parallel.expert > 1:
        place(method.expert_costs(), job.parallel.expert)  # raises UserError if there are more ranks than experts
    worker_counts(job, method)  # raises UserError if there is no smaller number of workers, and the job asks for it


def _require_samples_it_takes(stage: Stage, method: Method) -> None:
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
