"""A row of ``results.jsonl``: what one cell of a matrix found, with all that it takes to believe and repeat it."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from distillzoo.core.errors import UserError, cannot, explain

SCHEMA: Final = 1
"""Version of the rows. A change that an old reader would misread raises it."""


TASK: Final = "task "
"""How the name of a task's hash begins, the task's following."""


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Score(_Record):
    """One metric of the trained student on one task under one decoding."""

    task: str
    decoding: str
    metric: str
    value: float | None = Field(description="null where the metric is not defined for these data")
    direction: str = Field(description="higher or lower: which values are better; none where neither")
    n: int = Field(description="prompts")


class CurvePoint(_Record):
    """The student during its training, on the suite's validation rows."""

    step: int
    seconds: float = Field(description="of training up to here, without evaluations and the samples before it")
    student_tokens: int = Field(description="response tokens that the student was trained on")
    sampled_tokens: int = Field(description="tokens that the student sampled for its own training")
    teacher_tokens: int = Field(description="tokens that the teacher sampled or read")
    scores: dict[str, float | None]


class PositionBin(_Record):
    """A metric over the response positions ``first`` to ``last``, counted from 0."""

    first: int
    last: int
    value: float
    count: int


class PositionCurve(_Record):
    """A metric by position in the answer."""

    task: str
    decoding: str
    metric: str
    bins: list[PositionBin]


class PartUsed(_Record):
    """A plugin's part, and the distribution that it came from."""

    name: str
    distribution: str
    version: str


class DecodingUsed(_Record):
    """How answers were sampled."""

    temperature: float
    top_p: float


class Cost(_Record):
    """What a cell cost."""

    seconds: float = Field(description="of the process that finished the cell, loading and evaluation too")
    evaluation_seconds: float | None = Field(None, description="of the final scores; null in rows that did not say it")
    shared_seconds: float | None = Field(
        None, description="of making what other cells share, or of waiting for it: starts, caches, reference scores"
    )
    training_seconds: float = Field(description="of training, with what is sampled during it; evaluation apart")
    sampling_seconds: float = Field(description="of the teacher's samples before it, paid when they were drawn")
    peak_memory_bytes: int = Field(description="of the GPU, or resident on a CPU")
    student_tokens: int = Field(description="response tokens that the student was trained on")
    sampled_tokens: int = Field(description="tokens that the student sampled for its own training")
    teacher_tokens: int = Field(description="tokens that the teacher sampled or read")
    tokens_per_second: float = Field(description="student tokens a second of training")


class Row(_Record):
    """One cell: an algorithm with its subset on a pair of models, under one seed."""

    schema_version: Literal[1] = 1
    suite: str
    suite_version: int
    suite_sha256: str = Field(description="of the suite's file")
    suite_distribution: str = Field(description="name and version of the distribution that the suite came from")
    pair: str = Field(description="the suite's name for teacher and student")
    algo: str
    recipe: PartUsed
    recipe_version: int
    changes: list[str] = Field([], description="FIELD=VALUE settings over the suite's; with any it is another suite")
    dry_run: bool = Field(False, description="tiny random models, rows of the micro world, two steps: no result")
    subset: str | None = Field(description="the subset that replaced the recipe's; null for the recipe's own")
    parts: dict[str, PartUsed] = Field(description="subset, objective, extraction and trajectories")
    metrics: dict[str, PartUsed]
    seed: int = Field(description="of training, data order and sampling")
    steps: int = Field(description="optimiser steps")
    trials: int | None = Field(description="tuning trials behind the settings; null where nobody said")
    config: dict[str, Any] = Field(description="resolved; inputs given by path are named input:NAME")
    config_sha256: str
    decodings: dict[str, DecodingUsed]
    hashes: dict[str, str] = Field(description="sha256 of teacher, student_before, student_after, tokenizer and data")
    hardware: str = Field(description="class of machine; rows of different classes never share a table")
    device: str
    threads: int = Field(description="of a cell's process on a CPU; another number may round sums otherwise")
    versions: dict[str, str]
    git: str | None = Field(description="commit of the checkout that ran; null where it was installed without one")
    dirty: bool | None
    status: Literal["done", "failed"]
    error: str | None = None
    scores: list[Score] = []
    references: dict[str, list[Score]] = Field({}, description="the same of the teacher and the student before")
    curve: list[CurvePoint] = []
    positions: list[PositionCurve] = []
    cost: Cost | None = None
    outputs: str | None = Field(None, description="answers of this cell, a path beside results.jsonl")
    command: str = Field(description="runs this cell again")

    @property
    def name(self) -> str:
        """The algorithm, with its subset where that is not the recipe's own."""
        return self.algo if self.subset is None else f"{self.algo}, {self.subset}"

    @property
    def key(self) -> tuple[str, str, str, int]:
        """What tells the cells of one matrix apart: pair, algorithm, subset, seed."""
        return self.pair, self.algo, self.subset or "", self.seed

    def score(self, task: str, decoding: str, metric: str) -> float | None:
        """One value, None where it was not measured."""
        for found in self.scores:
            if (found.task, found.decoding, found.metric) == (task, decoding, metric):
                return found.value
        return None

    def line(self) -> str:
        """The row as one line of JSON."""
        return json.dumps(self.model_dump(mode="json"), ensure_ascii=False, sort_keys=True)


class Answer(_Record):
    """One sampled answer, a line of a cell's ``outputs``."""

    task: str
    decoding: str
    index: int = Field(description="row of the task's data")
    instruction: str
    input: str
    reference: str
    answer: str
    right: bool | None = Field(description="the suite's checker; null without one")


def read_rows(path: Path) -> list[Row]:
    """The rows of a ``results.jsonl``.

    Raises:
        UserError: the file cannot be read, or a line is no row; the message names file, line and field.
    """
    return [row for _, row in numbered_rows(path)]


def numbered_rows(path: Path) -> Iterator[tuple[int, Row]]:
    """Rows with their line numbers, from 1; raises as ``read_rows``."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")  # an answer may hold other line separators
    except (OSError, UnicodeDecodeError) as error:
        if isinstance(error, OSError):
            raise cannot("read", path, error) from None
        raise UserError(f"'{path}' is no UTF-8 text.") from None
    for number, line in enumerate(lines, 1):
        if line.strip():
            yield number, parse_row(line, f"{path}, line {number}")


def parse_row(line: str, where: str) -> Row:
    """One row from its line.

    Raises:
        UserError: the line is no row of this schema.
    """
    try:
        tree = json.loads(line)
    except ValueError as error:
        raise UserError(f"{where}: no valid JSON ({error}).") from None
    if not isinstance(tree, dict):
        raise UserError(f"{where}: should be a JSON object, not {type(tree).__name__}.")
    found = tree.get("schema_version")
    if found != SCHEMA:
        raise UserError(f"{where}: schema_version is {found!r}, and this distillzoo reads {SCHEMA}.")
    try:
        return Row.model_validate(tree)
    except ValidationError as error:
        raise explain(error, where, Row) from None


def write_lines(rows: Iterable[Row]) -> str:
    """The text of a ``results.jsonl``."""
    return "".join(row.line() + "\n" for row in rows)
