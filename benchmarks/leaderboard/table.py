"""Which rows may stand in one table, and which of them are one algorithm."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np

from distillzoo.benchmarks.harness.benchmark import Benchmark
from distillzoo.benchmarks.harness.row import TASK, PartUsed, Row
from distillzoo.benchmarks.leaderboard.source import Cell, same_suite
from distillzoo.benchmarks.statistics.bootstrap import COVERAGE
from distillzoo.benchmarks.statistics.scores import Values
from distillzoo.core.errors import UserError
from distillzoo.core.registry import Registry

DATA: Final = ("tokenizer", "data")
"""Hashes of what a cell was trained on and scored on, beside those of its tasks."""

BEYOND: Final = 1.25
"""Times the median of student tokens from which an algorithm is named for them."""


class Key(NamedTuple):
    """What all rows of a table share: figures that differ in any of it are not compared.

    Attributes:
        suite: the benchmark.
        version: its version.
        sha256: of its file and the settings over it.
        pair: of models.
        hardware: class of machine.
        decodings: how answers were sampled, in words.
        data: hash of the rows' hashes of tokenizer, training data and tasks.
    """

    suite: str
    version: int
    sha256: str
    pair: str
    hardware: str
    decodings: str
    data: str


@dataclass(frozen=True)
class Column:
    """A score: one metric on one task under one decoding."""

    task: str
    decoding: str
    metric: str
    direction: str
    label: str
    digits: int

    @property
    def place(self) -> tuple[str, str, str]:
        return self.task, self.decoding, self.metric

    @property
    def sign(self) -> int:
        """What makes higher values the better ones."""
        return -1 if self.direction == "lower" else 1


@dataclass(frozen=True)
class Line:
    """One algorithm of a table with its cells, in the order of their seeds."""

    label: str
    cells: tuple[Cell, ...]

    @property
    def first(self) -> Row:
        """A cell that says what the algorithm is: one that is done, if any."""
        return (self.done or self.failed)[0]

    @property
    def done(self) -> list[Row]:
        return [cell.row for cell in self.cells if cell.row.status == "done"]

    @property
    def failed(self) -> list[Row]:
        return [cell.row for cell in self.cells if cell.row.status == "failed"]

    @property
    def distributions(self) -> list[str]:
        """Names of the distributions that the recipe and its parts came from, the recipe's first."""
        return list(dict.fromkeys([self.first.recipe.distribution, *(p.distribution for p in self.parts.values())]))

    @property
    def parts(self) -> dict[str, PartUsed]:
        return self.first.parts

    def scores(self, columns: Sequence[Column]) -> dict[int, list[float]]:
        """By seed, the values in the columns' order; a seed that lacks one of them is left out."""
        found = {}
        for row in self.done:
            values = [row.score(column.task, column.decoding, column.metric) for column in columns]
            if None not in values:
                found[row.seed] = [value for value in values if value is not None]
        return found

    def matrix(self, columns: Sequence[Column], seeds: Sequence[int] | None = None) -> Values | None:
        """``[seeds, columns]``, higher is better; None without a seed that has all of them."""
        found = self.scores(columns)
        chosen = [found[seed] for seed in (found if seeds is None else seeds)]
        return np.array(chosen, float) * [column.sign for column in columns] if chosen else None


@dataclass(frozen=True)
class Table:
    """Algorithms that may be compared, and the scores that they have.

    Attributes:
        headline: the ranking score, a column a task.
        others: the other scores.
        suite: the installed benchmark, None where this very file is not installed.
        notes: what a reader has to know before comparing lines.
    """

    key: Key
    lines: tuple[Line, ...]
    headline: tuple[Column, ...]
    others: tuple[Column, ...]
    suite: Benchmark | None
    notes: tuple[str, ...]

    @property
    def changes(self) -> list[str]:
        """Settings over the suite's, which all rows share, as the suite's hash holds them."""
        return self.lines[0].first.changes

    @property
    def references(self) -> dict[str, dict[Column, float | None]]:
        """Scores of the models that the trainings begin from, by name."""
        known = next((row.references for line in self.lines for row in line.done if row.references), {})
        return {
            name: {
                column: next(
                    (s.value for s in scores if (s.task, s.decoding, s.metric) == column.place),
                    None,
                )
                for column in (*self.headline, *self.others)
            }
            for name, scores in known.items()
        }

    def line(self, name: str | None) -> Line | None:
        """The line of a label, else that of an algorithm: of several the one with most seeds, then the last version."""
        found = [line for line in self.lines if name in (line.label, line.first.name)]
        return max(found, key=lambda line: (line.label == name, len(line.done), line.label), default=None)


def tables_of(cells: Sequence[Cell], registry: Registry) -> list[Table]:
    """All tables, in the order of their keys, whatever the order of the rows.

    Raises:
        UserError: a seed of an algorithm is there twice.
    """
    groups: dict[Key, list[Cell]] = {}
    for cell in cells:
        groups.setdefault(_key(cell, cells), []).append(cell)
    return [_table(key, groups[key], registry) for key in sorted(groups)]


