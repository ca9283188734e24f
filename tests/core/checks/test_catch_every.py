"""No check without a part that it catches."""

from distillzoo.core.checks import CHECKS
from tests.core.checks import (
    test_catch_extraction,
    test_catch_metric,
    test_catch_objective,
    test_catch_recipe,
    test_catch_subset,
    test_catch_trajectories,
)

TABLES = {
    "subset": test_catch_subset.BROKEN,
    "objective": test_catch_objective.BROKEN,
    "extraction": test_catch_extraction.BROKEN,
    "trajectories": test_catch_trajectories.BROKEN,
    "metric": test_catch_metric.BROKEN,
    "recipe": test_catch_recipe.BROKEN,
}


def test_every_check_catches_a_broken_part():
    caught = {(kind, name) for kind, table in TABLES.items() for name, *_ in table}
    assert caught == {(check.kind, check.name) for check in CHECKS}
