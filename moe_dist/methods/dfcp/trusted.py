"""The trusted images: a share of the labelled ones, or those that a user's list names, with the labels it gives them.

Letters in shapes: N samples of the training set, L trusted ones, U the rest, which are clustered.
"""

from __future__ import annotations

import csv
import difflib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BeforeValidator, Field, model_validator

from moe_dist.data.datasets.source import text_of
from moe_dist.data.longtail import UNLABELLED
from moe_dist.data.order import divide
from moe_dist.errors import UserError
from moe_dist.files import file_sha256
from moe_dist.methods.phases import StepResult, Workspace
from moe_dist.paths import from_home, local_path
from moe_dist.settings.schema import AbsolutePath, Part, Strict

NEEDED, SUGGESTION, STATE, TRUSTED = ("image", "label"), "suggestion", "state", "trusted"
"""Columns of a list of labels that are needed, those that a review adds, and the state of images trusted before."""


def _with_digest(value: Any) -> Any:
    """The file of a list with the digest of its content, which results depend on."""
    if not isinstance(value, str):
        return value
    path = from_home(local_path(value)).absolute()
    if not path.is_file():
        raise ValueError(f"no list of labels at {path}")
    return {"file": str(path), "sha256": file_sha256(path)}


class LabelList(Strict):
    """A CSV of images with known labels, whose first line names the columns: `image` and `label`, and others."""

    file: Annotated[AbsolutePath, Part.NONE]
    sha256: str


class TrustedConfig(Strict):
    """Which labels the method may see: of a share of the labelled images, or of a list."""

    fraction: Annotated[float, Field(gt=0, le=1)] | None = 0.1
    """Share of the labelled training images. 1: all of them, where others have no label (train/unlabelled/*)."""
    by: Literal["image", "track"] = "image"
    """image: each image by itself is trusted or not, and held out for the threshold or not. track: only together with
    the other frames of its track, as if new objects were to be labelled; for datasets with tracks."""
    labels: Annotated[LabelList | None, BeforeValidator(_with_digest)] = None
    """Instead of a fraction: a CSV of the images whose labels are known (`image,label`); no other label is used."""

    @model_validator(mode="before")
    @classmethod
    def _a_list_has_no_fraction(cls, value: Any) -> Any:
        if isinstance(value, dict) and value.get("labels") is not None:
            return {"fraction": None} | value
        return value

    @model_validator(mode="after")
    def _one_of_two(self) -> TrustedConfig:
        if (self.fraction is None) == (self.labels is None):
            raise ValueError("give fraction or labels, and not both")
        return self

    def in_words(self) -> str:
        """Which training labels are used."""
        if self.fraction is None:
            return "a list of trusted images"
        if self.fraction == 1:
            return "all there are, and images without a label"
        return f"{self.fraction:.0%} trusted, by {self.by}"


@dataclass(frozen=True)
class ListedImage:
    """A line of a list of labels: an image, its class, and what a review had said of it ("" without a review)."""

    line: int
    image: str
    label: str
    state: str
    suggestion: str


def read_labels(labels: LabelList) -> list[ListedImage]:
    """The lines of a list that give a label. Raises UserError where the list has changed or cannot be read."""
    where = f"trusted.labels: {labels.file}"
    try:
        content = labels.file.read_bytes()
        if file_sha256(labels.file) != labels.sha256:
            raise UserError(f"{where}: has changed since the job was read; run the job again")
        lines = text_of(content).splitlines()
    except OSError as error:
        raise UserError(f"{where}: cannot be read ({error.strerror}); put the list back") from None
    except UnicodeDecodeError:
        raise UserError(f"{where}: is no UTF-8 text; save it as CSV with UTF-8") from None
    first = lines[0] if lines else ""
    rows = csv.DictReader(lines, delimiter=";" if first.count(";") > first.count(",") else ",")
    if missing := [name for name in NEEDED if name not in (rows.fieldnames or ())]:
        raise UserError(
            f"{where}: its first line has no column {' and no column '.join(missing)}; begin with image,label"
        )
    return [listed for row in rows if (listed := _listed(row, rows.line_num)).label]


def _listed(row: dict[str, str | None], line: int) -> ListedImage:
    image, label, state, suggestion = ((row.get(name) or "").strip() for name in (*NEEDED, STATE, SUGGESTION))
    return ListedImage(line, image.replace("\\", "/").removeprefix("./"), label, state, suggestion)


