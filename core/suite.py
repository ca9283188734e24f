"""Suites: a teacher, a student's initialisation and data that belong together, under one name."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

Checker = Callable[[dict[str, Any], str], bool]
"""``checker(row, answer)``: whether the answer is right."""


class Suite(ABC):
    """A world whose name stands for its teacher, student and data, as in ``--teacher micro``."""

    splits: ClassVar[tuple[str, ...]]
    """Names of the data splits; a run trains on ``train`` and evaluates on ``valid``."""

    @property
    @abstractmethod
    def teacher(self) -> Path:
        """Folder of the teacher's model and tokenizer."""

    @property
    @abstractmethod
    def student(self) -> Path:
        """Folder of the student's initialisation."""

    @abstractmethod
    def examples(self, split: str) -> Sequence[dict[str, Any]]:
        """Rows with ``instruction``, ``input`` and ``output`` (a list of right answers)."""

    @property
    def checker(self) -> Checker | None:
        """Tells whether an answer to a row is right; none for a suite that cannot tell."""
        return None
