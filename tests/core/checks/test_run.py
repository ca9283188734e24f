"""Running the kit: on one part, as pytest parameters, and with known failures."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest

from distillzoo.core.checks import (
    CheckFailed,
    RecipeFile,
    check_extraction,
    check_metric,
    check_objective,
    check_recipe,
    check_subset,
    check_trajectories,
    checks_of,
    label,
    outcomes,
    parametrize_with_checks,
    parts_of,
)
from distillzoo.core.metric import Evaluated
from distillzoo.core.registry import installed
from distillzoo.plugins.extractions.softmax import Softmax
from distillzoo.plugins.objectives.nll import NLL
from distillzoo.plugins.subsets.top_k import TopK
from distillzoo.plugins.trajectories.teacher import FromTeacher
from tests.core.checks import test_catch_extraction, test_catch_objective, test_catch_subset, test_catch_trajectories
from tests.core.checks.test_catch_metric import Exact, FirstHalf, WrongDirection


class ThreeFaults(WrongDirection):
    label: ClassVar[str] = ""


class Raises(Exact):
    """A metric that can't be computed: x = 1 / 0."""

    def score(self, evaluated: Evaluated) -> float | None:
        return 1 / 0


class Known(WrongDirection):
    """A metric whose direction is flipped and known to be: KL = sum_a p(a) (log p(a) - log q(a))."""

    known_failures: ClassVar[Mapping[str, str]] = {"value": "larger is more of it"}


class OutOfDate(Exact):
    """A metric without the failure that it declares: hits / N = exact."""

    known_failures: ClassVar[Mapping[str, str]] = {"value": "was wrong once"}


class Misspelt(Exact):
    """A metric that declares the failure of no check: hits / N = exact."""

    known_failures: ClassVar[Mapping[str, str]] = {"valeu": "misspelt"}


def statuses(part: Any) -> dict[str, str]:
    return {o.check.name: o.status for o in outcomes([part])}


def test_a_healthy_part_passes_all_its_checks():
    found = check_metric(Exact())
    assert [o.check for o in found] == checks_of(Exact())
    assert {o.status for o in found} == {"passed"}


def test_one_error_holds_all_failures():
    with pytest.raises(CheckFailed) as caught:
        check_metric(ThreeFaults())
    first, *failures = str(caught.value).splitlines()
    assert first == f"ThreeFaults() fails 3 of {len(checks_of(ThreeFaults()))} checks."
    assert [line.partition(":")[0] for line in failures] == ["- declared", "- value", "- documented"]


@pytest.mark.parametrize(
    ("run", "part"),
    [
        (check_subset, test_catch_subset.NoSource()),
        (check_objective, test_catch_objective.NoSource()),
        (check_extraction, test_catch_extraction.NoSource()),
        (check_trajectories, test_catch_trajectories.NoSource()),
    ],
)
def test_one_failure_is_enough(run, part):
    first = rf"NoSource\(\) fails 1 of {len(checks_of(part))} checks\."
    with pytest.raises(CheckFailed, match=rf"{first}\n- source-documented: The docstring of NoSource has no"):
        run(part)


def test_a_recipe_is_checked_by_its_path(tmp_path):
    (tmp_path / "mine.yaml").write_text("titel: mine\n")
    with pytest.raises(CheckFailed, match=r"mine fails \d of \d checks\.\n- readable: .*'titel' is not a known field"):
        check_recipe(tmp_path / "mine.yaml")


def test_what_a_part_raises_is_a_failure_and_the_other_checks_go_on():
    found = {o.check.name: o for o in outcomes([Raises()])}
    assert found["row-order"].message == "ZeroDivisionError: division by zero"
    assert found["documented"].status == "passed"


@pytest.mark.parametrize(
    ("run", "part", "message"),
    [
        (check_subset, NLL(), r"NLL\(\) is of the kind objective"),
        (check_objective, TopK(k=2), r"TopK\(k=2\) is of the kind subset"),
        (check_extraction, FromTeacher(), r"FromTeacher\(\) is of the kind trajectories"),
        (check_trajectories, Softmax(), r"Softmax\(\) is of the kind extraction"),
        (check_metric, RecipeFile(Path("bc.yaml"), "bc"), "bc is of the kind recipe"),
        (check_subset, TopK, "Did you pass the class instead of an instance"),
    ],
)
def test_a_part_of_another_kind_is_refused(run, part, message):
    with pytest.raises(TypeError, match=message):
        run(part)


def test_a_known_failure_is_no_failure():
    assert statuses(Known())["value"] == "known"
    (known,) = (o for o in check_metric(Known()) if o.status == "known")
    assert known.message == "larger is more of it"


def test_a_known_failure_that_passes_is_a_failure():
    with pytest.raises(CheckFailed, match="- value: It passes, and known_failures says it doesn't: was wrong once"):
        check_metric(OutOfDate())


@pytest.mark.parametrize("run", [check_metric, lambda part: parametrize_with_checks([part])])
def test_a_known_failure_of_no_check_is_refused(run):
    with pytest.raises(CheckFailed, match=r"Misspelt\(\) names 'valeu', which is no check of it: \['"):
        run(Misspelt())


def test_pytest_parameters_are_one_a_part_and_check():
    mark = parametrize_with_checks([Exact(), TopK(k=2), Path("bc.yaml")])
    name, params = mark.args
    parts = (Exact(), TopK(k=2), RecipeFile(Path("bc.yaml"), "bc"))
    assert name == "check"
    assert [p.id for p in params] == [f"{label(part)}-{check.name}" for part in parts for check in checks_of(part)]
    assert not any(p.marks for p in params)


def test_a_known_failure_is_a_strict_expected_failure():
    params = parametrize_with_checks([Known()]).args[1]
    ((name, marks),) = ((p.id, p.marks) for p in params if p.marks)
    assert name == "Known()-value"
    assert [(m.name, m.kwargs) for m in marks] == [("xfail", {"reason": "larger is more of it", "strict": True})]


def test_a_message_comes_without_the_kits_own_lines():
    params = parametrize_with_checks([FirstHalf()]).args[1]
    (check,) = (p.values[0] for p in params if p.id == "FirstHalf()-row-order")
    with pytest.raises(CheckFailed, match="in another order") as caught:
        check()
    shown = [entry.path.name for entry in caught.traceback if not entry.ishidden(caught)]
    assert shown == ["test_run.py"]
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


def test_what_else_a_part_raises_keeps_its_lines():
    params = parametrize_with_checks([Raises()]).args[1]
    (check,) = (p.values[0] for p in params if p.id == "Raises()-row-order")
    with pytest.raises(ZeroDivisionError) as caught:
        check()
    assert caught.traceback[-1].name == "score"


@pytest.mark.parametrize(
    ("part", "text"),
    [
        (TopK(), "TopK()"),
        (TopK(k=2, include_action=True), "TopK(include_action=True, k=2)"),
        (RecipeFile(Path("zoo/bc.yaml"), "bc"), "bc"),
    ],
)
def test_a_label_names_what_differs_from_the_defaults(part, text):
    assert label(part) == text


def test_the_examples_of_a_registered_part_are_checked():
    registry = installed()
    assert parts_of(registry, registry.entry("subset", "top-k")) == list(TopK.examples())
    (found,) = parts_of(registry, registry.entry("recipe", "bc"))
    assert label(found) == "bc"
    assert found.path.name == "bc.yaml"
    assert parts_of(registry, registry.entry("suite", "micro")) == []
