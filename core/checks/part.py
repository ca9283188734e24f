"""Checks that every kind of part shares."""

import pickle
import re
from typing import Any, Final

import yaml

from distillzoo.core.checks.check import CheckFailed, check
from distillzoo.core.part import Part

FORMULA: Final = re.compile(r"\S\s*[=~]\s*\S")
SHAPE: Final = re.compile(r"\[[A-Z]\w*(, ?\w+)*\]")


@check("subset", "objective", "extraction", "trajectories", "metric")
def round_trip(part: Part) -> None:
    """The parameters written into a configuration file and read back give the same part."""
    inner = {name: getattr(part, name) for name in type(part).model_fields if isinstance(getattr(part, name), Part)}
    try:
        text = yaml.safe_dump(part.model_dump(mode="json", exclude=set(inner)))
        back = type(part).configure("part", {**yaml.safe_load(text), **inner})
    except Exception as error:
        raise CheckFailed(f"The part can't be built from its own configuration: {error}") from None
    if back.model_dump() != part.model_dump():
        raise CheckFailed(
            f"The part changes on its way through a configuration file: {part!r} becomes {back!r}. Most likely a "
            f"parameter's type has no YAML form: use numbers, texts, lists, or None."
        )


@check("subset", "objective", "extraction", "trajectories", "metric")
def picklable(part: Part) -> None:
    """The part goes through pickle unchanged, as to another process."""
    try:
        back = pickle.loads(pickle.dumps(part))
    except Exception as error:
        raise CheckFailed(
            f"The part can't be pickled: {error}. Most likely its class is made inside a function, or a field holds a "
            f"lambda or an open file."
        ) from None
    if back != part:
        raise CheckFailed(
            "The part changes on its way through pickle. Most likely it keeps something outside its fields."
        )


def _documentation(part: Part) -> str:
    doc: Any = type(part).__dict__.get("__doc__")
    if not doc:
        raise CheckFailed(f"{type(part).__name__} has no docstring: give intent, formula, shapes and source.")
    return str(doc)


@check("subset", "objective", "extraction", "trajectories", "metric")
def documented(part: Part) -> None:
    """The docstring gives the formula, and every parameter says what it is."""
    text = _documentation(part)
    if not FORMULA.search(text.partition("References:")[0]):
        raise CheckFailed(
            f"The docstring of {type(part).__name__} holds no formula: write it with = or ~, as in "
            f"'A_k(s) = {{a_1, ..., a_k}}'."
        )
    for name, field in type(part).model_fields.items():
        if not field.description:
            raise CheckFailed(f"The parameter '{name}' has no description: give one by Field(..., description=...).")


@check("subset", "objective", "extraction")
def shapes_documented(part: Part) -> None:
    """The docstring names the shapes."""
    if not SHAPE.search(_documentation(part)):
        raise CheckFailed(f"The docstring of {type(part).__name__} names no shape, such as [N, K]: say what comes out.")


@check("subset", "objective", "extraction", "trajectories")
def source_documented(part: Part) -> None:
    """The docstring names the source."""
    if not re.search(r"References:\s*\S", _documentation(part)):
        raise CheckFailed(
            f"The docstring of {type(part).__name__} has no 'References:' with the paper, or with where it comes from."
        )
