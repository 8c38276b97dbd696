"""The model card of an exported model: README.md in the hub's format, from what the run recorded."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from moe_dist.metrics.classification import wilson_interval
from moe_dist.report.run import Evaluation, RunDirectory
from moe_dist.use.model import TrainedModel
from moe_dist.yaml_core import dump_yaml

NO_LICENCE = "not stated by whoever exported it; ask before you use it"
BASIC = ("dataset", "split_digest", "counts", "seed", "command", "hardware", "code", "torch", "started")


def facts_of(run: Path, about: Mapping[str, Any]) -> dict[str, Any]:
    """What a card says of a run's model beside its settings, as JSON values; about: that of the loaded model."""
    directory = RunDirectory(run)
    model = directory.models[about["model"]]
    facts = {name: directory.record.get(name) for name in BASIC}
    facts |= {"title": directory.job.get("title") or directory.job["name"], "bad_samples": directory.bad_samples.count}
    facts |= {"data": directory.job["data"], "class_counts": directory.record.get("class_counts")}
    facts["pretrained"] = model.settings.get("weights")
    facts["backbone"] = model.settings.get("backbone")
    origin = directory.job.get("init_from")
    facts["init_from"] = Path(origin).name if origin else None
    evaluation = model.evaluation
    facts["labels_used"] = evaluation.labels_used if evaluation else None
    facts["metrics"] = _metrics(evaluation, about) if evaluation else []
    return facts