def _key(cell: Cell, cells: Sequence[Cell]) -> Key:
    """A cell that failed before it had a device counts as run where the others of its matrix did."""

    own = _own_key(cell.row)
    if cell.row.device:
        return own
    beside = (_own_key(other.row) for other in cells if other.file == cell.file and other.row.device)
    return next((other for other in beside if other[:4] == own[:4]), own)


def _own_key(row: Row) -> Key:
    decodings = "; ".join(
        f"{name}: temperature {one.temperature:g}, top-p {one.top_p:g}" for name, one in sorted(row.decodings.items())
    )
    data = {name: found for name, found in row.hashes.items() if name in DATA or name.startswith(TASK)}
    digest = hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()
    return Key(row.suite, row.suite_version, row.suite_sha256, row.pair, row.hardware, decodings, digest)


def _table(key: Key, cells: list[Cell], registry: Registry) -> Table:
    lines = _lines(cells)
    suite = same_suite(registry, cells[0].row)
    columns = _columns(lines, registry)
    if suite is not None:
        metric, decoding = suite.headline.metric, suite.headline.decoding
    else:  # without the suite nobody says what ranks: its first score does
        metric, decoding = (columns[0].metric, columns[0].decoding) if columns else ("", "")
    headline = tuple(c for c in columns if (c.metric, c.decoding) == (metric, decoding))
    others = tuple(c for c in columns if c not in headline)
    return Table(key, lines, headline, others, suite, tuple(_notes(lines)))


def _lines(cells: list[Cell]) -> tuple[Line, ...]:
    """Cells by algorithm. The same name from another distribution or of another version is another algorithm."""
    groups: dict[tuple[str, str, str, int], dict[int, Cell]] = {}
    for cell in cells:
        row = cell.row
        one = groups.setdefault((row.name, row.recipe.distribution, row.recipe.version, row.recipe_version), {})
        if row.seed in one:
            raise UserError(
                f"{row.name} with seed {row.seed} on {row.pair} is there twice, {one[row.seed].where} and "
                f"{cell.where}: leave one of the rows out."
            )
        one[row.seed] = cell
    names = [name for name, *_ in groups]
    lines = []
    for (name, distribution, version, recipe_version), one in sorted(groups.items()):
        label = name if names.count(name) == 1 else f"{name} ({distribution} {version}, recipe {recipe_version})"
        lines.append(Line(label, tuple(one[seed] for seed in sorted(one))))
    return tuple(lines)


def _columns(lines: Sequence[Line], registry: Registry) -> list[Column]:
    found: dict[tuple[str, str, str], Column] = {}
    for row in (row for line in lines for row in line.done):
        for score in row.scores:
            place = (score.task, score.decoding, score.metric)
            if place not in found:
                label, digits = wording(registry, score.metric)
                found[place] = Column(*place, score.direction, label, digits)
    return list(found.values())


def wording(registry: Registry, metric: str) -> tuple[str, int]:
    """A metric's label and decimals; its name where it is not installed."""
    if metric not in registry.names("metric"):
        return metric, 3
    found = registry.get("metric", metric)
    return found.label, found.digits


def _notes(lines: Sequence[Line]) -> list[str]:
    """What the rows' keys do not show and a reader has to know."""
    notes = []
    for kind in ("teacher", "student_before"):
        by_hash: dict[str, list[str]] = {}
        for line in lines:
            for row in line.done:
                names = by_hash.setdefault(row.hashes.get(kind, "unknown"), [])
                if line.label not in names:
                    names.append(line.label)
        if len(by_hash) > 1:
            shares = "; ".join(f"{found[:12]}: {', '.join(names)}" for found, names in sorted(by_hash.items()))
            notes.append(f"The hash of {kind.replace('_', ' ')} is not the same in all rows ({shares}).")
    return [*notes, *_few_seeds(lines), *_beyond_the_budget(lines)]


def _few_seeds(lines: Sequence[Line]) -> Iterator[str]:
    most = max(len(line.done) for line in lines)
    if most in COVERAGE:
        yield (
            f"No algorithm has more than {most} seeds: an interval over so few holds the mean in about "
            f"{COVERAGE[most]} of 100 cases, not in 95. It shows a spread and decides nothing."
        )


def _beyond_the_budget(lines: Sequence[Line]) -> Iterator[str]:
    """Suites fix optimiser steps, and what a step trains on may differ: sampled answers are longer, texts are added."""
    tokens = {line.label: np.mean([r.cost.student_tokens for r in line.done if r.cost]) for line in lines if line.done}
    usual = float(np.median(list(tokens.values()))) if tokens else 0.0
    beyond = [f"{label} {count / usual:.1f}" for label, count in tokens.items() if count > BEYOND * usual > 0]
    if beyond:
        yield f"Steps are equal, student tokens are not. Times the median of the algorithms here: {', '.join(beyond)}."
