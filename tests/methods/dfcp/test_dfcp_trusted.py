"""methods/dfcp/trusted.py: who is trusted by image, by track and by a list, and lists that are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moe_dist.data.batch import DatasetInfo
from moe_dist.errors import UserError
from moe_dist.job import Job, parse_job
from moe_dist.methods.dfcp.config import DfcpConfig
from moe_dist.methods.dfcp.pseudo_labels import held_out_pairs
from moe_dist.methods.dfcp.siamese_stages import siamese_phases
from moe_dist.methods.dfcp.trusted import TrustedConfig, read_labels, reviewed_in_words, split
from moe_dist.methods.phases import StepResult, Workspace
from moe_dist.settings.data import DataConfig
from moe_dist.settings.schema import settings_of

NAMES = [f"train/{'ant' if number < 20 else 'bee'}/{number:02d}.png" for number in range(40)]
"""Two classes of twenty images, tracks of five."""


def workspace(labels: np.ndarray | None = None, results: dict[str, StepResult] | None = None) -> Workspace:
    """`labels` [40]; images 36 to 39 are set aside for validation."""
    true = np.repeat([0, 1], 20) if labels is None else labels
    return Workspace(
        info=DatasetInfo(2, ("ant", "bee"), 16, 36),
        data=DataConfig(image_size=16),
        seed=0,
        images=None,  # type: ignore[arg-type]
        labels=true,
        groups=np.arange(40) // 5,
        names=lambda: NAMES,
        samples=np.arange(36),
        true_labels=true,
        results=results or {},
        trained={}.__getitem__,
        run_tasks=None,  # type: ignore[arg-type]
    )


def listing(folder: Path, *lines: str) -> TrustedConfig:
    path = folder / "labels.csv"
    path.write_text("\n".join(("image,label", *lines)) + "\n")
    return TrustedConfig.model_validate({"labels": str(path)})


def refused(config: TrustedConfig) -> str:
    with pytest.raises(UserError) as error:
        split(config, workspace())
    assert "\n" not in str(error.value)
    return str(error.value)


def test_by_image_frames_of_a_track_are_apart_and_by_track_they_are_not() -> None:
    by_image, by_track = (split(TrustedConfig(fraction=0.3, by=by), workspace()).arrays for by in ("image", "track"))
    for found in (by_image, by_track):
        assert sorted([*found["trusted"], *found["clustered"]]) == list(range(36))
        assert found["labels"].tolist() == (found["trusted"] >= 20).astype(int).tolist()
    shared = {name: set(found["trusted"] // 5) & set(found["clustered"] // 5) for name, found in
              (("image", by_image), ("track", by_track))}  # fmt: skip
    assert shared["image"] and not shared["track"]
    assert (by_image["tracks"] == -1).all()
    assert by_track["tracks"].tolist() == (by_track["trusted"] // 5).tolist()


@pytest.mark.parametrize("by", ["image", "track"])
def test_held_out_images_and_the_pairs_of_the_threshold_follow(by: Any) -> None:
    """By track, held-out images share no track with the others; by image they do, and such pairs count."""
    found = split(TrustedConfig(fraction=0.6, by=by), workspace())
    hold_out = siamese_phases(DfcpConfig().pseudo_labels, classes=2)[0]
    held = hold_out.run(workspace(results={"split": found})).arrays["held_out"]  # type: ignore[union-attr]
    tracks = found.arrays["trusted"] // 5
    torn = set(tracks[held]) & set(tracks[~held])
    assert bool(torn) == (by == "image")
    distances, _ = held_out_pairs(np.eye(len(held)), found.arrays["labels"], found.arrays["tracks"], held)
    assert len(distances) == held.sum() * (~held).sum()


def test_all_labelled_images_are_trusted_where_others_have_no_label() -> None:
    labels = np.repeat([0, -1, 1, -1], 10)
    found = split(TrustedConfig(fraction=1), workspace(labels)).arrays
    assert found["trusted"].tolist() == [*range(10), *range(20, 30)]
    assert found["clustered"].tolist() == [*range(10, 20), *range(30, 36)]
    with pytest.raises(UserError, match="trusted: all training images are trusted, and none is left to cluster"):
        split(TrustedConfig(fraction=1), workspace())


def test_a_list_says_who_is_trusted_and_its_labels_count(tmp_path: Path) -> None:
    """A row without a label is not trusted, an image of the validation split is counted, and a folder may be wrong."""
    lines = [f"{NAMES[3]},bee", f"./{NAMES[4]},ant", f"{NAMES[5]},", f"{NAMES[38]},bee".replace("/", "\\")]
    result = split(listing(tmp_path, *lines), workspace())
    assert result.arrays["trusted"].tolist() == [3, 4] and result.arrays["labels"].tolist() == [1, 0]
    assert result.arrays["clustered"].tolist() == sorted({*range(36)} - {3, 4})
    assert result.values["listed"] == 3 and result.values["set_aside"] == 1


def test_lists_that_do_not_fit_are_refused_in_a_sentence(tmp_path: Path) -> None:
    unknown = refused(listing(tmp_path, f"{NAMES[0]},ant", "train/ant/0.png,ant"))
    assert "labels.csv line 3: 'train/ant/0.png' is none of the training images; did you mean train/" in unknown
    assert "line 2: 'an' is no class; did you mean ant?" in refused(listing(tmp_path, f"{NAMES[0]},an"))
    twice = refused(listing(tmp_path, f"{NAMES[0]},ant", f"{NAMES[0]},bee"))
    assert f"line 3: '{NAMES[0]}' stands in line 2 too" in twice
    missing = refused(listing(tmp_path, f"{NAMES[0]},ant", f"{NAMES[39]},bee"))
    assert "no trusted image of class bee; label some of that class" in missing
    columns = listing(tmp_path).labels
    assert columns is not None
    columns.file.write_text("file;class\na;b\n")
    wrong = refused(TrustedConfig.model_validate({"labels": str(columns.file)}))
    assert "its first line has no column image and no column label" in wrong


def test_a_list_counts_by_its_content_wherever_it_lies(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    here, there = listing(tmp_path, f"{NAMES[0]},ant"), listing(tmp_path / "other", f"{NAMES[0]},ant")
    assert settings_of(here) == settings_of(there) != settings_of(listing(tmp_path / "other", f"{NAMES[0]},bee"))
    assert here.labels is not None
    here.labels.file.write_text("image,label\n")
    with pytest.raises(UserError, match="has changed since the job was read"):
        read_labels(here.labels)


def job(trusted: Any) -> Job:
    return parse_job({"name": "small", "kind": "train", "method": {"name": "dfcp", "trusted": trusted}}, "small.yaml")


def test_a_job_gives_one_of_both(tmp_path: Path) -> None:
    path = listing(tmp_path).labels
    assert path is not None
    loaded = job({"labels": str(path.file)})
    assert parse_job(loaded.model_dump(mode="json"), "resolved") == loaded
    for wrong, said in (
        ({"fraction": 0.1, "labels": str(path.file)}, "give fraction or labels, and not both"),
        ({"fraction": None}, "give fraction or labels, and not both"),
        ({"labels": str(tmp_path / "no.csv")}, "no list of labels at"),
        ({"by": "class"}, "input should be 'image' or 'track'"),
    ):
        with pytest.raises(UserError, match=said):
            job(wrong)


def test_what_a_review_changed_is_told(tmp_path: Path) -> None:
    """Of four new labels one confirms; semicolons, as a spreadsheet may save them."""
    path = tmp_path / "review.csv"
    rows = ["image;label;state;suggestion", "a;ant;trusted;", "b;ant;uncertain;ant", "c;bee;uncertain;ant"]
    path.write_text("\n".join([*rows, "d;bee;outlier;", "e;ant;outlier;bee", "f;;outlier;"]))
    config = TrustedConfig.model_validate({"labels": str(path)})
    assert config.labels is not None
    told = "4 labels are new by a review: 1 confirm what the run before had suggested, and others correct it "
    told += "(2 outlier, 1 uncertain)"
    assert reviewed_in_words(read_labels(config.labels)) == told
    assert tuple(DfcpConfig(trusted=config).notices()) == (f"trusted.labels: {told}",)
