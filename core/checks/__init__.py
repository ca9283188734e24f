"""The conformance kit: what every part must hold, as checks that a stranger's tests and ours run alike.

    @parametrize_with_checks([MySubset(), MySubset(ratio=0.5)])
    def test_conformance(check):
        check()

gives one test for each part and property. ``check_subset`` and its siblings run all checks on one part and raise one
error that holds every failure.
"""

from distillzoo.core.checks import (  # noqa: F401 importing them enters their checks
    extraction,
    metric,
    objective,
    part,
    recipe,
    subset,
    trajectories,
)
from distillzoo.core.checks.check import (
    CHECKS,
    Check,
    CheckFailed,
    Outcome,
    RecipeFile,
    Subject,
    checks_of,
    kind_of,
    known_failures,
    label,
    outcomes,
)
from distillzoo.core.checks.run import (
    check_extraction,
    check_metric,
    check_objective,
    check_recipe,
    check_subset,
    check_trajectories,
    parametrize_with_checks,
    parts_of,
)

__all__ = [
    "CHECKS",
    "Check",
    "CheckFailed",
    "Outcome",
    "RecipeFile",
    "Subject",
    "check_extraction",
    "check_metric",
    "check_objective",
    "check_recipe",
    "check_subset",
    "check_trajectories",
    "checks_of",
    "kind_of",
    "known_failures",
    "label",
    "outcomes",
    "parametrize_with_checks",
    "parts_of",
]
