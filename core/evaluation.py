"""Evaluating one model: sampled answers, and quantities a token against the teacher."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from distillzoo.core.batch import Batch, Collator
from distillzoo.core.data import Encoder, Row
from distillzoo.core.extraction import Decoding
from distillzoo.core.generation import Generator
from distillzoo.core.metric import Metric, States
from distillzoo.core.models import Backbone
from distillzoo.core.suite import Suite
from distillzoo.core.trajectories import Completion, PromptRow, Trajectory


@dataclass(frozen=True)
class Scores:
    """What an evaluation found."""

    metrics: dict[str, float | None]
    answers: list[str]
    tokens_per_second: float
    """Sampled tokens a second."""
    answer_length: float
    """Mean tokens an answer, the end token included."""

    def to_json(self) -> dict[str, Any]:
        return dict(vars(self))


@dataclass
class ModelEvaluation:
    """One model on some rows; implements ``distillzoo.core.metric.Evaluated``."""

    rows: Sequence[Row]
    encoded: Sequence[PromptRow]
    completions: Sequence[Completion]
    answers: Sequence[str]
    model: Backbone
    teacher: Backbone | None
    suite: Suite | None
    pad: int
    batch_size: int

    @property
    def right(self) -> Callable[[dict[str, Any], str], bool] | None:
        return None if self.suite is None else self.suite.checker

    @torch.no_grad()
    def mean_over_tokens(self, fn: Callable[[Tensor, Tensor], Tensor], on: States) -> float | None:
        if self.teacher is None:
            return None
        total, count = 0.0, 0
        for batch in self._batches(on):
            table = batch.transitions()
            student, teacher = self.model.view_of(batch, table), self.teacher.view_of(batch, table)
            total += float(student.rowwise(fn, teacher).double().sum())
            count += len(table)
        return total / count if count else None

    def _batches(self, on: States) -> list[Batch]:
        responses = [row.references[0] for row in self.encoded] if on == "references" else self.completions
        sequences = [
            Trajectory(row.prompt, response, on)
            for row, response in zip(self.encoded, responses, strict=True)
            if response.tokens
        ]
        return padded(sequences, self.pad, self.batch_size, self.model.model.device)


@torch.no_grad()
def mean_nll(model: Backbone, rows: Sequence[PromptRow], pad: int, batch_size: int) -> float:
    """Mean -log pi of the first reference answers, nats a token."""
    training = model.model.training
    model.model.eval()
    total, count = 0.0, 0
    for batch in padded([Trajectory(row.prompt, row.references[0], "references") for row in rows], pad, batch_size,
                        model.model.device):  # fmt: skip
        table = batch.transitions()
        view = model.view_of(batch, table)
        total += float((view.logsumexp() - view.select(table.action)).double().sum())
        count += len(table)
    model.model.train(training)
    return total / max(1, count)


def padded(trajectories: Sequence[Trajectory], pad: int, batch_size: int, device: torch.device) -> list[Batch]:
    """Batches of trajectories of similar lengths."""
    ordered = sorted(trajectories, key=lambda t: len(t.prompt) + len(t.response.tokens))
    collator = Collator(pad)
    parts = [ordered[i : i + batch_size] for i in range(0, len(ordered), batch_size)]
    return [collator.batch(part, device) for part in parts]


def evaluate(
    generator: Generator,
    model: Backbone,
    teacher: Backbone | None,
    rows: Sequence[Row],
    encoder: Encoder,
    encoded: Sequence[PromptRow],
    suite: Suite | None,
    metrics: dict[str, Metric],
    decoding: Decoding,
    seed: int,
) -> Scores:
    """Sample one answer a row and compute the metrics; without a teacher, those against it are None."""
    start = time.perf_counter()
    completions = generator([row.prompt for row in encoded], decoding, seed)
    seconds = time.perf_counter() - start
    answers = [encoder.text(c.tokens) for c in completions]
    training = model.model.training
    model.model.eval()
    evaluation = ModelEvaluation(
        rows, encoded, completions, answers, model, teacher, suite, generator.pad, generator.batch_size
    )
    found = {name: metric.score(evaluation) for name, metric in metrics.items()}
    model.model.train(training)
    tokens = sum(len(c.tokens) for c in completions)
    return Scores(found, answers, tokens / max(seconds, 1e-9), tokens / max(1, len(completions)))
