"""What ``distillzoo bench run`` shows while it works."""

import time
from types import TracebackType

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from distillzoo.benchmarks.harness.matrix import Standing
from distillzoo.benchmarks.harness.plan import Cell
from distillzoo.benchmarks.harness.row import Row


class View:
    """Cells done, running and failed and the time left, on standard error: a line a cell where it is no terminal."""

    def __init__(self, headline: tuple[str, str], quiet: bool) -> None:
        self.headline = headline
        self.console = Console(stderr=True, quiet=quiet, highlight=False)
        self._live = Live(console=self.console, refresh_per_second=2, transient=True)
        self._told: set[Cell] = set()

    def __enter__(self) -> "View":
        if self.console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.console.is_terminal:
            self._live.stop()

    def __call__(self, standing: Standing) -> None:
        if not self._told and not standing.done and not standing.running and standing.skipped:
            self.console.print(f"{standing.skipped} of {standing.total} cells are done already", style="dim")
        for cell, row in standing.done.items():
            if cell not in self._told:
                self._told.add(cell)
                self.console.print(self._line(standing, cell, row))
        if self.console.is_terminal:
            self._live.update(self._panel(standing))

    def _line(self, standing: Standing, cell: Cell, row: Row) -> Text:
        ended = standing.skipped + len(self._told)
        text = Text(f"[{ended}/{standing.total}] {cell.name}: ")
        if row.status == "failed":
            return text.append(f"failed: {row.error}", style="red")
        task = row.scores[0].task
        value = row.score(task, self.headline[1], self.headline[0])
        shown = "–" if value is None else f"{value:.1f}"
        return text.append(
            f"{self.headline[0]} {shown} on {task}, {self.headline[1]}, {row.cost.seconds if row.cost else 0:.0f} s"
        )

    def _panel(self, standing: Standing) -> Group:
        ended = standing.skipped + len(standing.done)
        left = standing.seconds_left
        facts = (
            f"{ended} of {standing.total} cells done, {len(standing.running)} running, {len(standing.failed)} failed"
        )
        rest = "" if left is None else f", {duration(left)} left"
        table = Table.grid(padding=(0, 2))
        for cell, since in standing.running.items():
            table.add_row(Text("running", style="dim"), cell.name, duration(time.perf_counter() - since))
        return Group(ProgressBar(total=max(1, standing.total), completed=ended, width=60), Text(facts + rest), table)


def duration(seconds: float) -> str:
    """Seconds in words of at most two units."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02} min"