def _metrics(evaluation: Evaluation, about: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Name, value and 95 % interval (or none) of the exported checkpoint's metrics on the test split."""
    count = len(evaluation.labels)
    if evaluation.predicts == "clusters":
        return [
            {"name": name, "value": float(evaluation.clustering[name]), "images": count}  # type: ignore[literal-required]
            for name in ("accuracy", "nmi", "ari")
        ]
    last = evaluation.chosen is None or about["is_last"]
    predicted = evaluation.log_probs.argmax(1) if last else evaluation.chosen
    right = int(np.sum(predicted == evaluation.labels))
    top1 = {"name": "top-1", "value": right / count, "interval": list(wilson_interval(right, count)), "images": count}
    if not last:
        return [top1]
    metrics = evaluation.metrics
    further = {"balanced accuracy": metrics["balanced_accuracy"], "mean average precision": metrics["map"]}
    further["negative log-likelihood"] = metrics["nll"]
    return [top1, *({"name": name, "value": value, "images": count} for name, value in further.items())]


def card(model: TrainedModel, files: Mapping[str, str], licence: str | None, checked: str | None) -> str:
    """The text of README.md. files: what lies beside it, with a description; checked: how a graph was checked."""
    facts = model.about["card"]
    parts = [
        _front(model, facts, licence),
        f"# {facts['title']}: {model.about['model']}\n",
        _what(model),
        "## Files\n\n" + "\n".join(f"- `{name}`: {what}" for name, what in files.items()) + "\n",
        _use(model, files),
        *([f"{checked}\n"] if checked else []),
        _data(facts),
        _results(facts),
        _training(model, facts),
        _limits(model, facts),
        f"## Licence\n\nOf the weights: {licence or NO_LICENCE}.{_origin(facts)}\n",
    ]
    return "\n".join(parts)


def _front(model: TrainedModel, facts: Mapping[str, Any], licence: str | None) -> str:
    """The YAML that a model hub reads."""
    images = not model.preprocessing.vector_size
    task = "image-classification" if images and model.predicts == "classes" else "feature-extraction"
    metrics = [{"type": entry["name"], "value": round(entry["value"], 6)} for entry in facts["metrics"]]
    dataset = {"name": facts["dataset"], "type": facts["dataset"], "split": "test"}
    result = {"task": {"type": task}, "dataset": dataset, "metrics": metrics}
    content = {
        "license": licence or "unknown",
        "library_name": "moe-dist",
        "pipeline_tag": task,
        "tags": ["mixture-of-experts", model.method.config.name],
        "datasets": [facts["dataset"]],
        "model-index": [{"name": f"{facts['title']}: {model.about['model']}", "results": [result]}],
    }
    return f"---\n{dump_yaml(content)}---\n"


def _what(model: TrainedModel) -> str:
    parameters = sum(parameter.numel() for parameter in model.network.parameters())
    experts = ", ".join(f"{size} experts{f' at {name}' if name else ''}" for name, size in model.gate_sizes.items())
    of = f" with {experts}" if experts else ""
    about = model.about
    which = "the run's last one" if about["is_last"] else "which validation chose"
    return (
        f"A model of the method {model.method.config.name}{of}, {parameters:,} parameters, that tells "
        f"{len(model.classes)} {model.predicts} apart. {about['checkpoint']} of run {about['run']}, {which}.\n"
    )


def _use(model: TrainedModel, files: Mapping[str, str]) -> str:
    seen = model.preprocessing
    lines = ["## Use\n"]
    if "model.safetensors" in files:
        lines += ["```python", "import moe_dist", "", 'model = moe_dist.load("FOLDER")']
        lines += ['print(model.predict(["image.jpg"]).best(5))', "```", ""]
    if seen.vector_size:
        lines.append(f"Samples are vectors of {seen.vector_size} numbers, as they were in the training data.")
    else:
        how = "stretched to a square" if seen.frame == "stretch" else "cut to its centre square"
        lines.append(
            f"An image is decoded as RGB, {how} of {seen.image_size} pixels (bilinear, antialiased), scaled to [0, 1], "
            f"and normalised by mean {list(seen.mean)} and deviation {list(seen.std)}."
        )
    return "\n".join(lines) + "\n"


def _data(facts: Mapping[str, Any]) -> str:
    counts = facts["counts"]
    return (
        f"## Data\n\n{facts['dataset']}: {counts['train']:,} training, {counts['val']:,} validation and "
        f"{counts['test']:,} test samples; split {facts['split_digest']}. Labels used: {facts['labels_used']}."
        + (f" {facts['bad_samples']} samples could not be read and were left out." if facts["bad_samples"] else "")
        + "\n"
    )


def _results(facts: Mapping[str, Any]) -> str:
    if not facts["metrics"]:
        return "## Results\n\nThe run was not evaluated.\n"
    rows = ["| metric, test split | value | 95 % interval | samples |", "|---|---|---|---|"]
    for entry in facts["metrics"]:
        low, high = entry.get("interval", (None, None))
        interval = "" if low is None else f"{low:.4f} to {high:.4f}"
        rows.append(f"| {entry['name']} | {entry['value']:.4f} | {interval} | {entry['images']:,} |")
    rows.append("\nOf one training; the interval is that of the number of test samples (Wilson), not of other seeds.")
    return "## Results\n\n" + "\n".join(rows) + "\n"


def _training(model: TrainedModel, facts: Mapping[str, Any]) -> str:
    return (
        f"## Training\n\nSeed {facts['seed']}, on {facts['hardware']}, by moe-dist {facts['code']} and torch "
        f"{facts['torch']}, begun {facts['started']}:\n\n```\n{facts['command']}\n```\n"
    )


def _limits(model: TrainedModel, facts: Mapping[str, Any]) -> str:
    """What the model is for, and what it is not for, as far as the run can tell."""
    sentences = [
        f"For samples like those of {facts['dataset']}, to tell its {len(model.classes)} {model.predicts} apart. A "
        "sample of none of them is given one all the same.",
        _calibration(model),
        "How it does on groups of people, places or cameras that the data does not tell apart was not measured.",
    ]
    if model.preprocessing.crop_roi:
        sentences.append("It was trained on images that were cut to regions of interest: cut yours likewise.")
    counts = facts["class_counts"] or [0]
    if min(counts) and max(counts) / min(counts) >= 5:
        sentences.append(f"Classes had from {min(counts):,} to {max(counts):,} training samples; rare ones do worse.")
    return "## Intended use and limits\n\n" + "\n".join(f"- {sentence}" for sentence in sentences) + "\n"


def _calibration(model: TrainedModel) -> str:
    """What is known of the probabilities."""
    fitted = model.about.get("calibration")
    if fitted is None:
        return "Probabilities were not calibrated."
    on = f"{fitted['samples']:,} validation samples"
    before, after = f"{fitted['ece']:.3f}", f"{fitted['ece_calibrated']:.3f}"
    if model.temperature == 1:
        return f"Probabilities were not calibrated: their expected calibration error on {on} is {before}."
    return (
        f"Probabilities are at the temperature {model.temperature:.3f}, fitted on {on}, where it changed the expected "
        f"calibration error from {before} to {after}."
    )


def _origin(facts: Mapping[str, Any]) -> str:
    if facts.get("init_from"):
        return f" The training began from the model {facts['init_from']} (init_from), whose licence counts, too."
    if facts["pretrained"] is None:
        return ""
    return f" The training began from weights {facts['pretrained']} of {facts['backbone']}, whose licence counts, too."
