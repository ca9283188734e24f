"""Runs a row's cell again and holds the scores beside those of the row."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np

from distillzoo.benchmarks.harness.benchmark import Benchmark, benchmark_of
from distillzoo.benchmarks.harness.cell import ROW
from distillzoo.benchmarks.harness.executors import chosen_executor
from distillzoo.benchmarks.harness.matrix import read_row, run_matrix
from distillzoo.benchmarks.harness.plan import plan, suite_hash
from distillzoo.benchmarks.harness.row import Row, Score
from distillzoo.benchmarks.harness.view import View
from distillzoo.benchmarks.leaderboard.source import Cell
from distillzoo.benchmarks.leaderboard.words import figure
from distillzoo.core.config import assignments
from distillzoo.core.errors import UserError, suggest
from distillzoo.core.recipe import Recipe
from distillzoo.core.registry import Registry

Outcome = Literal["exactly", "within the seeds", "not"]


REFUSED: Final = {"trust_remote_code", "wandb"}
"""Fields that would run a stranger's code or send something elsewhere."""

CIRCUMSTANCES: Final = ("git", "dirty", "device", "versions", "hardware", "threads")
"""Facts of a row under which the same cell gives the same numbers on a CPU."""


@dataclass(frozen=True)
class Again:
    """A row and the same cell run again.

    Attributes:
        before: the row.
        now: the new one.
        spread: standard deviation of the headline over the row's seeds; None with fewer than two.
        ran: False where an earlier call had run the cell already.
    """

    before: Row
    now: Row
    suite: Benchmark
    spread: float | None
    ran: bool

    @property
    def scores(self) -> list[tuple[Score, float | None]]:
        """The row's scores, each with the new value."""
        return [(score, self.now.score(score.task, score.decoding, score.metric)) for score in self.before.scores]

    @property
    def differences(self) -> list[str]:
        """What the two cells began from and was not the same."""
        found = []
        if self.before.config_sha256 != self.now.config_sha256:
            found.append("The configuration is not the same.")
        for what, before in self.before.hashes.items():
            now = self.now.hashes.get(what, "none")
            if what not in self._made and now != before:
                found.append(f"The hash of {what} is not the same: {before[:12]}, now {now[:12]}.")
        return found

    @property
    def same_circumstances(self) -> bool:
        """Whether a CPU computes the same numbers again."""
        same = all(getattr(self.before, name) == getattr(self.now, name) for name in CIRCUMSTANCES)
        return same and not self.before.dirty

    @property
    def _made(self) -> set[str]:
        """Hashes of what the cells made themselves; another machine's starts are not the same to the last bit."""
        starts = {"student": "student_before", "teacher": "teacher"}
        config = self.before.config
        begun = {starts[which] for which in starts if config[which]["model"] == f"start:{which}"}
        return {"student_after", "teacher_cache"} | begun

    @property
    def outcome(self) -> Outcome:
        """Whether the scores are equal or, on the headline, no further apart than seeds are: two deviations.

        The same commit, libraries and class of machine have no excuse: there only equal scores will do on a CPU. What
        began from other models or data, or under another configuration, reproduces nothing.
        """
        if self.differences:
            return "not"
        if all(score.value == now for score, now in self.scores):
            return "exactly"
        if self.same_circumstances and self.before.device.startswith("cpu"):
            return "not"
        before, now = (_headline(row, self.suite) for row in (self.before, self.now))
        if before is None or now is None or self.spread is None:
            return "not"
        return "within the seeds" if abs(now - before) <= 2 * self.spread else "not"


def chosen(cells: Sequence[Cell], which: str, seed: int) -> Row:
    """The row on a line, or of a name under a seed.

    Raises:
        UserError: there is none, there are several, or it failed and has nothing to compare.
    """
    if which.isdecimal():
        found = [cell for cell in cells if cell.line == int(which)]
        if not found:
            raise UserError(f"There is no row on line {which}.")
    else:
        found = [cell for cell in cells if (cell.row.name, cell.row.seed) == (which, seed)]
        if not found:
            names = [cell.row.name for cell in cells]
            seeds = f" with seed {seed}." if which in names else f".{suggest(which, names)}"
            raise UserError(f"There is no row of {which}{seeds}")
    if len(found) > 1:
        lines = ", ".join(str(cell.line) for cell in found)
        raise UserError(f"Several rows are of {which} with seed {seed}: choose one of the lines {lines}.")
    row = found[0].row
    if row.status == "failed":
        raise UserError(f"The cell of line {found[0].line} failed, so there is no score to compare: {row.error}")
    return row


