"""Every part of the zoo passes the conformance kit."""

from pathlib import Path

import pytest

from distillzoo.core.checks import CHECKS, parametrize_with_checks, parts_of
from distillzoo.core.checks.run import CHECKED_KINDS
from distillzoo.core.registry import installed

PARTS = [part for kind in CHECKED_KINDS for entry in installed().entries(kind) for part in parts_of(installed(), entry)]


@parametrize_with_checks(PARTS)
def test_conformance(check):
    check()


def test_every_kind_has_checks_and_parts():
    for kind in CHECKED_KINDS:
        assert [c for c in CHECKS if c.kind == kind], kind
        assert list(installed().entries(kind)), kind


def test_names_and_rules_are_given_once():
    keys = [(c.kind, c.name) for c in CHECKS]
    assert len(set(keys)) == len(keys)
    assert all(c.rule.endswith(".") for c in CHECKS)


@pytest.mark.parametrize("wrong", [object(), Path])
def test_what_is_no_part_is_refused(wrong):
    from distillzoo.core.checks import kind_of

    with pytest.raises(TypeError, match="Did you pass the class"):
        kind_of(wrong)
