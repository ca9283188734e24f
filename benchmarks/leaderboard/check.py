"""Whether a ``results.jsonl`` may be put beside others."""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from distillzoo.benchmarks.harness.benchmark import Benchmark, benchmark_of
from distillzoo.benchmarks.harness.cell import config_hash
from distillzoo.benchmarks.harness.plan import suite_hash
from distillzoo.benchmarks.harness.row import Row, parse_row
from distillzoo.benchmarks.leaderboard.settings import departures, expected_settings
from distillzoo.benchmarks.leaderboard.source import Cell
from distillzoo.core.errors import UserError, cannot, suggest
from distillzoo.core.registry import Registry

Level = Literal["problem", "warning", "note"]

SHARED: Final = ("teacher", "student_before", "tokenizer", "data")
"""Hashes that every done cell has. These, and those of tasks and corpora, are the same for all cells of a pair."""

OWN: Final = ("student_after", "teacher_cache")
"""Hashes that are the cell's own."""


@dataclass(frozen=True)
class Finding:
    """Something about a submission.

    Attributes:
        line: of the file, from 1; None for what concerns several.
        level: a problem keeps rows from the leaderboard, a warning stands beside them, a note only informs.
        text: what was found and what would be right.
    """

    line: int | None
    level: Level
    text: str


