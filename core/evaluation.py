"""Evaluating one model: sampled answers, and quantities a token against the teacher."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from torch import Tensor

from distillzoo.core.batch import Batch, Collator
from distillzoo.core.data import Encoder, Row
from distillzoo.core.extraction import Decoding
from distillzoo.core.generation import Generator
from distillzoo.core.logits import LogitView
from distillzoo.core.metric import Metric, PositionBin, States, TokenValues
from distillzoo.core.models import Backbone
from distillzoo.core.suite import Suite
from distillzoo.core.trajectories import Completion, PromptRow, Sampler, Trajectory
from distillzoo.core.transitions import Transitions

TokenFunction = Callable[[Tensor, Tensor], Tensor]
"""``fn(model's logits [n, V], teacher's logits [n, V] or tokens taken [n]) -> [n]``."""

KEPT_BYTES: Final = 1 << 29
"""Hidden states, of student and teacher together, that an evaluation keeps in main memory: 512 MiB. For the batches
beyond, and for a model without a linear head, whose logits would have to be kept, the bodies run again when asked."""


@dataclass(frozen=True)
class Scores:
    """What an evaluation found."""

    metrics: dict[str, float | None]
    answers: list[str]
    tokens_per_second: float
    """Sampled tokens a second."""
    answer_length: float
    """Mean tokens an answer, the end token included."""
    positions: dict[str, list[PositionBin]] = field(default_factory=dict)
    """Curves along the responses, of the metrics that have one."""

    def to_json(self) -> dict[str, Any]:
        return dict(vars(self))


@dataclass(frozen=True)
class _Part:
    """A batch of some states, with its number among them."""

    on: States
    number: int
    batch: Batch
    table: Transitions


@dataclass
class ModelEvaluation:
    """One model on some rows; implements ``distillzoo.core.metric.Evaluated``.

    The bodies run once over each batch, however many metrics ask, as far as ``KEPT_BYTES`` reach.
    """

    rows: Sequence[Row]
    encoded: Sequence[PromptRow]
    completions: Sequence[Completion]
    answers: Sequence[str]
    model: Backbone
    teacher: Backbone | None
    sample_teacher: Callable[[], Sequence[Completion]]
    """The teacher's samples for the same prompts; called once, and only if a metric looks at them."""
    suite: Suite | None
    pad: int
    batch_size: int
    _values: dict[tuple[TokenFunction, States, bool], TokenValues] = field(default_factory=dict, init=False)
    _parts: dict[States, list[_Part]] = field(default_factory=dict, init=False)
    _kept: dict[tuple[bool, States, int], Tensor] = field(default_factory=dict, init=False)

    @property
    def right(self) -> Callable[[dict[str, Any], str], bool] | None:
        return None if self.suite is None else self.suite.checker

    def tokens(self, fn: TokenFunction, on: States) -> TokenValues | None:
        return None if self.teacher is None else self._over(fn, on, compared=True)

    def taken(self, fn: TokenFunction, on: States) -> TokenValues | None:
        return None if on == "teacher" and self.teacher is None else self._over(fn, on, compared=False)

    def mean_over_tokens(self, fn: TokenFunction, on: States) -> float | None:
        found = self.tokens(fn, on)
        return None if found is None else found.mean()

    @torch.no_grad()
    def _over(self, fn: TokenFunction, on: States, compared: bool) -> TokenValues:
        """``fn`` of the model's logits and the teacher's, or the tokens taken, in chunks that fit in memory."""
        key = (fn, on, compared)
        if key not in self._values:
            values, times = [torch.zeros(0, dtype=torch.float64)], [torch.zeros(0, dtype=torch.long)]
            for part in self._batches(on):
                student = self._view(part)
                other = self._view(part, of_teacher=True).block if compared else part.table.action.__getitem__
                values += [fn(student.block(rows), other(rows)).cpu().double() for rows in student.chunks()]
                times.append(part.table.time.cpu())
            self._values[key] = TokenValues(torch.cat(values), torch.cat(times))
        return self._values[key]

    def _view(self, part: _Part, of_teacher: bool = False) -> LogitView:
        """A model's logits on a batch, from hidden states that are kept if there is room."""
        model = self.teacher if of_teacher else self.model
        assert model is not None, "nobody asks for a teacher that isn't there"
        key = (of_teacher, part.on, part.number)
        if key in self._kept:
            return model.view(self._kept[key].to(model.model.device))
        batch, table = part.batch, part.table
        states = model.states(batch.input_ids, batch.attention_mask, table.sequence, table.position)
        room = KEPT_BYTES - sum(kept.nbytes for kept in self._kept.values())
        if model.head is not None and states.nbytes <= room:
            self._kept[key] = states.cpu()
        return model.view(states)

    def _batches(self, on: States) -> list[_Part]:
        if on not in self._parts:
            batches = padded(self._sequences(on), self.pad, self.batch_size, self.model.model.device)
            self._parts[on] = [_Part(on, i, batch, batch.transitions()) for i, batch in enumerate(batches)]
        return self._parts[on]

    def _sequences(self, on: States) -> list[Trajectory]:
        if on == "references":
            responses: Sequence[Completion] = [row.references[0] for row in self.encoded]
        else:
            responses = self.completions if on == "samples" else self.sample_teacher()
        return [
            Trajectory(row.prompt, response, on)
            for row, response in zip(self.encoded, responses, strict=True)
            if response.tokens
        ]


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
        total += float((view.logsumexp() - view.select(table.action)).cpu().double().sum())
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
    teacher_sampler: Sampler,
    rows: Sequence[Row],
    encoder: Encoder,
    encoded: Sequence[PromptRow],
    suite: Suite | None,
    metrics: dict[str, Metric],
    decoding: Decoding,
    seed: int,
) -> Scores:
    """Sample one answer a row and compute the metrics; without a teacher, those against it are None.

    ``teacher_sampler`` is called only if a metric looks at the teacher's own samples, with the same prompts, decoding
    and seed as the model.
    """
    start = time.perf_counter()
    prompts = [row.prompt for row in encoded]
    completions = generator(prompts, decoding, seed)
    seconds = time.perf_counter() - start
    answers = [encoder.text(c.tokens) for c in completions]
    training = model.model.training
    model.model.eval()
    evaluation = ModelEvaluation(
        rows,
        encoded,
        completions,
        answers,
        model,
        teacher,
        lambda: teacher_sampler(prompts, decoding, seed),
        suite,
        generator.pad,
        generator.batch_size,
    )
    found = {name: metric.score(evaluation) for name, metric in metrics.items()}
    curves = {name: metric.by_position(evaluation) for name, metric in metrics.items()}
    model.model.train(training)
    tokens = sum(len(c.tokens) for c in completions)
    return Scores(
        found,
        answers,
        tokens / max(seconds, 1e-9),
        tokens / max(1, len(completions)),
        {name: curve for name, curve in curves.items() if curve is not None},
    )
