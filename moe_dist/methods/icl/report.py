"""ICL's part of the report: top-1 by its schedule, and which of its paper's figures the shared ones stand for."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from moe_dist.methods.reporting import MethodReport, ReportedModel, ReportedRun
from moe_dist.plots import longtail as plots
from moe_dist.plots.drawing import Drawing

SCHEDULE = ("t_ad", "t_cl")
"""The settings of ICL's schedule: the epoch AD ends at, and the epoch CCL begins at."""


class IclReport(MethodReport):
    """A grid of the schedule, where a run has one."""

    papers = Path(__file__).with_name("paper.yaml")
    counterparts: ClassVar = {
        "gradient_shares": "The counterpart of ICL's Figures 1 and 3a.",
        "divergence_of_experts": "The counterpart of ICL's Figure 3b.",
        "tsne": "The counterpart of ICL's Figure 5.",
        "grad_cam": "The counterpart of ICL's Figure 6.",
    }

    def drawings(self, run: ReportedRun, models: Sequence[ReportedModel]) -> Iterator[Drawing]:
        """Top-1 by (t_ad, t_cl), for every set of models that differ in these two settings only, and in both."""
        for number, top1 in enumerate(_schedule_grids(models)):
            heading = f"Top-1 by ICL's schedule ({run.test_split})"
            yield Drawing(
                f"schedule_grid_{number}",
                heading,
                "The counterpart of ICL's Figure 4: the diversity loss AD is on before epoch t_AD, the contrastive "
                f"loss CCL from epoch t_CL on. {len(top1)} trainings of one seed each.",
                plots.schedule_grid(heading, top1),
            )


def _schedule_grids(models: Sequence[ReportedModel]) -> Iterator[dict[tuple[int, int], float]]:
    grids: dict[str, dict[tuple[int, int], float]] = {}
    for model in models:
        if (evaluation := model.evaluation) is not None and set(SCHEDULE) <= model.settings.keys():
            rest: Mapping[str, object] = {name: value for name, value in model.settings.items() if name not in SCHEDULE}
            cell = (model.settings["t_ad"], model.settings["t_cl"])
            top1 = float((evaluation.log_probs.argmax(axis=1) == evaluation.labels).mean())
            grids.setdefault(json.dumps(rest, sort_keys=True), {})[cell] = top1
    for grid in grids.values():
        if all(len(set(values)) > 1 for values in zip(*grid)):
            yield grid


REPORT = IclReport()
