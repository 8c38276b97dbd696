"""Jobs: errors and their messages; every shipped job loads."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from moe_dist.errors import UserError
from moe_dist.job import Job, dump_job, load_job, parse_job

JOBS = Path(__file__).parents[1] / "jobs"
SMALL = {"name": "small", "kind": "train", "method": {"name": "dfcp"}}


def refused(content: dict) -> str:
    with pytest.raises(UserError) as caught:
        parse_job(content, "small.yaml")
    return str(caught.value)


def recipes() -> list[Path]:
    """Jobs, not the lists of experts some of them load."""
    return [path for path in sorted(JOBS.rglob("*.yaml")) if isinstance(yaml.safe_load(path.read_text()), dict)]


@pytest.mark.parametrize("path", recipes(), ids=lambda path: path.relative_to(JOBS).as_posix())
def test_every_shipped_job_loads_and_resolves_to_itself(path: Path) -> None:
    job = load_job(path)
    assert parse_job(yaml.safe_load(dump_job(job)), "resolved") == job


def test_a_misspelt_key_is_named() -> None:
    assert refused(SMALL | {"wrokers": 2}) == "small.yaml: wrokers: unknown field; did you mean workers?"
    dfcp = {"name": "dfcp", "trustd": {}, "pseudo_labels": {"siamese": {"epoch": 3}}, "alone": {"zzz": 1}}
    said = refused(SMALL | {"method": dfcp, "data": {"dataset": "digits", "sorce": "x"}})
    assert "method.trustd: unknown field; did you mean trusted?" in said
    assert "method.alone.zzz: unknown field" in said and "alone.zzz: unknown field; did you" not in said
    assert "method.pseudo_labels.siamese.epoch: unknown field; did you mean epochs?" in said
    assert "data.sorce: unknown field; did you mean source?" in said


def test_a_field_of_an_earlier_version_says_what_to_write_instead() -> None:
    said = "small.yaml: data.hold: unknown field; write data.decode: once for memory, each_time for disk"
    assert refused(SMALL | {"data": {"hold": "disk"}}) == said
    old = refused(SMALL | {"method": {"name": "dfcp", "trusted_fraction": 0.1}})
    assert "method.trusted_fraction: unknown field; write trusted: {fraction: 0.1, by: track} for whole tracks" in old


def test_a_value_out_of_range_names_field_value_and_bound() -> None:
    message = refused(SMALL | {"method": {"name": "dfcp", "trusted": {"fraction": 1.5}}})
    assert "method.trusted.fraction" in message and "less than or equal to 1" in message and "1.5" in message


def test_shares_of_a_random_crop_ascend() -> None:
    method = {"name": "dense", "weights": None, "augment": {"resized_crop": [0.9, 0.2]}}
    assert "method.augment.resized_crop: the smaller share comes first: write [0.2, 0.9]" in refused(
        SMALL | {"method": method}
    )


def test_a_wrong_type_names_field_and_value() -> None:
    message = refused(SMALL | {"workers": "many"})
    assert "workers" in message and "'many'" in message and "integer" in message


def test_an_unknown_method_lists_the_choices() -> None:
    message = refused(SMALL | {"method": {"name": "dfpc"}})
    assert "'dfpc'" in message and "choose one of" in message
    assert all(name in message for name in ("dense", "dfcp", "icl", "sparse_moe", "traditional_moe"))


def test_zero_stage_three_is_refused() -> None:
    message = refused(SMALL | {"parallel": {"zero": 3}})
    assert "parallel.zero" in message and "shards the very parameters" in message
    assert "choose 0, 1 or 2, got 4" in refused(SMALL | {"parallel": {"zero": 4}})


def test_expert_parallel_size_divides_the_workers() -> None:
    assert "parallel.expert = 2 does not divide workers = 3" in refused(
        SMALL | {"workers": 3, "parallel": {"expert": 2}}
    )


def test_a_model_is_not_named_after_the_folder_of_figures() -> None:
    assert "give the model another name" in refused({"name": "x", "kind": "reproduce", "methods": {"figures": "dense"}})


def test_a_method_whose_name_is_no_word_is_refused() -> None:
    assert "no method is called" in refused(SMALL | {"method": {"name": ["dfcp"]}})


def test_a_job_has_method_or_methods_as_its_kind_says() -> None:
    assert "no `method`" in refused({"name": "x", "kind": "reproduce", "method": {"name": "dense"}})
    assert "one `method`" in refused({"name": "x", "kind": "train"})


@pytest.fixture
def job_file(tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(SMALL))
    return path


def test_set_changes_nested_fields_and_reads_yaml(job_file: Path) -> None:
    job = load_job(
        job_file, ["workers=4", "method.joint.epochs=3", "parallel.expert=2", "method.clusters.radii=[0.2, 0.8]"]
    )
    assert (job.workers, job.parallel.expert) == (4, 2)
    assert job.method.joint.epochs == 3 and job.method.clusters.radii == (0.2, 0.8)


@pytest.mark.parametrize(
    ("override", "said"),
    [("workers", "field=value"), ("name.first=x", "name holds a value"), ("workers=[", "not a YAML value")],
)
def test_a_set_that_cannot_be_applied_is_refused(job_file: Path, override: str, said: str) -> None:
    with pytest.raises(UserError, match="--set") as caught:
        load_job(job_file, [override])
    assert said in str(caught.value)


def test_a_set_for_the_other_kind_of_job_says_which_one_it_is(job_file: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"one method; write method\.FIELD=VALUE"):
        load_job(job_file, ["methods.dfcp.joint.epochs=3"])
    several = tmp_path / "several.yaml"
    methods = {"ours": SMALL["method"], "dense": {"name": "dense"}}
    several.write_text(
        yaml.safe_dump({**SMALL, "kind": "reproduce", "methods": methods, "method": None}, sort_keys=False)
    )
    with pytest.raises(UserError, match=r"\(ours, dense\); write methods\.NAME\.FIELD=VALUE"):
        load_job(several, ["method.joint.epochs=3"])
    assert load_job(several, ["methods.ours.joint.epochs=3"]).methods["ours"].joint.epochs == 3


def test_a_job_file_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such job file"):
        load_job(tmp_path / "absent.yaml")
    broken = tmp_path / "broken.yaml"
    broken.write_text("a: [1,")
    with pytest.raises(UserError, match="not valid YAML"):
        load_job(broken)
    broken.write_bytes(b"\xff\xd8\xff\xe0")
    with pytest.raises(UserError, match=r"broken\.yaml: not a text file"):
        load_job(broken)
    with pytest.raises(UserError, match=r"--set @.*broken\.yaml: not a text file"):
        load_job(JOBS / "demo.yaml", [f"@{broken}"])


def test_a_recipe_of_experts_is_read_beside_the_job(job_file: Path) -> None:
    rows = [{"conv1": 6, "conv2": 16, "fc1": 122, "fc2": 85}, {"conv1": 11, "conv2": 22, "fc1": 142, "fc2": 95}]
    (job_file.parent / "experts.yaml").write_text(yaml.safe_dump(rows))
    job = load_job(job_file, ["method.experts=experts.yaml"])
    assert [expert.conv1 for expert in job.method.experts] == [6, 11]
    with pytest.raises(UserError, match="no recipe of experts"):
        load_job(job_file, ["method.experts=absent.yaml"])


def test_43_experts_for_42_classes_are_refused() -> None:
    job: Job = parse_job(SMALL | {"method": {"name": "dfcp", "experts": [{}] * 43}}, "small.yaml")
    with pytest.raises(UserError, match="43 experts, but the dataset has 42 classes"):
        job.method.check(42)


def test_an_override_leaves_fields_that_share_an_anchor_alone(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    methods = "{one: &recipe {name: icl, features: &stage {epochs: 9}, classifiers: *stage}, two: {<<: *recipe}}"
    path.write_text(f"name: x\nkind: reproduce\nmethods: {methods}\n")
    job = load_job(path, ["methods.one.features.epochs=2", "methods.one.features.batch_size=4"])
    epochs = [(model.features.epochs, model.classifiers.epochs) for model in job.models.values()]
    assert epochs == [(2, 9), (9, 9)]


def test_a_field_that_a_job_gives_twice_is_refused_with_its_line(job_file: Path) -> None:
    job_file.write_text("name: x\nkind: train\nseed: 1\nmethod: dense\nseed: 2\n")
    with pytest.raises(UserError, match=r"small\.yaml: not valid YAML: line 5: `seed` is given here and in line 3"):
        load_job(job_file)


def test_numbers_and_words_of_a_job_are_what_they_look_like(job_file: Path) -> None:
    job_file.write_text("name: on\nkind: train\nseed: 010\ntitle: 1:30\nmethod: {name: icl, temperature: 1e-1}\n")
    job = load_job(job_file)
    assert (job.name, job.seed, job.title) == ("on", 10, "1:30")


@pytest.mark.parametrize("value", ["true", "yes"])
def test_a_truth_value_is_no_number(value: str, job_file: Path) -> None:
    with pytest.raises(UserError, match=r"small\.yaml: workers: (must be a number|input should be a valid integer)"):
        load_job(job_file, [f"workers={value}"])
    with pytest.raises(UserError, match=r"data\.mean: must be a number, not true or false"):
        load_job(job_file, ["data.mean=[0.5, true, 0.5]"])


def test_a_folder_whose_name_is_a_number_is_a_sentence(job_file: Path) -> None:
    with pytest.raises(UserError, match=r'data\.source: must be a path \(put quotes around .*"2024"\), got 2024'):
        load_job(job_file, ["data.source=2024"])
    assert load_job(job_file, ['data.source="2024"']).data.source == Path.cwd() / "2024"


TITLE = "name: x\nkind: train\nmethod: dense\ntitle: Größe\n"


@pytest.mark.parametrize(
    ("encoding", "said"), [("latin-1", r"line 4 holds the byte 0xf6"), ("utf-16", "it looks like UTF-16")]
)
def test_a_text_in_another_encoding_is_told_as_that(encoding: str, said: str, job_file: Path, tmp_path: Path) -> None:
    job_file.write_text(TITLE, encoding=encoding)
    with pytest.raises(UserError, match=rf"small\.yaml: not a text file in UTF-8 \({said}\); save it as UTF-8"):
        load_job(job_file)
    overrides = tmp_path / "changes.set"
    overrides.write_text("# a\n# b\n# c\ntitle=Größe\n", encoding=encoding)
    with pytest.raises(UserError, match=rf"--set @.*changes\.set: not a text file in UTF-8 \({said}\)"):
        load_job(JOBS / "demo.yaml", [f"@{overrides}"])
    recipe = tmp_path / "experts.yaml"
    recipe.write_text("# a\n# b\n# c\n- {conv1: 6}  # Größe\n", encoding=encoding)
    job_file.write_text(yaml.safe_dump(SMALL | {"method": {"name": "dfcp", "experts": "experts.yaml"}}))
    with pytest.raises(UserError, match=rf"experts\.yaml: not a text file in UTF-8 \({said}\)"):
        load_job(job_file)


@pytest.mark.parametrize("field", ["data.source", "data.shards"])
def test_the_home_of_nobody_is_a_path_as_written(field: str, job_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    data = load_job(job_file, [f"{field}=~/images"]).data
    assert "/home/me/images" in (str(data.source), data.shards)
    data = load_job(job_file, [f"{field}=~nobody-here/images"]).data
    assert f"{Path.cwd()}/~nobody-here/images" in (str(data.source), data.shards)


@pytest.mark.parametrize("value", [".inf", "-.inf", ".nan"])
@pytest.mark.parametrize(
    "field", ["resources.cpus_per_worker", "method.gate.optimiser.learning_rate", "data.image_size"]
)
def test_no_number_is_infinite(field: str, value: str, job_file: Path) -> None:
    with pytest.raises(UserError, match=rf"{field}: input should be a finite number"):
        load_job(job_file, [f"{field}={value}"])


def test_a_job_written_on_windows_is_read(job_file: Path) -> None:
    job_file.write_bytes(b"\xef\xbb\xbf" + TITLE.replace("\n", "\r\n").encode())
    assert load_job(job_file).title == "Größe"


def test_a_job_that_holds_itself_is_refused(job_file: Path) -> None:
    job_file.write_text("name: x\nkind: train\nmethod: dense\ndata: &d {noise: *d}\n")
    with pytest.raises(UserError, match=r"data\.noise\.noise: unknown field"):
        load_job(job_file)
