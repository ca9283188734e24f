"""The files of a leaderboard."""

from collections.abc import Sequence
from pathlib import Path

from distillzoo.benchmarks.leaderboard.page import page
from distillzoo.benchmarks.leaderboard.source import read_cells
from distillzoo.benchmarks.leaderboard.standings import DEFAULT_BASELINE
from distillzoo.benchmarks.leaderboard.table import tables_of
from distillzoo.benchmarks.leaderboard.text import long_form, markdown
from distillzoo.core.errors import UserError, suggest
from distillzoo.core.files import write_whole
from distillzoo.core.registry import Registry


def build(
    results: Sequence[Path], out: Path, baseline: str | None, targets: Sequence[str], registry: Registry
) -> list[Path]:
    """Write the page, the Markdown and the CSV of some ``results.jsonl``; the same rows give the same bytes.

    Args:
        results: the files.
        out: folder, made where it is missing.
        baseline: the algorithm that others are compared with; None for ``kd``, in the tables that have it.
        targets: algorithms whose final score the others race for, beside those that the paper names.
        registry: where suites and metrics are looked up.

    Returns:
        The paths of the files.

    Raises:
        UserError: a row is wrong or is there twice, or no table has the baseline or a target.
    """
    tables = tables_of(read_cells(results), registry)
    labels = [line.label for table in tables for line in table.lines]
    for option, names in (("--baseline", [] if baseline is None else [baseline]), ("--target", targets)):
        for name in names:
            if name not in labels:
                raise UserError(f"{option} {name}: no row has that algorithm.{suggest(name, labels)}")
    chosen = baseline or DEFAULT_BASELINE
    texts = {
        "index.html": page(tables, chosen, registry, targets),
        "leaderboard.md": markdown(tables, chosen, targets),
        "leaderboard.csv": long_form(tables),
    }
    for name, text in texts.items():
        write_whole(out / name, text)
    return [out / name for name in texts]
