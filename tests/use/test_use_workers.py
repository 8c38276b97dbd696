"""Predictions by worker processes of Ray."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from small_jobs import quiet
from trained_models import JOBS, TrainedModels, samples_of

import moe_dist
from moe_dist.use.load import Loading
from moe_dist.use.predict import predict_inputs
from moe_dist.use.rows import JsonRows
from moe_dist.use.workers import Workers


@pytest.mark.slow
def test_workers_predict_what_one_process_does_and_go_on_where_it_stopped(
    trained: TrainedModels, tmp_path: Path
) -> None:
    """Every image once, a bad one with its reason; rows that are there from before are not predicted again."""
    run = trained.run("traditional_moe")
    (tmp_path / "images").mkdir()
    for number, image in enumerate(samples_of(JOBS["traditional_moe"])):
        (tmp_path / "images" / f"{number:02d}.png").write_bytes(image)
    (tmp_path / "images" / "bad.png").write_bytes(b"")
    model = moe_dist.load(run)
    predict_inputs(model, [tmp_path / "images"], quiet(), form="json", out=tmp_path / "here.jsonl", batch=8)
    some = [tmp_path / "images" / f"{number:02d}.png" for number in range(10)]
    out = tmp_path / "there.jsonl"
    predict_inputs(
        model, [tmp_path / "images"], quiet(), form="json", out=out, batch=8, workers=Workers(2, Loading(run))
    )
    predict_inputs(model, some, quiet(), form="json", out=out, batch=8, workers=Workers(2, Loading(run)))

    def rows(path: Path) -> dict[str, tuple[str | None, float, str | None]]:
        with path.open() as file:
            found = [*JsonRows().read(file)]
        assert len({row.image for row in found}) == len(found)
        return {row.image: (row.predicted, row.best[0][1] if row.best else 0.0, row.reason) for row in found}

    here, there = rows(tmp_path / "here.jsonl"), rows(out)
    assert here.keys() == there.keys() and len(there) == len(list((tmp_path / "images").iterdir()))
    for name, (predicted, share, reason) in here.items():
        assert there[name][0] == predicted and there[name][2] == reason
        assert np.isclose(there[name][1], share, atol=1e-5)
