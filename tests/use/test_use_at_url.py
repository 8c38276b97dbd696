"""A trained model at a URL is used as one in a folder, on a machine that has nothing of it yet."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from trained_models import TrainedModels
from typer.testing import CliRunner

from moe_dist import load
from moe_dist.cli import app
from moe_dist.errors import UserError

IMAGES = np.arange(2 * 16 * 16 * 3, dtype=np.uint8).reshape(2, 16, 16, 3)


@pytest.fixture(autouse=True)
def another_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOE_DIST_NODE_CACHE", str(tmp_path / "node"))


def command(*words: str) -> str:
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    return done.output


@pytest.mark.slow
def test_a_model_at_a_url_is_loaded_predicts_and_is_exported(trained: TrainedModels, tmp_path: Path) -> None:
    run = trained.run("traditional_moe")
    url, there = f"file://{run}", load(run)
    assert load(url).about == there.about and there.about["run"] == run.name
    wanted = there.predict(IMAGES).log_probs.numpy()
    assert np.array_equal(load(url).predict(IMAGES).log_probs.numpy(), wanted)
    Image.fromarray(IMAGES[0]).save(tmp_path / "one.png")
    command("predict", url, str(tmp_path / "one.png"), "--out", str(tmp_path / "rows.csv"))
    assert "one.png" in (tmp_path / "rows.csv").read_text()
    command("export", url, "--to", "folder", "--out", str(tmp_path / "exported"))
    exported = load(f"file://{tmp_path}/exported")
    assert np.array_equal(exported.predict(IMAGES).log_probs.numpy(), wanted)


def test_a_run_at_a_url_is_shown_and_compared(trained: TrainedModels) -> None:
    run = trained.run("traditional_moe")
    shown = command("runs", "show", f"file://{run}")
    assert "Top-1 accuracy" in shown and "moe-dist" in shown
    assert "No setting, data or code differs." in command("runs", "compare", f"file://{run}", str(run))


def test_where_no_run_is_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nothing is there; `moe-dist runs list URL`"):
        load(f"file://{tmp_path}/nothing")
    for words in (("runs", "show"), ("runs", "compare")):
        refused = CliRunner().invoke(app, [*words, f"file://{tmp_path}/nothing"])
        assert "no run is there" in str(refused.exception)
