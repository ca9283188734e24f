"""The micro world as a suite."""

from pathlib import Path
from typing import Any, ClassVar

from distillzoo.core.suite import Checker, Suite
from distillzoo.zoo.micro import SPLITS, STUDENT, TEACHER, examples, is_right


class Micro(Suite):
    """The embedded instruction world: a small teacher, a smaller student and an exact checker of answers."""

    splits: ClassVar[tuple[str, ...]] = tuple(SPLITS)

    @property
    def teacher(self) -> Path:
        return TEACHER

    @property
    def student(self) -> Path:
        return STUDENT

    def examples(self, split: str) -> list[dict[str, Any]]:
        return examples(split)

    @property
    def checker(self) -> Checker:
        return self.right

    def right(self, row: dict[str, Any], answer: str) -> bool:
        return is_right(row["instruction"], answer)
