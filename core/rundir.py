"""The run directory. Files appear by write-then-rename, so a killed run leaves no half file."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distillzoo.core.errors import UserError, cannot
from distillzoo.core.files import write_whole


@dataclass(frozen=True)
class RunDirectory:
    """Paths of a run and how they are written."""

    path: Path
    writes: bool = True
    """False in all processes of a distributed run but the first."""

    @property
    def config(self) -> Path:
        return self.path / "config.yaml"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def curve(self) -> Path:
        return self.path / "curve.jsonl"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def model(self) -> Path:
        return self.path / "model"

    @property
    def result(self) -> Path:
        return self.path / "result.json"

    @property
    def report(self) -> Path:
        return self.path / "report.html"

    @classmethod
    def create(cls, path: Path) -> "RunDirectory":
        """A new directory.

        Raises:
            UserError: it exists with something in it, or cannot be made.
        """
        path = path.expanduser()
        try:
            if path.exists() and (not path.is_dir() or any(path.iterdir())):
                raise UserError(
                    f"'{path}' exists already. Choose another --output, or continue a run that was cut off with "
                    f"--resume {path}."
                )
            path.mkdir(parents=True, exist_ok=True)
            (path / ".writable").touch()
            (path / ".writable").unlink()
        except OSError as error:
            raise cannot("write into the run directory", path, error) from None
        return cls(path)

    @classmethod
    def open(cls, path: Path) -> "RunDirectory":
        """An existing run.

        Raises:
            UserError: there is no run in it.
        """
        directory = cls(path.expanduser())
        if not directory.config.exists():
            raise UserError(
                f"'{path}' is no run directory: it has no config.yaml. A run that was cut off while it "
                "loaded has nothing to continue: start it again."
            )
        return directory

    @classmethod
    def shared(cls, path: Path) -> "RunDirectory":
        """The directory as a process sees it that only reads it, because another one writes."""
        return cls(path.expanduser(), writes=False)

    @classmethod
    def next_free(cls, stem: str) -> Path:
        """``runs/STEM-1``, or the first number that is free."""
        number = 1
        while (Path("runs") / f"{stem}-{number}").exists():
            number += 1
        return Path("runs") / f"{stem}-{number}"

    def remove_if_empty(self) -> None:
        """Leave nothing of a run that was refused before it began."""
        if self.writes and self.path.exists() and not any(self.path.iterdir()):
            self.path.rmdir()

    def write_text(self, path: Path, text: str) -> None:
        """Write a file of the run, whole or not at all."""
        if not self.writes:
            return
        write_whole(path, text)

    def write_json(self, path: Path, value: Any) -> None:
        """Write JSON, whole or not at all."""
        self.write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")

    def append(self, path: Path, row: dict[str, Any]) -> None:
        """Add one line to ``metrics.jsonl`` or ``curve.jsonl``."""
        if not self.writes:
            return
        try:
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
        except OSError as error:
            raise cannot("write", path, error) from None

    def read(self, path: Path) -> Iterator[dict[str, Any]]:
        """The rows of such a file; a last line that a kill cut in half is left out."""
        if not path.exists():
            return
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                yield json.loads(line)
            except ValueError:
                return

    def rewind(self, step: int) -> None:
        """Drop the rows after a step, which a resumed run writes again."""
        for path in (self.metrics, self.curve):
            if path.exists():
                rows = [row for row in self.read(path) if row["step"] <= step]
                self.write_text(path, "".join(json.dumps(row) + "\n" for row in rows))

    def last_checkpoint(self) -> Path | None:
        """The latest whole checkpoint. ``trainer_state.json`` is written last, so one without it was cut off."""
        found = [p for p in self.checkpoints.glob("checkpoint-*") if _whole(p)]
        return max(found, key=checkpoint_step, default=None)


def checkpoint_step(checkpoint: Path) -> int:
    """The optimiser step after which a checkpoint was written."""
    return int(checkpoint.name.rpartition("-")[2])


def _whole(checkpoint: Path) -> bool:
    try:
        json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return True
