"""run/notices.py: the notices of jobs by this machine's processor, and that `show` and `run` print them."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from small_jobs import dfcp, traditional

from moe_dist.errors import UserError
from moe_dist.job import Job, load_job, parse_job
from moe_dist.methods.dfcp import config as dfcp_config
from moe_dist.run import notices as module
from moe_dist.run.notices import notices
from moe_dist.run.preview import preview
from moe_dist.run.run import run_job
from moe_dist.terminal import Show

JOBS = Path(__file__).parents[2] / "jobs"
BF16 = {"precision": "bf16"}


def processor(monkeypatch: pytest.MonkeyPatch, avx512: bool | None, bf16: bool | None) -> None:
    """Pretend that this machine's processor has the instruction sets, lacks them, or is not known."""
    monkeypatch.setattr(dfcp_config, "has_avx512", lambda: avx512)
    monkeypatch.setattr(module, "multiplies_bf16", lambda: bf16)


@pytest.fixture
def avx2(monkeypatch: pytest.MonkeyPatch) -> None:
    processor(monkeypatch, avx512=False, bf16=False)


def test_images_that_are_not_normalised_as_the_weights_want_are_told() -> None:
    pytest.importorskip("timm")
    job = load_job(JOBS / "gmm_moe" / "ip102.yaml")
    assert notices(job) == []
    changed = load_job(JOBS / "gmm_moe" / "ip102.yaml", ["data.mean=[0.5, 0.5, 0.5]"])
    assert any("trained on images of 224 pixels with mean [0.485" in sentence for sentence in notices(changed))


def tuning(of: list[str], **changes: Any) -> Job:
    return parse_job(dfcp().model_dump(mode="json") | {"kind": "tune", "tune": {"of": of}} | changes, "tune.yaml")


def test_bf16_that_is_emulated_is_told(avx2: None) -> None:
    (told,) = notices(traditional(resources=BF16))
    assert told.startswith("resources.precision = bf16: this machine's processor has no AVX512-BF16 or AMX to use")
    assert told.endswith("set it to auto")


@pytest.mark.parametrize(
    "resources",
    [{}, {"precision": "fp32"}, {"precision": "auto"}, BF16 | {"gpus_per_worker": 1}],
    ids=["default", "fp32", "auto", "on a GPU"],
)
def test_other_precisions_and_gpus_are_not_told(avx2: None, resources: dict[str, Any]) -> None:
    assert notices(traditional(resources=resources)) == []


@pytest.mark.parametrize("bf16", [True, None], ids=["has it", "not known"])
def test_bf16_is_told_only_where_it_is_known_to_be_emulated(monkeypatch: pytest.MonkeyPatch, bf16: bool | None) -> None:
    processor(monkeypatch, avx512=bf16, bf16=bf16)
    assert notices(traditional(resources=BF16)) == []


def test_trials_of_a_method_take_the_gpus_of_tasks(avx2: None) -> None:
    on_gpu = tuning(["method"], resources=BF16 | {"gpus_per_task": 0.5})
    on_cpu = tuning(["method"], resources=BF16 | {"gpus_per_worker": 1})
    assert notices(on_gpu) == []
    assert [sentence.partition(" = ")[0] for sentence in notices(on_cpu)] == [
        "resources.precision",
        "method.alone.bank",
    ]


def test_a_search_of_experts_alone_is_told_nothing(avx2: None) -> None:
    """Its trials are in single precision, and the experts are trained after it."""
    assert notices(tuning(["experts"], resources=BF16)) == []
    assert len(notices(tuning(["experts", "method"], resources=BF16))) == 2


def test_banks_are_told_by_the_field_that_says_how_many(avx2: None) -> None:
    (told,) = notices(dfcp())
    assert told.startswith("method.alone.bank = 8: without AVX-512, as on this machine, 1 is faster")
    (told,) = notices(load_job(JOBS / "demo.yaml", ["methods.dfcp.alone.bank=3"]))
    assert told.startswith("methods.dfcp.alone.bank = 3: ")


def test_no_banks_are_told_where_there_are_none(avx2: None) -> None:
    assert notices(load_job(JOBS / "demo.yaml", ["methods.dfcp.alone.bank=1"])) == []
    assert notices(load_job(JOBS / "demo.yaml", ["methods.dfcp.alone.epochs=0"])) == []
    assert notices(dfcp(resources={"gpus_per_task": 1})) == []
    assert notices(traditional()) == []


@pytest.mark.parametrize("avx512", [True, None], ids=["has it", "not known"])
def test_banks_are_told_only_where_avx512_is_known_to_be_missing(
    monkeypatch: pytest.MonkeyPatch, avx512: bool | None
) -> None:
    processor(monkeypatch, avx512=avx512, bf16=False)
    assert notices(dfcp()) == []


def test_show_and_run_say_it(avx2: None, tmp_path: Path) -> None:
    """The run ends with an error after the notices and before any work: 5 workers cannot share 48 images."""
    shown, ran = io.StringIO(), io.StringIO()
    preview(traditional(resources=BF16), Console(file=shown, width=500))
    with pytest.raises(UserError, match="5"):
        run_job(traditional(resources=BF16, workers=5), tmp_path / "run", "local", Show(Console(file=ran, width=500)))
    (told,) = notices(traditional(resources=BF16))
    assert f"! {told}" in shown.getvalue() and f"! {told}" in ran.getvalue()
