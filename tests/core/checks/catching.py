"""What the tables of broken parts share."""

from collections.abc import Sequence

import pytest

from distillzoo.core.checks import CheckFailed, checks_of, label
from distillzoo.core.checks.check import Subject
from distillzoo.core.part import Part

Broken = tuple[str, Part, str]
"""The check that must fail, a part that breaks its rule, and a pattern of the message that names the mistake."""


def each(table: Sequence[Broken]) -> pytest.MarkDecorator:
    """One test for each broken part."""
    ids = [f"{name}-{label(part)}" for name, part, _ in table]
    return pytest.mark.parametrize(("name", "part", "message"), table, ids=ids)


def assert_caught(name: str, part: Subject, message: str) -> None:
    """The check applies to the part and fails with the message."""
    (check,) = (c for c in checks_of(part) if c.name == name)
    with pytest.raises(CheckFailed, match=message):
        check(part)
