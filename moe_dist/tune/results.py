"""What came of a search: results.json for the report, and recipes that a job loads (best.yaml, best.set)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from moe_dist.files import write_json, write_text
from moe_dist.metrics.classification import mean_interval
from moe_dist.settings.schema import Strict
from moe_dist.tune.search import Searched
from moe_dist.tune.space import configured
from moe_dist.tune.trials import Outcome, Trial

RESULTS = "results.json"
EXPERTS_RECIPE = "best.yaml"
METHOD_RECIPE = "best.set"


@dataclass(frozen=True)
class StudyFacts:
    """What is written of a study beside its trials: what it is a search of, and the configuration its trials change."""

    title: str
    samples: int
    base: Strict


def write_results(
    folder: Path, searched: Mapping[str, Searched], facts: Mapping[str, StudyFacts], about: Mapping[str, Any]
) -> None:
    """Write results.json: `about`, every study with its trials, and how the best configurations compare."""
    studies = {name: _study(each, facts[name]) for name, each in searched.items()}
    work_seconds = sum(trial["seconds"] for study in studies.values() for trial in study["trials"])
    content = {**about, "trial_seconds": work_seconds, "studies": studies}
    write_json(folder / RESULTS, content | {"comparison": comparison(list(searched.values()))})


def _study(each: Searched, facts: StudyFacts) -> dict[str, Any]:
    study = each.study
    best = study.best
    return {
        "title": facts.title,
        "samples": facts.samples,
        "best": best,
        "configuration": None if best is None else _configuration(facts.base, study.trials[best]),
        "importance": study.importance(),
        "trials": [_trial(*pair) for pair in zip(study.trials, study.outcomes)],
        "compared": [
            {"seed": seed, "default": _judged(default), "best": _judged(tuned)}
            for seed, (default, tuned) in sorted(each.compared.items())
        ],
    }


def _configuration(base: Strict, trial: Trial) -> dict[str, Any]:
    return configured(base, trial.values).model_dump(mode="json")


def _trial(trial: Trial, outcome: Outcome) -> dict[str, Any]:
    curve = [[point.epoch, point.score, point.loss] for point in outcome.curve]
    return {
        "number": trial.number,
        "values": trial.values,
        "state": outcome.state,
        "reason": outcome.reason,
        "seconds": outcome.seconds,
        "curve": curve,
    }


def _judged(outcome: Outcome) -> float | None:
    """The score of a training that was not stopped; None where it failed."""
    return outcome.last.score if outcome.state == "finished" else None


def comparison(searched: Sequence[Searched]) -> dict[str, Any] | None:
    """Mean score over studies of the default and the best configuration, and the gain with its 95 % interval.

    A study counts by its means over the seeds; one of whose trainings failed is left out. None for fewer than two.
    """
    pairs = [pair for each in searched if (pair := _means(each)) is not None]
    if len(pairs) < 2:
        return None
    gain, interval = mean_interval([best - default for default, best in pairs])
    return {
        "studies": len(pairs),
        "default": sum(default for default, _ in pairs) / len(pairs),
        "best": sum(best for _, best in pairs) / len(pairs),
        "gain": gain,
        "gain_low": interval.low,
        "gain_high": interval.high,
    }


def _means(each: Searched) -> tuple[float, float] | None:
    """Mean scores over the seeds of (default, best)."""
    scores = [(_judged(default), _judged(best)) for default, best in each.compared.values()]
    known = [(default, best) for default, best in scores if default is not None and best is not None]
    if not known or len(known) < len(scores):
        return None
    return sum(default for default, _ in known) / len(known), sum(best for _, best in known) / len(known)


def best_experts(searched: Mapping[str, Searched], defaults: Sequence[Strict]) -> list[tuple[Strict, str]]:
    """Every expert's best configuration, and how it was found.

    An expert that was not searched, or of which no trial was trained to its end, keeps the job's own.
    """
    found: list[tuple[Strict, str]] = []
    for expert, default in enumerate(defaults):
        each = searched.get(str(expert))
        best = each.study.best if each else None
        if each is None or best is None:
            found.append((default, "not tuned"))
        else:
            note = f"score {each.study.outcomes[best].last.score:.4f}"
            found.append((configured(default, each.study.trials[best].values), note))
    return found


def write_experts_recipe(
    path: Path, searched: Mapping[str, Searched], defaults: Sequence[Strict], names: Sequence[str]
) -> None:
    """A YAML list with every expert's best configuration, in Table 1's layout; `experts: best.yaml` loads it."""
    lines = ["# Each expert's best configuration of a search; a job loads this file by `experts: best.yaml`."]
    for (config, note), name in zip(best_experts(searched, defaults), names, strict=True):
        content = config.model_dump(mode="json")
        shown = yaml.safe_dump(content, default_flow_style=True, sort_keys=False, width=10_000).strip()
        lines.append(f"- {shown}  # {' '.join(name.split())}: {note}")
    write_text(path, "\n".join(lines) + "\n")


def write_method_recipe(path: Path, each: Searched, experts: Path | None) -> None:
    """A file of overrides with the best values; `--set @best.set` loads it. Nothing where no trial was finished.

    experts: the recipe of the experts that they were found with; None: the job's own.
    """
    best = each.study.best
    if best is None:
        return
    values = each.study.trials[best].values
    score = each.study.outcomes[best].last.score
    lines = [f"# best of {len(each.study.outcomes)} trials, validation top-1 {score:.4f}"]
    lines += [f"method.experts={experts.absolute()}"] if experts else []
    lines += [f"method.{path}={yaml.safe_dump(value).splitlines()[0]}" for path, value in values.items()]
    write_text(path, "\n".join(lines) + "\n")
