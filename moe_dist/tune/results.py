"""The results of a search: results.json for the report, and recipes that a job loads (best.yaml, best.set)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moe_dist.files import write_json, write_text
from moe_dist.metrics.classification import mean_interval
from moe_dist.settings.schema import Strict
from moe_dist.tune.search import SearchedStudy
from moe_dist.tune.space import configured
from moe_dist.tune.trials import Outcome, Trial
from moe_dist.yaml_core import dump_yaml

RESULTS = "results.json"
EXPERTS_RECIPE = "best.yaml"
METHOD_RECIPE = "best.set"


@dataclass(frozen=True)
class StudyInfo:
    """What is written of a study beside its trials: its title, its samples, and the configuration its trials change."""

    title: str
    samples: int
    base: Strict


def write_results(
    folder: Path, studies: Mapping[str, SearchedStudy], infos: Mapping[str, StudyInfo], about: Mapping[str, Any]
) -> None:
    """Write results.json: `about`, every study with its trials, and how the best configurations compare."""
    content = {name: _study(each, infos[name]) for name, each in studies.items()}
    seconds = sum(trial["seconds"] for study in content.values() for trial in study["trials"])
    compared = comparison(list(studies.values()))
    write_json(folder / RESULTS, {**about, "trial_seconds": seconds, "studies": content, "comparison": compared})


def _study(each: SearchedStudy, info: StudyInfo) -> dict[str, Any]:
    study, best = each.study, each.study.best
    configuration = None if best is None else configured(info.base, study.trials[best].values).model_dump(mode="json")
    return {
        "title": info.title,
        "samples": info.samples,
        "best": best,
        "configuration": configuration,
        "importance": study.importance(),
        "trials": [_trial(*pair) for pair in zip(study.trials, study.outcomes)],
        "compared": [
            {"seed": seed, "default": _final_score(default), "best": _final_score(tuned)}
            for seed, (default, tuned) in sorted(each.compared.items())
        ],
    }


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


def _final_score(outcome: Outcome) -> float | None:
    """The score after the last epoch; None where the training did not get there."""
    return outcome.last.score if outcome.state == "finished" else None


def comparison(studies: Sequence[SearchedStudy]) -> dict[str, Any] | None:
    """Mean score over studies of the default and the best configuration, and the gain with its 95 % interval.

    Each study enters with its means over the seeds. A study with a failed training is left out; None where fewer than
    two are left.
    """
    pairs = [pair for each in studies if (pair := _means(each)) is not None]
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


def _means(each: SearchedStudy) -> tuple[float, float] | None:
    """Mean scores over the seeds of (default, best); None where there are none or a training failed."""
    scores = [(_final_score(default), _final_score(best)) for default, best in each.compared.values()]
    known = [(default, best) for default, best in scores if default is not None and best is not None]
    if not known or len(known) < len(scores):
        return None
    return sum(default for default, _ in known) / len(known), sum(best for _, best in known) / len(known)


def best_experts(studies: Mapping[str, SearchedStudy], defaults: Sequence[Strict]) -> list[tuple[Strict, str]]:
    """Every expert's best configuration, and a note of its score.

    An expert that was not searched, or none of whose trials was trained to its end, keeps the job's configuration.
    """
    found: list[tuple[Strict, str]] = []
    for expert, default in enumerate(defaults):
        each = studies.get(str(expert))
        best = each.study.best if each else None
        if each is None or best is None:
            found.append((default, "not tuned"))
        else:
            note = f"score {each.study.outcomes[best].last.score:.4f}"
            found.append((configured(default, each.study.trials[best].values), note))
    return found


def write_experts_recipe(
    path: Path, studies: Mapping[str, SearchedStudy], defaults: Sequence[Strict], names: Sequence[str]
) -> None:
    """Write a YAML list of every expert's best configuration, in Table 1's layout; `experts: best.yaml` loads it."""
    lines = ["# Each expert's best configuration of a search; a job loads this file by `experts: best.yaml`."]
    for (config, note), name in zip(best_experts(studies, defaults), names, strict=True):
        content = config.model_dump(mode="json")
        shown = _on_one_line(content)
        lines.append(f"- {shown}  # {' '.join(name.split())}: {note}")
    write_text(path, "\n".join(lines) + "\n")


def _on_one_line(value: Any) -> str:
    return dump_yaml(value, default_flow_style=True, width=math.inf).splitlines()[0]


def write_method_recipe(path: Path, each: SearchedStudy, experts: Any) -> None:
    """Write overrides with the best values, which `--set @best.set` loads; nothing where no trial was finished.

    experts: those with which the values were found, as the job's field `experts` is written; None: the job's own.
    """
    best = each.study.best
    if best is None:
        return
    values = each.study.trials[best].values
    score = each.study.outcomes[best].last.score
    lines = [f"# best of {len(each.study.outcomes)} trials, validation top-1 {score:.4f}"]
    lines += [f"method.experts={_on_one_line(experts)}"] if experts else []
    lines += [f"method.{path}={_on_one_line(value)}" for path, value in values.items()]
    write_text(path, "\n".join(lines) + "\n")
