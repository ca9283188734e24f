"""``leaderboard.md`` for readers and ``leaderboard.csv`` for programs."""

import csv
import io
import re
from collections.abc import Iterable, Sequence
from typing import Any, Final

from distillzoo.benchmarks.harness.row import Row
from distillzoo.benchmarks.leaderboard.claims import Race, races
from distillzoo.benchmarks.leaderboard.standings import COSTS, Standing, decidable, standings
from distillzoo.benchmarks.leaderboard.table import Table
from distillzoo.benchmarks.leaderboard.words import ends, figure, sentence, short
from distillzoo.benchmarks.statistics.bootstrap import Interval, label
from distillzoo.core.metric import ARROWS

SPECIAL: Final = re.compile(r"([\\`*_{}\[\]<>&#|~!])")
"""Characters that Markdown, or HTML within it, gives a meaning."""

OF_THE_ROW: Final = (
    *("suite", "suite_version", "suite_sha256", "pair", "hardware", "algo", "subset", "recipe_version", "seed"),
    *("status", "error", "config_sha256", "git", "dirty", "device"),
)

OF_THE_COST: Final = (
    *("training_seconds", "sampling_seconds", "seconds", "student_tokens", "sampled_tokens", "teacher_tokens"),
    *("tokens_per_second", "peak_memory_bytes"),
)


def markdown(tables: Sequence[Table], baseline: str, targets: Sequence[str]) -> str:
    """A table for each group of rows that may be compared, and the races for final scores."""
    parts = ["# distillzoo leaderboard\n", "Means over seeds, with 95% bootstrap intervals over trainings.\n"]
    for table in tables:
        key, ranked = table.key, standings(table, baseline)
        parts += [
            f"## {_plain(key.suite)} {key.version}, {_plain(key.pair)}, on {_plain(key.hardware)}\n",
            _markdown_table(table, ranked, baseline),
        ]
        parts += [f"Answers sampled at {_plain(key.decodings)}; data {key.data[:12]}.\n"]
        parts += [f"With {_plain(', '.join(table.changes))}, so not the suite as it is.\n"] if table.changes else []
        parts += [f"{_plain(note)}\n" for note in table.notes]
        if table.line(baseline) is None:
            parts.append(f"Nothing is compared: no algorithm here is called {_plain(baseline)}.\n")
        parts += [_race(race) for race in races(table, [standing.line.label for standing in ranked], targets)]
    return "\n".join(parts)


def _markdown_table(table: Table, ranked: Sequence[Standing], baseline: str) -> str:
    columns = (*table.headline, *table.others)
    compared = any(standing.against for standing in ranked)
    heads = ["algorithm"]
    if len(table.headline) > 1:
        lead = table.headline[0]
        where = f"{len(table.headline)} tasks, {lead.decoding}"
        heads += [f"{word} of {lead.label}{ARROWS.get(lead.direction, '')} ({where})" for word in ("mean", "IQM")]
    heads += [f"{c.label}{ARROWS.get(c.direction, '')} ({c.task}, {c.decoding})" for c in columns]
    tested = decidable(ranked)
    heads += [f"P(better than {baseline})"] if compared else []
    heads += ["p, adjusted"] if tested else []
    heads += [*map(str, COSTS), "seeds", "from"]
    lines = []
    for standing in ranked:
        cells = [standing.line.label]
        if len(table.headline) > 1:
            cells += [_with_ends(found, columns[0].digits) for found in (standing.headline, standing.iqm)]
        cells += [_with_ends(standing.scores[column], column.digits) for column in columns]
        if compared:
            cells.append("" if standing.against is None else figure(standing.against.improvement.value, 2))
        if tested:
            cells.append("" if standing.against is None else figure(standing.against.adjusted, 3))
        failed, first = len(standing.line.failed), standing.line.first
        cells += [short(standing.costs[head]) for head in COSTS]
        cells += [label(len(standing.line.done)) + (f", {failed} failed" if failed else "")]
        origins = (f"{one.distribution} {one.version}" for one in (first.recipe, *first.parts.values()))
        cells += [", ".join(dict.fromkeys(origins))]
        lines.append(cells)
    before = 3 if len(table.headline) > 1 else 1
    for name, scores in table.references.items():
        cells = [name, *[""] * (before - 1), *(figure(scores.get(column), column.digits) for column in columns)]
        lines.append([*cells, *[""] * (len(heads) - len(cells))])
    return _drawn(heads, lines)


def _drawn(heads: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    rule = ["---", *["---:"] * (len(heads) - 1)]
    plain = [[_plain(cell) for cell in line] for line in (heads, *lines)]
    return "".join(f"| {' | '.join(line)} |\n" for line in (plain[0], rule, *plain[1:]))


def _race(race: Race) -> str:
    """What each algorithm needs to the target: medians over seeds, and ratios to the reference's with intervals."""
    reference = race.reference
    lines = [f"### To {_plain(reference)}'s final score, {figure(race.target, 2)} ({_plain(race.metric)})\n"]
    for one in race.judged:
        assert race.published is not None, "nothing is judged without a claim"
        claimed = f"arXiv:2505.20335 claims that {one.name} {race.published.words}"
        same = f"The same measure for {one.runner.name}, of which the paper says nothing"
        lines.append(
            f"{_plain(claimed if one.by_the_paper else same)}. {one.runner.share} seeds get there; a ratio of "
            f"{figure(race.published.claim.at_most, 2)} or less confirms.\n"
        )
        for measure, verdict in one.verdicts.items():
            needed = sentence(one.runner.reach[measure].ratio, reference)
            lines.append(f"- **{verdict.capitalize()}** in {measure}: {_plain(needed)}.")
        lines.append("")
    measures = list(race.runners[0].reach)
    heads = ["algorithm", "seeds that reach it"]
    for measure in measures:
        heads += [measure, f"÷ {reference}'s"]
    table = []
    for runner in race.runners:
        if runner.reached > 0 or runner.name == reference:
            cells = [runner.name, runner.share]
            for reach in runner.reach.values():
                cells += [short(reach.median), "1" if runner.name == reference else _with_ends(reach.ratio, 2)]
            table.append(cells)
    return "\n".join([*lines, _drawn(heads, table)])


def _with_ends(interval: Interval | None, digits: int) -> str:
    value = figure(interval.value if interval else None, digits)
    between = ends(interval, digits)
    return f"{value} ({between})" if between else value


def _plain(text: str) -> str:
    """Text that Markdown shows as it is, on one line."""
    return SPECIAL.sub(r"\\\1", " ".join(text.split()))


def long_form(tables: Iterable[Table]) -> str:
    """CSV with a line for each score of each cell, and one for each cell without scores."""
    out = io.StringIO()
    names = ["task", "decoding", "metric", "direction", "n", "value"]
    heads = [*OF_THE_ROW, "recipe_distribution", "recipe_distribution_version", *names, *OF_THE_COST]
    writer = csv.DictWriter(out, heads, lineterminator="\n")
    writer.writeheader()
    for row in (cell.row for table in tables for line in table.lines for cell in line.cells):
        shared = _shared(row)
        for score in row.scores:
            writer.writerow(shared | score.model_dump())
        if not row.scores:
            writer.writerow(shared)
    return out.getvalue()


def _shared(row: Row) -> dict[str, Any]:
    costs = row.cost.model_dump() if row.cost else {}
    return {
        **{name: getattr(row, name) for name in OF_THE_ROW},
        "recipe_distribution": row.recipe.distribution,
        "recipe_distribution_version": row.recipe.version,
        **{name: costs.get(name) for name in OF_THE_COST},
    }