def check(path: Path, registry: Registry) -> list[Finding]:
    """All findings, line by line and then those on the whole.

    Raises:
        UserError: the file cannot be read.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise cannot("read", path, error) from None
    except UnicodeDecodeError:
        raise UserError(f"'{path}' is no UTF-8 text.") from None
    findings, cells = [], []
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                cells.append(Cell(parse_row(line, "row"), path, number))
            except UserError as error:
                findings.append(Finding(number, "problem", str(error)))
    if not cells and not findings:
        findings.append(Finding(None, "problem", "The file has no row."))
    held = [_held(cell, registry) for cell in cells]
    for one in held:
        findings += [Finding(one.cell.line, *found) for found in _of_a_row(one)]
    findings += _of_all(held)
    return findings


@dataclass(frozen=True)
class _Held:
    """A cell and what it is held against.

    Attributes:
        cell: the cell.
        suite: the installed suite of its row, or what keeps it from being that.
        wanted: the row's configuration, as suite and recipe give it; None where nobody here can say.
    """

    cell: Cell
    suite: Benchmark | str
    wanted: dict[str, Any] | None


def _held(cell: Cell, registry: Registry) -> _Held:
    suite = _suite(registry, cell.row)
    return _Held(cell, suite, None if isinstance(suite, str) else expected_settings(cell.row, suite, registry))


Found = tuple[Level, str]


def _of_a_row(held: _Held) -> Iterator[Found]:
    cell, row, suite = held.cell, held.cell.row, held.suite
    found = config_hash(row.config)
    if found != row.config_sha256:
        yield "problem", f"config_sha256 is {row.config_sha256[:12]}, and config hashes to {found[:12]}."
    if row.dry_run:
        yield "problem", "The row is of a dry run, which is no result."
    if row.dirty:
        yield "warning", "The checkout had uncommitted changes: its commit does not say what ran."
    if row.outputs is not None and not cell.names_answers_below:
        yield "problem", f"outputs is '{row.outputs}', which leads out of the folder of results.jsonl."
    if isinstance(suite, str):
        yield "problem", suite
    if row.status == "failed":
        yield "warning", f"The cell failed: {row.error or 'no error was kept'}"
        return
    if row.config.get("seed") != row.seed:
        yield "problem", f"seed is {row.seed}, and config.seed is {row.config.get('seed')!r}."
    if not isinstance(suite, str):
        if row.trials != suite.trials.get(row.algo, row.trials):
            yield "problem", f"trials is {row.trials}, and the suite says {suite.trials[row.algo]}."
        yield from (("problem", text) for text in departures(row, suite, held.wanted))
        yield from _measured(row, suite)


def _suite(registry: Registry, row: Row) -> Benchmark | str:
    """The installed suite of a row, or what keeps it from being that."""
    if row.suite not in registry.names("benchmark"):
        return f"The suite '{row.suite}' is not installed.{suggest(row.suite, registry.names('benchmark'))}"
    suite, path = benchmark_of(registry, row.suite)
    if suite.version != row.suite_version:
        return f"The row is of version {row.suite_version} of {row.suite}, and version {suite.version} is installed."
    if row.changes:
        return f"With {', '.join(row.changes)} over the suite's settings, this is no row of {row.suite}."
    own = suite_hash(path, ())
    if own != row.suite_sha256:
        return f"suite_sha256 is {row.suite_sha256[:12]}, and the installed file's is {own[:12]}."
    if row.pair not in suite.pairs:
        return f"{row.suite} has no pair '{row.pair}'.{suggest(row.pair, suite.pairs)}"
    return suite


def _measured(row: Row, suite: Benchmark) -> Iterator[Found]:
    wanted = {name: (one.temperature, one.top_p) for name, one in suite.decodings.items()}
    used = {name: (one.temperature, one.top_p) for name, one in row.decodings.items()}
    if used != wanted:
        yield "problem", f"decodings (temperature, top-p) are {used}, and the suite's are {wanted}."
    scores = Counter((score.task, score.decoding, score.metric) for score in row.scores)
    complete = {
        (task, name, metric) for task in suite.tasks for name, one in suite.decodings.items() for metric in one.metrics
    }
    for place in sorted(complete - set(scores)):
        yield "problem", f"A score is missing: {', '.join(place)}."
    for place, count in scores.items():
        if place not in complete:
            yield "problem", f"A score is not the suite's: {', '.join(place)}."
        elif count > 1:
            yield "problem", f"A score is there {count} times: {', '.join(place)}."
    for name, task in suite.tasks.items():
        counts = {score.n for score in row.scores if score.task == name}
        if len(counts) > 1 or max(counts, default=0) > (task.limit or math.inf):
            most = "" if task.limit is None else f", at most {task.limit}"
            yield "problem", f"n of {name} is {', '.join(map(str, sorted(counts)))}, and should be one number{most}."
    if row.cost is None:
        yield "problem", "cost is missing."
    for name in SHARED:
        if name not in row.hashes:
            yield "problem", f"hashes.{name} is missing."
    for name, pinned in suite.hashes.items():
        if row.hashes.get(name, pinned) != pinned:
            yield "problem", f"hashes.{name} is {row.hashes[name][:12]}, and the suite pins {pinned[:12]}."


def _of_all(held: Sequence[_Held]) -> Iterator[Finding]:
    cells = [one.cell for one in held]
    yield from _seeds(held)
    yield from _same_within_a_pair(cells)
    failed = sum(cell.row.status == "failed" for cell in cells)
    if failed:
        yield Finding(None, "warning", f"{failed} of {len(cells)} cells failed.")
    unsure = (one.cell.row for one in held if one.wanted is None and not isinstance(one.suite, str))
    unknown = sorted({row.algo for row in unsure if row.status == "done"})
    if unknown:
        text = "not installed as they were, so only what the suite fixes was held against their settings"
        yield Finding(None, "note", f"{', '.join(unknown)}: {text}.")
    published = [one.cell for one in held if not isinstance(one.suite, str) and one.suite.answers_may_be_published]
    absent = sum(cell.row.outputs is not None and cell.answers is None for cell in published)
    if absent:
        text = f"The answers of {absent} of {len(cells)} cells are not beside the file, and nobody can read them."
        yield Finding(None, "warning", text)
    origins = {f"{part.distribution} {part.version}" for cell in cells for part in _parts(cell.row)}
    if origins:
        yield Finding(None, "note", f"Parts came from {', '.join(sorted(origins))}.")


def _seeds(held: Sequence[_Held]) -> Iterator[Finding]:
    """Each seed of an algorithm once, and all that the suite asks for."""
    groups: dict[tuple[str, str, str], dict[int, _Held]] = {}
    for one in held:
        row = one.cell.row
        seeds = groups.setdefault((row.suite, row.pair, row.name), {})
        before = seeds.setdefault(row.seed, one)
        if before is not one:
            text = f"{row.name} with seed {row.seed} on {row.pair} is on line {before.cell.line} too."
            yield Finding(one.cell.line, "problem", text)
    for (name, pair, algorithm), seeds in groups.items():
        suite = next(iter(seeds.values())).suite
        if isinstance(suite, str):
            continue
        missing = sorted(set(range(suite.seeds)) - set(seeds))
        if missing:
            text = f"{algorithm} on {pair} lacks the seeds {', '.join(map(str, missing))} of {name}'s {suite.seeds}."
            yield Finding(None, "problem", text)
        for seed in sorted(set(seeds) - set(range(suite.seeds))):
            yield Finding(seeds[seed].cell.line, "problem", f"{name} has the seeds 0 to {suite.seeds - 1}, not {seed}.")


def _same_within_a_pair(cells: Sequence[Cell]) -> Iterator[Finding]:
    first: dict[tuple[str, str, str], tuple[str, int]] = {}
    for cell in cells:
        for name, found in cell.row.hashes.items():
            if name in OWN:
                continue
            other, line = first.setdefault((cell.row.suite, cell.row.pair, name), (found, cell.line))
            if other != found:
                yield Finding(
                    cell.line, "problem", f"hashes.{name} is {found[:12]}, and on line {line} it is {other[:12]}."
                )


def _parts(row: Row) -> list[Any]:
    return [row.recipe, *row.parts.values(), *row.metrics.values()]