def reviewed_in_words(listed: Sequence[ListedImage]) -> str | None:
    """What the user changed in a list that `moe-dist review` wrote; None for a list of another origin."""
    looked_at = [image for image in listed if image.state not in ("", TRUSTED)]
    if not looked_at:
        return None
    same = sum(image.label == image.suggestion for image in looked_at)
    was = Counter(image.state for image in looked_at if image.label != image.suggestion)
    corrected = ", ".join(f"{count} {state}" for state, count in sorted(was.items()))
    return f"{len(looked_at)} labels are new by a review: {same} confirm what the run before had suggested" + (
        f", and others correct it ({corrected})" if was else ""
    )


def split(config: TrustedConfig, workspace: Workspace) -> StepResult:
    """Trusted [L] and clustered [U] sample numbers; the trusted ones' labels [L], and their tracks if these count [L].

    Raises UserError where a class has no trusted image, nothing is left to cluster, or a list does not fit the images.
    """
    if config.labels is None:
        assert config.fraction is not None
        trusted, labels = _drawn(config.fraction, config.by, workspace)
        values: dict[str, Any] = {}
    else:
        trusted, labels, values = _listed_images(config.labels, workspace)
    clustered = np.setdiff1d(workspace.samples, trusted)
    _require_every_class(config, labels, workspace)
    if not len(clustered):
        raise UserError(
            "trusted: all training images are trusted, and none is left to cluster; lower trusted.fraction, or put "
            "images without a label into train/unlabelled"
        )
    tracks = workspace.groups[trusted] if config.by == "track" else np.full(len(trusted), -1)
    values |= {"trusted": len(trusted), "clustered": len(clustered), "by": config.by}
    return StepResult(values, {"trusted": trusted, "clustered": clustered, "labels": labels, "tracks": tracks})


def _drawn(fraction: float, by: str, workspace: Workspace) -> tuple[np.ndarray, np.ndarray]:
    """The trusted samples and their labels [L]: a share of every class, of images or of whole tracks."""
    assert workspace.true_labels is not None
    labelled = workspace.samples[workspace.true_labels[workspace.samples] != UNLABELLED]
    labels = workspace.true_labels[labelled]
    if fraction == 1:
        return labelled, labels
    groups = workspace.groups[labelled] if by == "track" else np.full(len(labelled), -1)
    _, chosen = divide(labels, groups, fraction, workspace.seed + 1)
    return labelled[chosen], labels[chosen]


def _listed_images(labels: LabelList, workspace: Workspace) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
    """The listed samples, their labels [L], and how many listed images are set aside for validation.

    Raises UserError, naming the line, for an image or a class that is not there, and for an image that is listed twice.
    """
    number_of = {name: number for number, name in enumerate(workspace.names())}
    label_of = {name: label for label, name in enumerate(workspace.info.class_names)}
    usable = set(workspace.samples.tolist())
    found: dict[int, ListedImage] = {}
    for listed in read_labels(labels):
        where = f"trusted.labels: {labels.file} line {listed.line}"
        if listed.image not in number_of:
            near = _near(listed.image.rpartition("/")[2], {name.rpartition("/")[2]: name for name in number_of})
            raise UserError(f"{where}: {listed.image!r} is none of the training images{near}")
        if listed.label not in label_of:
            near = _near(listed.label, {name: name for name in label_of})
            raise UserError(f"{where}: {listed.label!r} is no class{near}")
        number = number_of[listed.image]
        if number in found:
            raise UserError(
                f"{where}: {listed.image!r} stands in line {found[number].line} too; remove one of the lines"
            )
        found[number] = listed
    trusted = np.array(sorted(usable & found.keys()), np.int64)
    known = np.array([label_of[found[number].label] for number in trusted.tolist()], np.int64)
    return trusted, known, {"listed": len(found), "set_aside": len(found) - len(trusted)}


def _near(word: str, names: dict[str, str]) -> str:
    """The names of the nearest words, for a message."""
    close = difflib.get_close_matches(word, names, n=3)
    return f"; did you mean {', '.join(names[each] for each in close)}?" if close else ""


def _require_every_class(config: TrustedConfig, labels: np.ndarray, workspace: Workspace) -> None:
    if missing := sorted(set(range(workspace.info.classes)) - set(labels.tolist())):
        names = ", ".join(workspace.info.class_names[label] for label in missing)
        mend = "raise it, or add images (a class needs two tracks or two images of its own)"
        what = f"trusted.fraction = {config.fraction}"
        if config.labels is not None:
            what = f"trusted.labels: {config.labels.file}"
            mend = "label some of that class (images that are set aside for validation do not count)"
        raise UserError(f"{what}: no trusted image of class {names}; {mend}")
