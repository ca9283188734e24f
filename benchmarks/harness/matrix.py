"""The loop over a matrix: what is done is skipped, a cell that fails is noted, the rest goes on."""

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from filelock import FileLock, Timeout

from distillzoo.benchmarks.harness.cell import CELL, ROW, failed
from distillzoo.benchmarks.harness.executors import LOG, Executor
from distillzoo.benchmarks.harness.plan import Cell
from distillzoo.benchmarks.harness.row import Row, parse_row, write_lines
from distillzoo.core.errors import UserError
from distillzoo.core.files import write_whole

RESULTS: Final = "results.jsonl"
"""All rows of a matrix's folder."""

Watch = Callable[["Standing"], None]
"""Told whenever something changed, and a few times a second."""


class Standing:
    """How far a matrix is.

    Attributes:
        total: cells asked for.
        skipped: cells that were done before.
        done: rows of the cells that ended, the failed ones too.
        running: when each running cell began.
    """

    def __init__(self, total: int, skipped: int, jobs: int) -> None:
        self.total, self.skipped, self.jobs = total, skipped, jobs
        self.done: dict[Cell, Row] = {}
        self.running: dict[Cell, float] = {}
        self.took: list[float] = []

    @property
    def failed(self) -> list[tuple[Cell, Row]]:
        return [(cell, row) for cell, row in self.done.items() if row.status == "failed"]

    @property
    def seconds_left(self) -> float | None:
        """By the mean of the cells that ended; None before the first did."""
        if not self.took:
            return None
        mean, now = sum(self.took) / len(self.took), time.perf_counter()
        left = self.total - self.skipped - len(self.done) - len(self.running)
        begun = sum(max(0.0, mean - (now - since)) for since in self.running.values())
        return (left * mean + begun) / self.jobs


def run_matrix(cells: Sequence[Cell], out: Path, executor: Executor, resume: bool, watch: Watch) -> Standing:
    """Run the cells that have no row yet.

    Every cell writes its row into its own folder, whole or not at all, and ``results.jsonl`` is made of these, so a
    kill at any moment loses at most the cells that are running, which go on from their checkpoints.

    Raises:
        UserError: there are results and ``resume`` is not set, they belong to another benchmark, or another process
            works on them.
    """
    folders = {out / "cells" / cell.folder: cell for cell in cells}
    if not resume and (out / "cells").exists() and any((out / "cells").iterdir()):
        raise UserError(f"'{out}' holds a matrix already. Go on with it with --resume, or choose another --out.")
    (out / "cells").mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(out / ".lock", timeout=0):
            waiting = [folder for folder, cell in folders.items() if not _done(folder, cell, executor.threads)]
            standing = Standing(len(cells), len(cells) - len(waiting), executor.jobs)
            _write_results(out)
            for folder in waiting:
                folder.mkdir(exist_ok=True)
                write_whole(folder / CELL, folders[folder].to_json() + "\n")
                (folder / ROW).unlink(missing_ok=True)
            watch(standing)
            for event in executor.run(waiting):
                if event.folder is not None:
                    cell = folders[event.folder]
                    if event.what == "began":
                        standing.running[cell] = time.perf_counter()
                    else:
                        standing.took.append(time.perf_counter() - standing.running.pop(cell))
                        standing.done[cell] = _row(event.folder, cell, event.status)
                        _write_results(out)
                watch(standing)
            return standing
    except Timeout:
        raise UserError(f"Another process works on the matrix in '{out}'.") from None


def _done(folder: Path, cell: Cell, threads: int | None) -> bool:
    """Whether the cell ended well before. One that was configured otherwise begins anew.

    Raises:
        UserError: its row belongs to something else.
    """
    if not (folder / CELL).exists():
        return False
    before = Cell.read(folder / CELL)
    for what in ("suite", "changes", "inputs", "dry_run"):
        then, now = getattr(before, what), getattr(cell, what)
        if then != now:
            named = "settings (--set)" if what == "changes" else what.replace("_", " ")
            raise UserError(
                f"'{folder}' belongs to a matrix with other {named}: {_said(then)}, and now {_said(now)}. Give the "
                f"same, or choose another --out."
            )
    if not (folder / ROW).exists():
        return False
    row = read_row(folder / ROW)
    expected = failed(cell, "")
    same = ("suite_sha256", "recipe", "recipe_version")
    for name in same:
        if getattr(row, name) != getattr(expected, name):
            raise UserError(
                f"'{folder}' was run with another {name.replace('_', ' ')}: rows of both would not be comparable. "
                f"Choose another --out, or remove the folder to run the cell again."
            )
    if row.status == "failed":
        shutil.rmtree(folder / "run", ignore_errors=True)
    elif threads is not None and row.device.startswith("cpu") and row.threads != threads:
        raise UserError(
            f"'{folder}' ran with {row.threads} thread(s), and cells would have {threads} now: their rows would not "
            f"share a table. Set OMP_NUM_THREADS={row.threads} in the environment, or go on with as many --jobs as "
            f"before."
        )
    return row.status == "done"


def _said(value: Any) -> str:
    if isinstance(value, Mapping):
        value = [f"{name}={one}" for name, one in value.items()]
    return ", ".join(value) or "none" if isinstance(value, list | tuple) else str(value)


def _row(folder: Path, cell: Cell, status: int) -> Row:
    """The row of a cell that ended, also of one whose process was killed."""
    path = folder / ROW
    if not path.exists():
        lines = (
            (folder / LOG).read_text(encoding="utf-8", errors="replace").splitlines() if (folder / LOG).exists() else []
        )
        last = next((line for line in reversed(lines) if line.strip()), "it wrote nothing")
        row = failed(cell, f"the process ended with status {status} and left no row; its last line: {last}")
        write_whole(path, row.model_dump_json(indent=1) + "\n")
    return read_row(path)


def read_row(path: Path) -> Row:
    """A cell's row.

    Raises:
        UserError: the file is damaged or of another schema.
    """
    try:
        return parse_row(path.read_text(encoding="utf-8", errors="replace"), f"'{path}'")
    except UserError as error:
        raise UserError(f"{error} Remove '{path.parent}' to run the cell again.") from None


def _write_results(out: Path) -> None:
    rows = [read_row(path) for path in sorted((out / "cells").glob(f"*/{ROW}"))]
    rows.sort(key=lambda row: row.key)
    write_whole(out / RESULTS, write_lines(rows))
