"""Running the kit: on one part, as pytest parameters, on what a distribution registers."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from distillzoo.core.checks.check import (
    Check,
    CheckFailed,
    Outcome,
    RecipeFile,
    Subject,
    checks_of,
    conform,
    kind_of,
    known_failures,
    label,
)
from distillzoo.core.errors import UserError
from distillzoo.core.extraction import PolicyExtraction
from distillzoo.core.metric import Metric
from distillzoo.core.objective import Objective
from distillzoo.core.registry import PART_KINDS, Entry, Kind, PluginError, Registry
from distillzoo.core.subset import ActionSubset
from distillzoo.core.trajectories import TrajectorySource

if TYPE_CHECKING:
    import pytest

CHECKED_KINDS: Final[tuple[Kind, ...]] = (*PART_KINDS, "metric", "recipe")
"""The kinds of parts that the kit has checks for."""


def check_subset(part: ActionSubset) -> list[Outcome]:
    """Run all checks on an action subset.

    Raises:
        CheckFailed: at least one check failed; the message holds all that did.
    """
    return conform("subset", part)


def check_objective(part: Objective) -> list[Outcome]:
    """Run all checks on an objective; raises like ``check_subset``."""
    return conform("objective", part)


def check_extraction(part: PolicyExtraction) -> list[Outcome]:
    """Run all checks on a policy extraction; raises like ``check_subset``."""
    return conform("extraction", part)


def check_trajectories(part: TrajectorySource) -> list[Outcome]:
    """Run all checks on a trajectory source; raises like ``check_subset``."""
    return conform("trajectories", part)


def check_metric(part: Metric) -> list[Outcome]:
    """Run all checks on a metric; raises like ``check_subset``."""
    return conform("metric", part)


def check_recipe(path: Path) -> list[Outcome]:
    """Run all checks on a recipe file, whose stem is the recipe's name; raises like ``check_subset``."""
    return conform("recipe", RecipeFile(path, path.stem))


@dataclass(frozen=True)
class Bound:
    """One check on one part, to be called."""

    check: Check
    part: Subject

    def __call__(self) -> None:
        __tracebackhide__ = True
        try:
            self.check(self.part)
        except CheckFailed as error:  # the message is what helps; the kit's own lines are not the reader's
            raise error.with_traceback(None) from None


def parametrize_with_checks(parts: Iterable[Subject | Path]) -> "pytest.MarkDecorator":
    """Pytest parameters ``check``, one for each part and property; a recipe is given as the path of its file.

    A check that the part's class names in ``known_failures`` is a strict expected failure: it must go on failing.
    """
    import pytest

    params = []
    for part in parts:
        subject = RecipeFile(part, part.stem) if isinstance(part, Path) else part
        kind_of(subject)
        known = known_failures(subject)
        for one in checks_of(subject):
            marks = [pytest.mark.xfail(reason=known[one.name], strict=True)] if one.name in known else []
            params.append(pytest.param(Bound(one, subject), id=f"{label(subject)}-{one.name}", marks=marks))
    return pytest.mark.parametrize("check", params)


def parts_of(registry: Registry, entry: Entry) -> list[Subject]:
    """The examples of a registered part, which the kit checks; none for a kind without checks.

    Raises:
        UserError: the part cannot be imported, is of another kind, or its ``examples`` raise.
    """
    if entry.kind not in CHECKED_KINDS:
        return []
    if entry.kind == "recipe":
        return [RecipeFile(Path(entry.target), entry.name)]
    part = registry.get(entry.kind, entry.name)
    try:
        return list(part.examples())
    except UserError:
        raise
    except Exception as error:  # a stranger's method may raise anything
        raise PluginError(f"examples() of the {entry.kind} '{entry.name}' raises {error!r}.") from error
