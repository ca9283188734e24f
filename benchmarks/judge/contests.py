"""Which answers meet: those of every algorithm of a matrix and those of one of them, or the references."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pydantic import ValidationError

from distillzoo.benchmarks.harness.row import Answer, Row, read_rows
from distillzoo.benchmarks.judge.verdict import Messages, question
from distillzoo.core.errors import UserError, cannot, explain, suggest

REFERENCES: Final = "references"
"""The opponent that the data's reference answers are."""


@dataclass(frozen=True)
class Contest:
    """Two answers to one prompt.

    Attributes:
        pair: the suite's name for teacher and student.
        algo: the algorithm, with its subset where that is not the recipe's own.
        against: the other algorithm, or the references.
        seed: of both trainings.
        task: whose prompt it is.
        decoding: how the answers were sampled.
        index: row of the task's data.
        instruction: the prompt.
        context: what the prompt gives beside the instruction.
        answer: the algorithm's.
        other: the opponent's.
    """

    pair: str
    algo: str
    against: str
    seed: int
    task: str
    decoding: str
    index: int
    instruction: str
    context: str
    answer: str
    other: str

    def asked(self, swapped: bool) -> Messages:
        """The question with the algorithm's answer first, or second."""
        first, second = (self.other, self.answer) if swapped else (self.answer, self.other)
        return question(self.instruction, self.context, first, second)

    def key(self, model: str, swapped: bool) -> str:
        """What makes a judgement the same one: the judge and every word that it reads."""
        return hashlib.sha256(json.dumps([model, self.asked(swapped)]).encode()).hexdigest()


def chosen_rows(folder: Path, seed: int | None) -> list[Row]:
    """The rows with answers under one seed; by default the lowest.

    Raises:
        UserError: there are none.
    """
    rows = [row for row in read_rows(folder / "results.jsonl") if row.status == "done" and row.outputs is not None]
    if not rows:
        raise UserError(f"'{folder / 'results.jsonl'}' holds no finished cell with answers.")
    seeds = sorted({row.seed for row in rows})
    if seed is not None and seed not in seeds:
        raise UserError(f"--seed {seed}: the results hold the seeds {', '.join(map(str, seeds))}.")
    return [row for row in rows if row.seed == (seeds[0] if seed is None else seed)]


def contests(
    folder: Path, rows: Sequence[Row], against: str, task: str | None, decoding: str, limit: int | None
) -> list[Contest]:
    """Every algorithm's answers against the opponent's of the same pair, task, decoding and seed.

    Args:
        folder: of the results.
        rows: under one seed.
        against: an algorithm's name, or ``references``.
        task: only this one; None for all.
        decoding: only this one.
        limit: only the first so many prompts of each task.

    Raises:
        UserError: a name is unknown, answers cannot be read, or they are not of the same prompts.
    """
    names = {row.name for row in rows}
    if against != REFERENCES and against not in names:
        raise UserError(f"--against {against}: no such algorithm is in the results.{suggest(against, names)}")
    found = []
    for pair in sorted({row.pair for row in rows}):
        here = {row.name: row for row in rows if row.pair == pair}
        if against != REFERENCES and against not in here:
            continue
        other = None if against == REFERENCES else _answers(folder, here.pop(against), task, decoding, limit)
        for name, row in sorted(here.items()):
            mine = _answers(folder, row, task, decoding, limit)
            for place, answer in mine.items():
                reply = answer.reference if other is None else _same_prompt(other, place, answer, against).answer
                words = (answer.instruction, answer.input, answer.answer, reply)
                found.append(Contest(pair, name, against, row.seed, answer.task, answer.decoding, answer.index, *words))
    if not found:
        raise UserError(f"Nothing stands against {against} in the results.")
    return found


def _same_prompt(other: dict[tuple[str, int], Answer], place: tuple[str, int], answer: Answer, against: str) -> Answer:
    found = other.get(place)
    if found is None or (found.instruction, found.input) != (answer.instruction, answer.input):
        raise UserError(f"The answers of {against} are not to the same prompts: {place[0]}, row {place[1]}.")
    return found


def _answers(
    folder: Path, row: Row, task: str | None, decoding: str, limit: int | None
) -> dict[tuple[str, int], Answer]:
    """A row's answers by task and prompt."""
    every = list(_read(folder, row))
    tasks = {answer.task for answer in every}
    if task is not None and task not in tasks:
        raise UserError(f"--task {task}: there are no answers to it.{suggest(task, tasks)}")
    decodings = {answer.decoding for answer in every}
    if decoding not in decodings:
        raise UserError(f"--decoding {decoding}: nothing was sampled so.{suggest(decoding, decodings)}")
    found = {}
    for name in sorted(tasks) if task is None else [task]:
        mine = sorted((a for a in every if (a.task, a.decoding) == (name, decoding)), key=lambda a: a.index)
        found.update({(name, answer.index): answer for answer in mine[:limit]})
    return found


def _read(folder: Path, row: Row) -> Iterator[Answer]:
    path = (folder / str(row.outputs)).resolve()
    if not path.is_relative_to(folder.resolve()):  # the answers leave this machine, other files must not
        raise UserError(f"The answers of {row.name} should lie below '{folder}', and are said to be in '{path}'.")
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except OSError as error:
        raise cannot("read", path, error) from None
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                yield Answer.model_validate_json(line)
            except ValidationError as error:
                raise explain(error, f"{path}, line {number}", Answer) from None
