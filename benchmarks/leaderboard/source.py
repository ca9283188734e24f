"""The rows of several ``results.jsonl``, each with the place that it came from."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from distillzoo.benchmarks.harness.benchmark import Benchmark
from distillzoo.benchmarks.harness.matrix import RESULTS
from distillzoo.benchmarks.harness.plan import suite_hash
from distillzoo.benchmarks.harness.row import Row, numbered_rows
from distillzoo.core.errors import UserError
from distillzoo.core.registry import Registry


@dataclass(frozen=True)
class Cell:
    """A row, and the file and line that hold it."""

    row: Row
    file: Path
    line: int

    @property
    def where(self) -> str:
        return f"{self.file}, line {self.line}"

    @property
    def answers(self) -> Path | None:
        """The file of its answers, None where it is not there."""
        path = self.file.parent / (self.row.outputs or "")
        return path if self.names_answers_below and path.is_file() else None

    @property
    def names_answers_below(self) -> bool:
        """A row comes from anyone, so its answers must not lie out of the folder of ``results.jsonl``."""
        folder = self.file.parent.resolve()
        return (folder / (self.row.outputs or "")).resolve().is_relative_to(folder)


def read_cells(files: Iterable[Path]) -> list[Cell]:
    """The rows of all files, or of ``results.jsonl`` in a folder.

    Raises:
        UserError: as ``numbered_rows``, and if there is no row, or one is of a dry run.
    """
    paths = [path / RESULTS if path.is_dir() else path for path in files]
    cells = [Cell(row, path, number) for path in paths for number, row in numbered_rows(path)]
    for cell in cells:
        if cell.row.dry_run:
            raise UserError(
                f"{cell.where}: the row is of a dry run, two steps of tiny random models, and no result. Run the "
                f"matrix without --dry-run."
            )
    if not cells:
        raise UserError(f"There is no row in {', '.join(map(str, paths))}.")
    return cells


def same_suite(registry: Registry, row: Row) -> Benchmark | None:
    """The installed benchmark that a row was made with; None where there is none, or its file is another one.

    What a file of the same name says (which score ranks, whether answers may be shown) holds for no other file's rows.
    """
    if row.suite not in registry.names("benchmark"):
        return None
    path = Path(registry.get("benchmark", row.suite))
    return Benchmark.read(path, row.changes) if suite_hash(path, row.changes) == row.suite_sha256 else None
