"""What a check is, how checks are found for a part and how they are run."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

from distillzoo.core.part import Part
from distillzoo.core.registry import Kind


class CheckFailed(AssertionError):
    """A part breaks a rule of the kit. The message says what was seen and names the likely mistake."""


@dataclass(frozen=True)
class RecipeFile:
    """A recipe under test: its file, and the name under which it is registered."""

    path: Path
    name: str


Subject = Part | RecipeFile
"""What the kit checks."""


@dataclass(frozen=True)
class Check:
    """One property of one kind of part.

    Attributes:
        name: as in ``padding-side``; the key of ``known_failures``.
        kind: the kind of part it belongs to.
        rule: the property in one sentence.
        test: raises ``CheckFailed`` where the part breaks the rule.
        applies: whether the part claims the property; a part declares its capabilities, the kit knows none by name.
    """

    name: str
    kind: Kind
    rule: str
    test: Callable[[Any], None] = field(repr=False)
    applies: Callable[[Any], bool] = field(repr=False)

    def __call__(self, part: Subject) -> None:
        self.test(part)


CHECKS: Final[list[Check]] = []
"""All checks; those of a kind stand in the order in which they run, the telling ones first."""


def check(*kinds: Kind, when: Callable[[Any], bool] = lambda part: True) -> Callable[[Callable[[Any], None]], None]:
    """Enter a function as a check of these kinds; its name and the first line of its docstring name it."""

    def enter(test: Callable[[Any], None]) -> None:
        rule = " ".join((test.__doc__ or "").split("\n\n")[0].split())
        name = test.__name__.strip("_").replace("_", "-")
        CHECKS.extend(Check(name, kind, rule, test, when) for kind in kinds)

    return enter


def first_example(part: Part) -> bool:
    """Whether a part is the first of its examples: a slow check that parameters hardly touch runs on it alone."""
    return part == type(part).examples()[0]


def kind_of(part: Subject) -> Kind:
    """The kind of a part, from its base class.

    Raises:
        TypeError: it is a part of no kind that the kit knows.
    """
    if isinstance(part, RecipeFile):
        return "recipe"
    from distillzoo.core.extraction import PolicyExtraction
    from distillzoo.core.metric import Metric
    from distillzoo.core.objective import Objective
    from distillzoo.core.subset import ActionSubset
    from distillzoo.core.trajectories import TrajectorySource

    bases: dict[type[Part], Kind] = {
        ActionSubset: "subset",
        Objective: "objective",
        PolicyExtraction: "extraction",
        TrajectorySource: "trajectories",
        Metric: "metric",
    }
    for base, kind in bases.items():
        if isinstance(part, base):
            return kind
    raise TypeError(
        f"The kit checks instances of {', '.join(b.__name__ for b in bases)}, and recipes; this is {part!r}. "
        f"Did you pass the class instead of an instance?"
    )


def checks_of(part: Subject) -> list[Check]:
    """The checks that apply to a part, those of its kind before those that all kinds share."""
    kind = kind_of(part)
    own, shared = f"{__package__}.{kind}", f"{__package__}.part"
    found = [c for c in CHECKS if c.kind == kind and c.applies(part)]
    return sorted(found, key=lambda c: (own, shared).index(c.test.__module__))


def known_failures(part: Subject) -> Mapping[str, str]:
    """What the part's class declares in ``known_failures``.

    Raises:
        CheckFailed: a name there is no check of the part.
    """
    known = {} if isinstance(part, RecipeFile) else type(part).known_failures
    names = [c.name for c in checks_of(part)]
    for name in known:
        if name not in names:
            raise CheckFailed(f"known_failures of {label(part)} names '{name}', which is no check of it: {names}.")
    return known


def label(part: Subject) -> str:
    """A short name with the parameters that differ from their defaults, as in ``TopP(p=0.5)``."""
    if isinstance(part, RecipeFile):
        return part.name
    changed = part.model_dump(exclude_defaults=True)
    inner = {name: label(getattr(part, name)) for name in changed if isinstance(getattr(part, name), Part)}
    return f"{type(part).__name__}({', '.join(f'{k}={v}' for k, v in (changed | inner).items())})"


@dataclass(frozen=True)
class Outcome:
    """What one check found on one part."""

    part: Subject
    check: Check
    status: Literal["passed", "failed", "known"]
    message: str = ""


def outcomes(parts: Iterable[Subject]) -> Iterator[Outcome]:
    """Run every check that applies. A known failure that passes is a failure: its declaration is out of date."""
    for part in parts:
        known = known_failures(part)
        for one in checks_of(part):
            yield _outcome(part, one, known.get(one.name))


def _outcome(part: Subject, one: Check, reason: str | None) -> Outcome:
    try:
        one(part)
    except CheckFailed as error:
        return Outcome(part, one, "failed" if reason is None else "known", reason or str(error))
    except Exception as error:  # a stranger's part may raise anything, and the other checks should still run
        return Outcome(part, one, "failed" if reason is None else "known", reason or f"{type(error).__name__}: {error}")
    if reason is not None:
        return Outcome(part, one, "failed", f"It passes, and known_failures says it doesn't: {reason}")
    return Outcome(part, one, "passed")


def conform(kind: Kind, part: Subject) -> list[Outcome]:
    """Run all checks on a part of the given kind.

    Raises:
        CheckFailed: at least one check failed; the message holds all of them.
        TypeError: the part is of another kind.
    """
    if kind_of(part) != kind:
        raise TypeError(f"{label(part)} is of the kind {kind_of(part)}, and this runs the checks of the kind {kind}.")
    found = list(outcomes([part]))
    failed: dict[str, list[str]] = {}
    for o in found:
        if o.status == "failed":  # one fault may show in many checks with the same message
            failed.setdefault(o.message, []).append(o.check.name)
    if failed:
        count = sum(map(len, failed.values()))
        lines = [f"- {', '.join(names)}: {message}" for message, names in failed.items()]
        raise CheckFailed("\n".join([f"{label(part)} fails {count} of {len(found)} checks.", *lines]))
    return found
