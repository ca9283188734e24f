"""Sampled answers side by side, where they may be published."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from pydantic import ValidationError

from distillzoo.benchmarks.harness.row import Answer
from distillzoo.benchmarks.leaderboard.source import Cell
from distillzoo.benchmarks.leaderboard.standings import Standing
from distillzoo.benchmarks.leaderboard.table import Table
from distillzoo.core.errors import UserError, cannot, explain

PROMPTS: Final = 8
"""Prompts shown, the first ones of the headline's first task."""

SEED: Final = 0


@dataclass(frozen=True)
class Prompt:
    """A prompt, its reference and what each algorithm answered."""

    asked: Answer
    answers: dict[str, Answer]


def side_by_side(table: Table, standings: Sequence[Standing]) -> list[Prompt]:
    """The answers of seed 0; none where the suite forbids it or is not installed.

    Raises:
        UserError: a file of answers cannot be read, or a line of it is none.
    """
    if table.suite is None or not table.suite.answers_may_be_published or not table.headline:
        return []
    column = table.headline[0]
    prompts: dict[int, Prompt] = {}
    for standing in standings:
        cell = next((cell for cell in standing.line.cells if cell.row.seed == SEED), None)
        for answer in _answers(cell) if cell is not None else []:
            if (answer.task, answer.decoding) == (column.task, column.decoding):
                prompts.setdefault(answer.index, Prompt(answer, {})).answers[standing.line.label] = answer
    return [prompts[index] for index in sorted(prompts)[:PROMPTS]]


def _answers(cell: Cell) -> list[Answer]:
    path = cell.answers
    if path is None:
        return []
    try:
        # split by hand: an answer may hold separators at which splitlines() would cut it
        lines = path.read_text(encoding="utf-8").split("\n")
    except OSError as error:
        raise cannot("read", path, error) from None
    except UnicodeDecodeError:
        raise UserError(f"'{path}' is no UTF-8 text.") from None
    return [_answer(line, f"{path}, line {number}") for number, line in enumerate(lines, 1) if line.strip()]


def _answer(line: str, where: str) -> Answer:
    try:
        return Answer.model_validate(json.loads(line))
    except ValidationError as error:
        raise explain(error, where, Answer) from None
    except ValueError as error:
        raise UserError(f"{where}: no valid JSON ({error}).") from None