def reproduce(row: Row, cells: Sequence[Cell], inputs: Mapping[str, str], out: Path, registry: Registry) -> Again:
    """Run a row's cell again in ``out``, or go on with it there.

    Args:
        row: what to run again.
        cells: the rows beside it, for the spread of its seeds.
        inputs: values of the benchmark's inputs.
        out: folder of the new matrix.
        registry: of the parts.

    Raises:
        UserError: the benchmark or the recipe is not installed as it was, an input is missing, or the cell failed.
    """
    for change in row.changes:
        asked = _keys(assignments((change,))) & REFUSED
        if asked:
            raise UserError(
                f"The row was made with --set {change}, and {min(asked)} is not taken from a stranger's row. Run it "
                f"yourself if you trust it."
            )
    suite, file = benchmark_of(registry, row.suite, row.changes)
    if suite_hash(file, row.changes) != row.suite_sha256:
        raise UserError(
            f"The row was made with another file of {row.suite} than the installed one (version {suite.version}): "
            f"install {row.suite_distribution}."
        )
    recipe = Recipe.read(registry.get("recipe", row.algo))
    if recipe.version != row.recipe_version:
        raise UserError(
            f"The row is of version {row.recipe_version} of the recipe {row.algo}, and version {recipe.version} is "
            f"installed: install {row.recipe.distribution} {row.recipe.version}."
        )
    device = str(row.config.get("device", "auto"))
    planned = plan(
        registry,
        row.suite,
        suite,
        algos=[row.algo],
        subsets=[row.subset] if row.subset is not None else [],
        pairs=[row.pair],
        seeds=[row.seed],
        inputs=suite.given(inputs),
        changes=tuple(row.changes),
        device=device,
        file=file,
    )
    os.environ["OMP_NUM_THREADS"] = str(row.threads)  # of the cell's process: another number may round otherwise
    with View((suite.headline.metric, suite.headline.decoding), quiet=False) as view:
        standing = run_matrix(planned, out, chosen_executor("local", 1, device), True, view)
    now = read_row(out / "cells" / planned[0].folder / ROW)
    if now.status == "failed":
        raise UserError(f"The cell failed: {now.error}")
    return Again(row, now, suite, _spread(row, cells, suite), not standing.skipped)


def _keys(tree: Any) -> set[str]:
    """All names of fields in a tree, however deep."""
    if isinstance(tree, Mapping):
        return {str(key) for key in tree}.union(*map(_keys, tree.values()))
    return set().union(*map(_keys, tree)) if isinstance(tree, list) else set()


def comparison(again: Again) -> str:
    """Scores then and now, and what they amount to."""
    lines = [] if again.ran else ["The cell was run again by an earlier call; these are its scores."]
    width = max(len(f"{s.task}, {s.decoding}, {s.metric}") for s, _ in again.scores) if again.scores else 0
    lines += [f"{'':{width}}  {'the row':>10}  {'now':>10}"] if again.scores else []
    for score, now in again.scores:
        name = f"{score.task}, {score.decoding}, {score.metric}"
        lines.append(f"{name:{width}}  {figure(score.value, 4):>10}  {figure(now, 4):>10}")
    lines += again.differences
    if again.before.hardware != again.now.hardware:
        lines.append(f"The row is from {again.before.hardware}, and this is {again.now.hardware}.")
    if again.outcome == "exactly":
        lines.append("Reproduced exactly.")
    elif again.differences:
        lines.append("Not reproduced: this is another run.")
    elif again.outcome == "not" and again.same_circumstances:
        lines.append("Not reproduced: commit, libraries and machine are the same, and so should the scores be.")
    elif again.spread is None:
        lines.append("Not reproduced exactly, and one seed has no spread to hold the difference against.")
    elif again.outcome == "within the seeds":
        lines.append(
            f"Reproduced: the headline differs by less than two deviations over seeds ({again.spread:.3g} each)."
        )
    else:
        lines.append(
            f"Not reproduced: the headline differs by over two deviations over seeds ({again.spread:.3g} each)."
        )
    return "\n".join(lines)


def _spread(row: Row, cells: Sequence[Cell], suite: Benchmark) -> float | None:
    same = [
        c.row for c in cells if (c.row.suite_sha256, c.row.pair, c.row.name) == (row.suite_sha256, row.pair, row.name)
    ]
    values = [value for one in same if (value := _headline(one, suite)) is not None]
    return float(np.std(values, ddof=1)) if len(values) > 1 else None


def _headline(row: Row, suite: Benchmark) -> float | None:
    """Mean over the tasks."""
    values = [row.score(task, suite.headline.decoding, suite.headline.metric) for task in suite.tasks]
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None
