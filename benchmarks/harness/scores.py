"""Scores of a cell's models on the benchmark's tasks."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from filelock import FileLock

from distillzoo.benchmarks.harness.benchmark import Benchmark, Task, content, with_inputs
from distillzoo.benchmarks.harness.plan import Cell, suite_hash
from distillzoo.benchmarks.harness.row import TASK, Answer, PositionBin, PositionCurve, Score
from distillzoo.core.config import ModelSource, RunConfig
from distillzoo.core.data import Row
from distillzoo.core.errors import UserError
from distillzoo.core.evaluation import Scores
from distillzoo.core.files import write_whole
from distillzoo.core.progress import Reporter
from distillzoo.core.registry import Registry
from distillzoo.core.world import World


@dataclass
class Found:
    """Scores, curves along the answers, and the answers."""

    scores: list[Score] = field(default_factory=list)
    positions: list[PositionCurve] = field(default_factory=list)
    answers: list[Answer] = field(default_factory=list)
    hashes: dict[str, str] = field(default_factory=dict)

    def add(self, task: str, decoding: str, world: World, scores: Scores) -> None:
        """Take over what an evaluation found."""
        rows = world.valid_rows
        self.hashes[f"{TASK}{task}"] = _hash_of(rows)
        for metric, value in scores.metrics.items():
            direction = world.metrics[metric].direction
            self.scores.append(
                Score(task=task, decoding=decoding, metric=metric, value=value, direction=direction, n=len(rows))
            )
        for metric, bins in scores.positions.items():
            parsed = [PositionBin(**one) for one in bins]
            self.positions.append(PositionCurve(task=task, decoding=decoding, metric=metric, bins=parsed))
        right = None if world.suite is None else world.suite.checker
        for index, (row, answer) in enumerate(zip(rows, scores.answers, strict=True)):
            self.answers.append(
                Answer(
                    task=task,
                    decoding=decoding,
                    index=index,
                    instruction=row["instruction"],
                    input=row.get("input", ""),
                    reference=row["output"][0],
                    answer=answer,
                    right=None if right is None else right(row, answer),
                )
            )


def scored(cell: Cell, benchmark: Benchmark, registry: Registry, config: RunConfig, model: Path) -> Found:
    """The trained student on every task, under every decoding."""
    trained = config.model_copy(update={"student": ModelSource(model=str(model))})
    found = Found()
    for task, decoding, world in _worlds(cell, benchmark, registry, trained):
        found.add(task, decoding, world, world.evaluate(world.student, f"on {task}, {decoding}"))
    return found


def _hash_of(rows: Sequence[Row]) -> str:
    return sha256(json.dumps(rows, sort_keys=True, default=str).encode()).hexdigest()


def must_be_pinned(cell: Cell, benchmark: Benchmark, registry: Registry, config: RunConfig) -> None:
    """Refuse models or data that are not those that the benchmark pins.

    Raises:
        UserError: with both hashes.
    """
    if not benchmark.hashes:
        return
    world = World(config, registry, Reporter())
    world.load()
    inputs = dict(world.inputs)
    for task, settings in _settings(cell, benchmark, config):
        if f"{TASK}{task}" in benchmark.hashes:
            inputs[f"{TASK}{task}"] = _hash_of(World(settings, registry, Reporter()).valid_rows)
    for name, expected in benchmark.hashes.items():
        found = inputs.get(name)
        if found != expected:
            raise UserError(f"hashes.{name} of the benchmark is {expected}, and here it is {found}.")


def references(
    cell: Cell, benchmark: Benchmark, registry: Registry, config: RunConfig, shared: Path
) -> dict[str, list[Score]]:
    """Scores of the teacher and of the student before training, computed by the first cell that asks."""
    config = config.model_copy(update={"seed": 0})
    world = World(config, registry, Reporter())
    world.load()
    # not the recipe's corpus, which changes no score of these
    models = {name: world.inputs[name] for name in ("teacher", "student_before", "tokenizer")}
    facts = [suite_hash(Path(cell.file), cell.changes), cell.pair, models, content(cell.inputs)]
    path = shared / f"references-{sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_suffix(".lock")):
        if not path.exists():
            teacher, student = Found(), Found()
            for task, decoding, other in _worlds(cell, benchmark, registry, config):
                teacher.add(task, decoding, other, other.evaluate(other.teacher, "the teacher", against_teacher=False))
                student.add(task, decoding, other, other.evaluate(other.student, "the student before"))
            tree = {"teacher": teacher.scores, "student before": student.scores}
            write_whole(path, json.dumps({k: [s.model_dump() for s in v] for k, v in tree.items()}))
    kept: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return {name: [Score(**score) for score in scores] for name, scores in kept.items()}


def _worlds(
    cell: Cell, benchmark: Benchmark, registry: Registry, config: RunConfig
) -> Iterator[tuple[str, str, World]]:
    """A world for each task and decoding. All have the same two models in memory."""
    first: World | None = None
    for name, settings in _settings(cell, benchmark, config):
        for decoding, chosen in benchmark.decodings.items():
            how = {"temperature": chosen.temperature, "top_p": chosen.top_p, "metrics": chosen.metrics}
            evaluate = settings.evaluate.model_copy(update=how)
            world = World(settings.model_copy(update={"evaluate": evaluate}), registry, Reporter(quiet=False))
            if first is None:
                world.load()
                first = world
            else:
                world.vocabulary, world.teacher, world.student = first.vocabulary, first.teacher, first.student
                world.teacher_hash = first.teacher_hash
            yield name, decoding, world


def _settings(cell: Cell, benchmark: Benchmark, config: RunConfig) -> Iterator[tuple[str, RunConfig]]:
    """The configuration with each task's rows for evaluation."""
    for name, raw in benchmark.tasks.items():
        task = Task.model_validate(with_inputs(raw.model_dump(), cell.inputs))
        data = config.data.model_copy(update={"valid": task.data, "columns": task.columns})
        evaluate = config.evaluate.model_copy(update={"limit": task.limit})
        yield name, config.model_copy(update={"data": data, "evaluate": evaluate})
