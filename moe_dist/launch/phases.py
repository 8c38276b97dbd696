"""Runs the phases of a model from the driver: results that are there are kept, missing ones are made."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import nn

from moe_dist.data.opened.opened import OpenedData
from moe_dist.engine.checkpoint import read_state
from moe_dist.files import read_json, write_json
from moe_dist.job import Job
from moe_dist.launch.launcher import Launcher
from moe_dist.methods.base import Method
from moe_dist.places import Current, ModelFolder, cache_folder
from moe_dist.record.differences import differences
from moe_dist.record.fingerprints import Planned, PlannedStep, PlannedTraining
from moe_dist.record.mirror import Mirror
from moe_dist.record.results import Results, done
from moe_dist.record.run_record import RunRecord
from moe_dist.record.sharing import STEP_DONE, TRAINING_DONE, take_over
from moe_dist.terminal import Show
from moe_dist.train.checkpoints import sound_checkpoint
from moe_dist.train.elastic import worker_counts
from moe_dist.train.origin import Origin
from moe_dist.train.steps import run_step
from moe_dist.train.task import TrainingTask, trained_network

SETTINGS = "settings.json"


@dataclass(frozen=True)
class Drive:
    """The job, run directory, data, launcher, record and display of a run.

    shares: whether results are taken over from runs beside this one whose fingerprints are equal. mirror: what keeps
    the run directory at a URL; None where nodes share it.
    """

    job: Job
    run: Path
    data: OpenedData
    launcher: Launcher
    record: RunRecord
    show: Show
    shares: bool = False
    mirror: Mirror | None = None

    def share(self) -> None:
        """Bring what workers on other nodes may read next to where they find it."""
        if self.mirror is not None:
            self.mirror.push()


@dataclass
class ModelPhases:
    """The phases of a model in a run.

    planned: the phases to run. trained: the last checkpoints of finished stages, by the stage's name. origin: what the
    last training begins from, None if it begins anew.
    """

    drive: Drive
    model: str
    method: Method
    planned: Sequence[Planned]
    trained: dict[str, Path] = field(default_factory=dict)
    origin: Origin | None = None

    def __post_init__(self) -> None:
        self.folder = ModelFolder(self.drive.run / self.model)
        steps = {item.step.name: item for item in self.planned if isinstance(item, PlannedStep)}
        self.worker_counts = worker_counts(self.drive.job, self.method)
        self.results = Results({name: self.folder.step(name, item.fingerprint) for name, item in steps.items()})

    @property
    def trainings(self) -> list[PlannedTraining]:
        """The trainings among the phases, in order."""
        return [training for item in self.planned if not isinstance(item, PlannedStep) for training in item]

    def current(self, evaluation: Path | None = None) -> Current:
        """The folders that the report shows. The last training is the model's own."""
        folders = {training.name: self.folder.training(training.fingerprint) for training in self.trainings}
        last = next(reversed(folders.values()), None)
        return Current(self.results.folders, last, evaluation, dict(list(folders.items())[:-1]))

    def run(self) -> None:
        """Run the steps and trainings that have no result yet."""
        for item in self.planned:
            if isinstance(item, PlannedStep):
                drive = self.drive
                self._take_over(self.results.folders[item.step.name], STEP_DONE, item.fingerprint, item.step.title)
                run_step(
                    item,
                    self.method,
                    drive.job,
                    drive.data,
                    self.results,
                    self.network,
                    drive.launcher.run_tasks,
                    drive.record,
                    drive.show,
                )
            else:
                self._train(item)

    def network(self, stage: str) -> nn.Module:
        """The network that a stage trained, in eval mode on the CPU."""
        training = next(training for training in self.trainings if stage in [s.name for s in training.stages])
        return trained_network(self.task(training), self.method, stage, self.results)

    def task(self, training: PlannedTraining) -> TrainingTask:
        """The task of a training, to be sent to workers."""
        task = self.task_of(self.folder.training(training.fingerprint), [stage.name for stage in training.stages])
        return replace(task, origin=self.origin) if training is self.trainings[-1] else task

    def task_of(self, folder: Path, stages: Sequence[str]) -> TrainingTask:
        """The task of training `stages` into `folder`, with the results of the phases so far."""
        return TrainingTask(
            job=self.drive.job,
            model=self.model,
            run=self.drive.run,
            cache=cache_folder(),
            shards=self.drive.data.shards,
            folder=folder,
            steps=self.results.folders,
            trained=dict(self.trained),
            stages=tuple(stages),
            start=self.drive.record.number,
            url=self.drive.mirror.url if self.drive.mirror else None,
            worker_counts=self.worker_counts,
        )

    def _train(self, trainings: Sequence[PlannedTraining]) -> None:
        """Run the unfinished ones among `trainings` at the same time."""
        show, missing = self.drive.show, []
        for training in trainings:
            task = self.task(training)
            self._take_over(task.folder, TRAINING_DONE, training.fingerprint, self._title([training]))
            if read_json(task.folder / SETTINGS) != training.settings:  # not there yet, or emptied by a power cut
                write_json(task.folder / SETTINGS, dict(training.settings))
            checkpoint = self._finished(task)
            if checkpoint is None:
                missing.append((training, task))
            else:
                show.skipped(self._title([training]), self._seconds(training))
                self.trained |= dict.fromkeys(task.stages, checkpoint)
        if not missing:
            return
        self.drive.record.work_begins()
        for _, task in missing:
            (task.folder / TRAINING_DONE).unlink(missing_ok=True)
        self.drive.share()
        workers, at_least = self.drive.job.workers, f"{self.worker_counts[0]} to " if self.worker_counts else ""
        on = f"on {at_least}{workers} worker{'s' if workers > 1 else ''} ({self.drive.launcher.name})"
        with show.working(f"{self._title([training for training, _ in missing])} {on}"):
            checkpoints = self.drive.launcher.train([task for _, task in missing])
        for (training, task), checkpoint in zip(missing, checkpoints):
            self._note(training, task, checkpoint)
            self.trained |= dict.fromkeys(task.stages, checkpoint)

    def _take_over(self, folder: Path, last: str, fingerprint: str, title: str) -> None:
        """Take the result over from a run beside this one, if this run shares results and one of them has it."""
        drive = self.drive
        if drive.shares and (found := take_over(folder, drive.run, last, fingerprint, drive.record.number)):
            drive.record.work_begins()
            if drive.mirror is not None:  # a training's log and checkpoints, which no rank of this run has written
                below = f"{folder.relative_to(drive.run).as_posix()}/"
                Mirror(drive.run, drive.mirror.url, lambda name: name.startswith(below)).push()
            drive.show.notice(f"{title}: taken over from {found.relative_to(drive.run.parent).parts[0]}")

    def _title(self, trainings: Sequence[PlannedTraining]) -> str:
        titles = [stage.title for training in trainings for stage in training.stages if stage.title]
        return ", ".join(dict.fromkeys(titles)) or "training"

    def _finished(self, task: TrainingTask) -> Path | None:
        """The last checkpoint of a finished training, else None."""
        finished, checkpoint = read_json(task.folder / TRAINING_DONE), self._sound_checkpoint(task)
        if finished and checkpoint and read_state(checkpoint)["step"] == finished["step"]:
            return checkpoint
        return None

    def _sound_checkpoint(self, task: TrainingTask) -> Path | None:
        """The newest undamaged checkpoint, or None. Damaged newer ones are renamed, and the user is told."""
        sound, damaged = sound_checkpoint(task.checkpoints)
        for path, file in damaged.items():
            aside = path.with_name(f"damaged-{path.name}")
            path.replace(aside)
            self.drive.show.notice(
                f"{path}: {file} does not hold the bytes that were written; it is now called {aside.name}, and "
                f"the training continues from {sound.name if sound else 'its beginning'}"
            )
        return sound

    def _note(self, training: PlannedTraining, task: TrainingTask, checkpoint: Path) -> None:
        """Write training.json: the training is done, and what made it."""
        state = read_state(checkpoint)
        about: dict[str, Any] = {"fingerprint": training.fingerprint, "stages": list(task.stages)}
        about |= {name: state[name] for name in ("step", "seconds", "made", "over")}
        write_json(task.folder / TRAINING_DONE, about | {"finished": time.time()})

    def seconds(self) -> tuple[float, float | None]:
        """The seconds of all phases by the clock, and those of all experts added up, as a paper may count them.

        Trainings at the same time count by the longest. The second figure is the sum over experts that are trained
        alone, plus the last training; None if no expert is trained alone.
        """
        wall, alone = 0.0, []
        for item in self.planned:
            if isinstance(item, PlannedStep):
                finished = done(self.results.folders[item.step.name])
                assert finished is not None
                wall += finished["seconds"]
                alone += self.results[item.step.name].values.get("seconds", [])
            else:
                wall += max(map(self._seconds, item))
        return wall, sum(alone) + self._seconds(self.trainings[-1]) if alone else None

    def _seconds(self, training: PlannedTraining) -> float:
        """The seconds that a finished training took."""
        about = read_json(self.folder.training(training.fingerprint) / TRAINING_DONE)
        assert about is not None
        return about["seconds"]

    def tell_of_change(self, before: Path | None) -> None:
        """Tell the user which settings differ from those of the training in `before`, which was shown until now."""
        training = self.trainings[-1]
        earlier = read_json(before / SETTINGS) if before else None
        folder = self.task(training).folder
        if before is None or before == folder or earlier is None:
            return
        changed = "; ".join(differences(earlier, training.settings))
        self.drive.show.notice(
            f"{self.model}: settings differ from those of the training in {before.name} ({changed}); that one stays, "
            f"and this one goes to {folder.name} beside it"
        )
