"""The settings on which a training and an evaluation depend, and those on which they do not."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from built_data import built_data
from PIL import Image
from pydantic_core import to_jsonable_python
from small_jobs import sparse, traditional

from moe_dist.job import Job, parse_job
from moe_dist.methods.registry import METHODS, method_class
from moe_dist.places import cache_folder
from moe_dist.record.differences import differences
from moe_dist.record.fingerprints import (
    SCHEME,
    PlannedStep,
    decided_precision,
    evaluation_settings,
    fingerprint,
    main_training,
    plan,
)
from moe_dist.settings.schema import Part, Strict, declared_part
from moe_dist.train.task import open_method

DEFAULTS = Path(__file__).with_name("defaults.json")


def trained(job: Job) -> dict[str, Any]:
    """The settings that the job's only training depends on."""
    data = built_data(job.data, job.seed, cache_folder())
    (model,) = job.models
    return dict(main_training(plan(open_method(job, model, data), job, model, data)).settings)


def evaluated(job: Job) -> dict[str, Any]:
    data = built_data(job.data, job.seed, cache_folder())
    (model,) = job.models
    return evaluation_settings(job, model, open_method(job, model, data), data, None)


def with_data(job: Job, **changes: Any) -> Job:
    return parse_job(job.model_dump(mode="json") | {"data": job.data.model_dump(mode="json") | changes}, "changed")


def changed(job: Job, **changes: Any) -> Job:
    return parse_job(job.model_dump(mode="json") | changes, "changed")


# --- the images


@pytest.mark.parametrize(
    "change", [{"frame": "centre_crop"}, {"image_size": 20}, {"crop_roi": True}, {"std": [0.4, 0.4, 0.4]}]
)
def test_how_images_are_seen_is_part_of_a_training(change: dict[str, Any]) -> None:
    job = traditional()
    assert fingerprint(trained(with_data(job, **change))) != fingerprint(trained(job))


def test_test_images_are_part_of_the_evaluation_alone() -> None:
    job = traditional()
    more = with_data(job, max_test_images=None)
    assert trained(more) == trained(job)
    assert evaluated(more) != evaluated(job)


def test_training_and_validation_images_are_part_of_a_training() -> None:
    job = traditional()
    for change in ({"max_train_images": 250}, {"val_fraction": 0.2}):
        assert trained(with_data(job, **change)) != trained(job)


