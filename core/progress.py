"""What a run shows while it works."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from transformers import TrainerCallback


class Reporter:
    """Progress on standard error; a quiet one shows nothing."""

    def __init__(self, quiet: bool = True) -> None:
        self.console = Console(stderr=True, quiet=quiet)
        self._progress: Progress | None = None
        self._task: Any = None

    def notice(self, text: str) -> None:
        """One line for the user."""
        self.console.print(f"[dim]{text}[/dim]", highlight=False)

    @contextmanager
    def stage(self, title: str, total: int | None = None) -> Iterator[None]:
        """A named piece of work with a progress bar; nested stages print a line only."""
        start = time.perf_counter()
        if self._progress is not None:
            yield
            return
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
        )
        self._progress = Progress(*columns, console=self.console, transient=True, disable=not self.console.is_terminal)
        try:
            with self._progress:
                self._task = self._progress.add_task(title, total=total, note="")
                yield
        finally:
            self._progress = None
        self.console.print(f"{title} [dim]{time.perf_counter() - start:.1f} s[/dim]", highlight=False)

    def advance(self, count: int) -> None:
        """Move the current bar on."""
        if self._progress is not None:
            self._progress.advance(self._task, count)

    def update(self, completed: int, note: str) -> None:
        """Set the current bar."""
        if self._progress is not None:
            self._progress.update(self._task, completed=completed, note=note)


class StepProgress(TrainerCallback):
    """Moves the reporter's bar with the optimiser's steps and shows the last loss."""

    def __init__(self, reporter: Reporter) -> None:
        self._reporter, self._note = reporter, ""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._reporter.update(state.global_step, self._note)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        if logs and "loss" in logs:
            self._note = f"loss {float(logs['loss']):.3f}"
