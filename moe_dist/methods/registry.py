"""The methods by name: ours, and those that installed packages bring as entry points.

A package of your own says in its pyproject.toml

    [project.entry-points."moe_dist.methods"]
    my_method = "my_package.my_module:MyMethod"

and, where the method has its own part of the report (methods/reporting.py),

    [project.entry-points."moe_dist.reports"]
    my_method = "my_package.my_report:REPORT"
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

from moe_dist.errors import UserError

if TYPE_CHECKING:
    from moe_dist.methods.base import Method
    from moe_dist.methods.reporting import MethodReport

METHODS = {
    "dfcp": "moe_dist.methods.dfcp.method:Dfcp",
    "traditional_moe": "moe_dist.methods.baselines.traditional_moe:TraditionalMoe",
    "dense": "moe_dist.methods.baselines.dense:Dense",
    "sparse_moe": "moe_dist.methods.baselines.sparse_moe:SparseMoe",
    "icl": "moe_dist.methods.icl.method:Icl",
    "gmm_moe": "moe_dist.methods.gmm_moe.method:GmmMoe",
    "cross_entropy": "moe_dist.methods.longtail.cross_entropy:CrossEntropy",
    "focal": "moe_dist.methods.longtail.focal:Focal",
    "balanced_softmax": "moe_dist.methods.longtail.balanced_softmax:BalancedSoftmax",
    "ldam_drw": "moe_dist.methods.longtail.ldam_drw:LdamDrw",
    "ride": "moe_dist.methods.longtail.ride:Ride",
    "shike": "moe_dist.methods.longtail.shike:Shike",
    "balpoe": "moe_dist.methods.longtail.balpoe:Balpoe",
    "edcwrn": "moe_dist.methods.edcwrn.method:Edcwrn",
    "idec": "moe_dist.methods.edcwrn.method:Idec",
    "dec": "moe_dist.methods.edcwrn.method:Dec",
}
REPORTS = {
    "dfcp": "moe_dist.methods.dfcp.report:REPORT",
    "gmm_moe": "moe_dist.methods.gmm_moe.report:REPORT",
    "icl": "moe_dist.methods.icl.report:REPORT",
    "edcwrn": "moe_dist.methods.edcwrn.report:REPORT",
    "idec": "moe_dist.methods.edcwrn.report:REPORT",
    "dec": "moe_dist.methods.edcwrn.report:REPORT",
}
GROUP, REPORTS_GROUP = "moe_dist.methods", "moe_dist.reports"


def method_names() -> list[str]:
    """The names of all methods, sorted."""
    return sorted({*METHODS, *(point.name for point in entry_points(group=GROUP))})


def method_class(name: str) -> type[Method]:
    """The class of the method `name`, whose module is imported now.

    Raises UserError where there is none, or an installed package's cannot be imported.
    """
    found = _found(name, METHODS, GROUP)
    if found is None:
        raise UserError(f"method.name: no method is called {name!r}; choose one of {', '.join(method_names())}")
    return found


def method_report(name: str) -> MethodReport | None:
    """The own part of the report of the method `name`; None where it has none, or is not installed here."""
    return _found(name, REPORTS, REPORTS_GROUP)


def method_reports() -> dict[str, MethodReport]:
    """All methods' own parts of the report, by the method's name."""
    names = {*REPORTS, *(point.name for point in entry_points(group=REPORTS_GROUP))}
    return {name: report for name in sorted(names) if (report := method_report(name))}


def _found(name: str, ours: dict[str, str], group: str) -> Any:
    """The object `name` of ours, or of an installed package's entry points in `group`; None where there is none."""
    if name in ours:
        module, _, attribute = ours[name].partition(":")
        return getattr(import_module(module), attribute)
    for point in entry_points(group=group, name=name):
        try:
            return point.load()
        except (ImportError, AttributeError) as error:
            package = point.dist.name if point.dist else point.module
            raise UserError(
                f"method {name}: the installed package {package} names {point.value} for it, which cannot be "
                f"imported ({error}); mend that package, or remove it"
            ) from error
    return None
