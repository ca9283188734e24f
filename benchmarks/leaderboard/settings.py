"""The settings of a row, held against what suite and recipe give."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, Final

from distillzoo.benchmarks.harness.benchmark import Benchmark
from distillzoo.benchmarks.harness.cell import command, configuration
from distillzoo.benchmarks.harness.plan import Cell
from distillzoo.benchmarks.harness.row import Row
from distillzoo.core.config import merge
from distillzoo.core.errors import UserError
from distillzoo.core.recipe import Recipe
from distillzoo.core.registry import Registry


class _Missing:
    def __repr__(self) -> str:
        return "missing"


MISSING: Final = _Missing()


def departures(row: Row, suite: Benchmark, wanted: Mapping[str, Any] | None) -> Iterator[str]:
    """What of a row's configuration is not as it should be. A cache of the teacher's sets changes no result.

    Args:
        row: the row.
        suite: its benchmark.
        wanted: the whole configuration, of ``expected_settings``; None to hold only what the suite fixes against it.
    """
    used = _leaves(row.config)
    fixed = _leaves(merge(suite.run, suite.pairs[row.pair].run) if wanted is None else wanted)
    for name in sorted(fixed if wanted is None else fixed.keys() | used.keys()):
        here, there = used.get(name, MISSING), fixed.get(name, MISSING)
        if name != "teacher_cache" and here != there:
            yield f"config.{name} is {here!r}, and the suite fixes {there!r}."
    steps = fixed.get("train.max_steps")
    if steps is not None and row.steps != steps:
        yield f"steps is {row.steps}, and the suite's budget is {steps}."


def expected_settings(row: Row, suite: Benchmark, registry: Registry) -> dict[str, Any] | None:
    """The configuration that the suite gives a row's recipe, inputs and starts named as in rows.

    None where recipe or parts are not installed as they were, so that nobody here can say.
    """
    pair = suite.pairs[row.pair]
    models = {
        "teacher": pair.teacher if suite.teacher_start is None else "start:teacher",
        "student": pair.student if suite.student_start is None else "start:student",
    }
    try:
        file = registry.entry("benchmark", row.suite).target
        recipe = registry.entry("recipe", row.algo)
        if (recipe.distribution, recipe.version) != (row.recipe.distribution, row.recipe.version):
            return None
        if Recipe.read(recipe.target).version != row.recipe_version:
            return None
        cell = _cell(row, suite, str(file))
        known = suite.model_copy(update={"settings": suite.settings or pair.architecture})
        config = configuration(replace(cell, changes=()), known, registry, pair, models)
    except UserError:
        return None
    return config.model_dump(mode="json", exclude={"output"})


def command_of(row: Row, suite: Benchmark | None) -> str | None:
    """What runs a row's cell again, made here: the row's own word may come from anyone. None without its suite."""
    if suite is None:
        return None
    return command(_cell(row, suite, ""), row.threads if row.device.startswith("cpu") else None)


def _cell(row: Row, suite: Benchmark, file: str) -> Cell:
    inputs = {name: f"input:{name}" for name in suite.inputs}
    device = str(row.config.get("device", "auto"))
    return Cell(row.suite, file, row.pair, row.algo, row.subset, row.seed, inputs, tuple(row.changes), device)


def _leaves(tree: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """``{"a.b": leaf}`` for ``{"a": {"b": leaf}}``."""
    found: dict[str, Any] = {}
    for name, value in tree.items():
        found |= _leaves(value, f"{above}{name}.") if isinstance(value, Mapping) else {f"{above}{name}": value}
    return found