def test_a_published_validation_split_counts_as_far_as_it_is_used(tmp_path: Path) -> None:
    """Limited by max_test_images, it is another validation split, which schedules and the choice of an epoch use."""
    random = np.random.default_rng(0)
    for split, count in (("train", 12), ("val", 12), ("test", 12)):
        for name in ("a", "b"):
            (tmp_path / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = random.integers(0, 256, (8, 8, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / split / name / f"{number}.png")
    data = {"dataset": "image_folder", "source": str(tmp_path), "image_size": 16}
    job = traditional(data=data)
    assert "val" in {path.name for path in tmp_path.iterdir()}
    few = with_data(job, max_test_images=8)
    ours, theirs = trained(few), trained(job)
    if built_data(job.data, 0, cache_folder()).val is built_data(job.data, 0, cache_folder()).train:
        pytest.fail("the folder's validation split was not taken for one")
    assert differences(theirs, ours) == ["other validation images"]


@pytest.mark.parametrize("decode", ["once", "each_time"])
def test_where_images_are_held_counts_where_crops_are_cut_from_them(decode: str) -> None:
    """A crop of an image on disk and one of the square in memory differ by 11 grey levels."""
    assert trained(with_data(traditional(), decode=decode)) == trained(traditional())
    augment = {"resized_crop": [0.5, 1.0]}
    method = traditional().method.model_dump(mode="json") | {"augment": augment}
    job = with_data(changed(traditional(), method=method), decode=decode)
    assert trained(job)["crops_of"] == {"once": "square", "each_time": "image"}[decode]


# --- how a batch is divided


def test_parts_of_a_batch_count_where_the_network_looks_at_them() -> None:
    """Dropout differs by rank; without it, a mixture of LeNets does not depend on how a batch is divided."""
    plain, dropout = traditional(), traditional(gate={**GATE, "dropout": 0.5})
    for changes in ({"workers": 2}, {"parallel": {"micro_batches": 2}}, {"workers": 2, "parallel": {"expert": 2}}):
        assert trained(changed(plain, **changes)) == trained(plain)
        assert trained(changed(dropout, **changes))["batch_parts"] == 2
    assert "batch_parts" not in trained(dropout)
    both = changed(dropout, workers=2, parallel={"micro_batches": 2})
    assert trained(both) == trained(changed(dropout, workers=2))


GATE = {"filters": [4, 8], "hidden": [16], "optimiser": {"kind": "adam", "learning_rate": 0.003}}


def branches(**changes: Any) -> Job:
    """Two branches of a small ResNet: batch normalisation, in the experts too."""
    method = {"name": "cross_entropy", "network": {"width": 2}, "experts": 2}
    method["features"] = {"epochs": 1, "batch_size": 48, "learning_rate": 0.05, "warmup_epochs": 0}
    content = {"name": "branches", "kind": "train", "data": traditional().data.model_dump(mode="json")}
    return parse_job(content | {"method": method} | changes, "branches")


def test_batch_norm_looks_at_parts_and_in_experts_at_their_group() -> None:
    assert trained(branches(workers=2))["batch_parts"] == 2
    assert "expert_ranks" not in trained(branches(workers=2))
    assert trained(branches(workers=2, parallel={"expert": 2}))["expert_ranks"] == 2


def test_a_sparse_layer_counts_capacity_by_part() -> None:
    assert trained(changed(sparse(), workers=2))["batch_parts"] == 2


# --- what is decided on the spot


def test_precision_counts_as_decided() -> None:
    assert decided_precision("auto", 0) == "fp32" and decided_precision("auto", 0.5) == "bf16"
    assert decided_precision("fp32", 1) == "fp32" and decided_precision("bf16", 0) == "bf16"
    written_out = changed(traditional(), resources={"precision": "fp32"})
    assert trained(written_out) == trained(traditional())
    on_a_gpu = changed(traditional(), resources={"gpus_per_worker": 1})
    assert differences(trained(traditional()), trained(on_a_gpu)) == ['precision: "fp32", now "bf16"']


@pytest.mark.parametrize(
    "changes",
    [
        {"resources": {"cpus_per_worker": 2, "cpus_per_task": 2}},
        {"checkpoint": {"every_epochs": 3, "every_steps": 2, "keep": 5, "max_failures": 0}},
        {"name": "other", "title": "Another"},
        {"workers": 3},
    ],
)
def test_what_no_number_depends_on_is_not_counted(changes: dict[str, Any]) -> None:
    assert trained(changed(traditional(), **changes)) == trained(traditional())


def test_how_a_model_is_chosen_is_part_of_the_evaluation() -> None:
    job = traditional()
    assert evaluated(changed(job, checkpoint={"every_epochs": 2})) != evaluated(job)
    assert evaluated(traditional(top_k=[2])) != evaluated(job)
    assert evaluated(changed(job, checkpoint={"every_steps": 2})) == evaluated(job)


def test_a_step_depends_on_its_own_settings_and_the_training_images() -> None:
    from small_jobs import dfcp

    def steps(job: Job) -> dict[str, str]:
        data = built_data(job.data, job.seed, cache_folder())
        planned = plan(open_method(job, "dfcp", data), job, "dfcp", data)
        return {item.step.name: item.fingerprint for item in planned if isinstance(item, PlannedStep)}

    job = dfcp()
    before = steps(job)
    assert steps(with_data(job, max_test_images=50)) == before
    method = job.method.model_dump(mode="json")
    after = steps(changed(job, method=method | {"clusters": {**method["clusters"], "count": 31}}))
    same = [name for name in before if before[name] == after[name]]
    assert same == ["split", "held_out", "siamese", "features"]


def test_two_methods_of_equal_settings_are_two_trainings() -> None:
    """Under one name in a job, or in cells of a grid, which take results over from each other by fingerprint."""
    features = {"epochs": 2, "batch_size": 8}
    names = ("cross_entropy", "balanced_softmax", "focal")
    jobs = [changed(traditional(), method={"name": name, "features": features}) for name in names]
    assert len({fingerprint(trained(job)) for job in jobs}) == len(names)


def test_differences_are_told_by_field() -> None:
    job = traditional()
    before, after = trained(job), trained(traditional(epochs=5, batch_size=24))
    assert differences(before, after) == ["method.batch_size: 48, now 24", "method.epochs: 3, now 5"]
    assert differences(before, trained(changed(job, seed=4)))[0] == "seed: its default, now 4"


# --- the scheme


def fields(config: type[Strict], path: str, seen: tuple[type[Strict], ...] = ()) -> Iterator[tuple[str, Any, Part]]:
    """Every field below `config`: its path, its default as JSON (absent: it has none), and its part."""
    for name, field in config.model_fields.items():
        default = (
            "required" if field.is_required() else to_jsonable_python(field.get_default(call_default_factory=True))
        )
        yield f"{path}{name}", default, declared_part(field)
        for nested in nested_configs(field.annotation):
            if nested not in seen:
                yield from fields(nested, f"{path}{name}.", (*seen, config))


def nested_configs(annotation: Any) -> list[type[Strict]]:
    if isinstance(annotation, type) and issubclass(annotation, Strict):
        return [annotation]
    return [found for part in getattr(annotation, "__args__", ()) for found in nested_configs(part)]


def all_fields() -> list[tuple[str, Any, Part]]:
    found = list(fields(Job, "job."))
    for name in sorted(METHODS):
        found += fields(method_class(name).Config, f"{name}.")
    return found


def current_defaults() -> dict[str, Any]:
    return {"scheme": SCHEME, "defaults": {path: default for path, default, _ in all_fields()}}


def test_no_default_has_changed_under_this_scheme() -> None:
    """Fingerprints leave out defaults: if a default changed, an old result would be reused as a new one.

    Where one is to change, raise SCHEME and write the file anew: python tests/record/test_record_fingerprints.py
    """
    kept, now = json.loads(DEFAULTS.read_text()), current_defaults()
    assert kept["scheme"] == SCHEME
    assert now["defaults"] == kept["defaults"]


def test_the_fields_that_no_training_depends_on_are_these() -> None:
    """Add a new one here, after deciding that no result depends on it."""
    found = {(path, part) for path, _, part in all_fields() if part is not Part.RESULT}
    data = ["dataset", "source", "shards", "imbalance", "imbalance_choice", "imbalance_seed", "val_fraction"]
    data += ["max_train_images", "max_test_images", "on_bad_sample", "bad_samples_limit", "decode", "loader_workers"]
    none = [f"data.{name}" for name in (*data, "remote")]
    none += [f"parallel.{name}" for name in ("expert", "zero", "micro_batches")]
    none += [f"resources.{kind}_per_{who}" for kind in ("cpus", "gpus") for who in ("worker", "task")]
    none += ["resources.precision", "resources.graphs", "checkpoint.every_steps", "checkpoint.max_failures"]
    none += ["checkpoint.test_every_epochs", "resources.hung_after_seconds"]
    none += ["name", "kind", "title", "workers", "min_workers", "tune", "grid", "paper_table", "init_from"]
    none += [f"grid.{name}" for name in none if name.startswith("data.")]
    evaluation = ["job.checkpoint.every_epochs", "job.checkpoint.keep", "dfcp.top_k", "traditional_moe.top_k"]
    evaluation += ["gmm_moe.top_k"]
    paths = [*(f"job.{path}" for path in none), "gmm_moe.keep_maps_gib", "dfcp.trusted.labels.file"]
    paths += [f"{name}.floor" for name in ("dec", "dfcp.clusters.clusterer", "edcwrn", "idec")]
    assert found == {(path, Part.NONE) for path in paths} | {(path, Part.EVALUATION) for path in evaluation}


if __name__ == "__main__":
    DEFAULTS.write_text(json.dumps(current_defaults(), indent=1) + "\n")
    sys.stdout.write(f"{DEFAULTS}: {len(current_defaults()['defaults'])} fields\n")
