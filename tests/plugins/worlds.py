"""Batches of transitions with random logits, for the objectives' tests."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from distillzoo.core.extraction import PolicyExtraction
from distillzoo.core.factored import Head
from distillzoo.core.logits import DenseLogits, FactoredLogits, LogitView
from distillzoo.core.objective import TDBatch
from distillzoo.core.subset import ActionSubset
from distillzoo.core.transitions import TERMINAL, UNKNOWN, Transitions

LENGTHS = (4, 1, 5)
ENDED = (True, True, False)
V = 9


def chain(
    lengths: tuple[int, ...], ended: tuple[bool, ...], actions: Tensor, experts: tuple[bool, ...] | None = None
) -> Transitions:
    """Transitions of a few sequences laid end to end; all are the expert's if not said."""
    successor, sequence, position, expert = [], [], [], []
    for i, length in enumerate(lengths):
        start = len(successor)
        successor += [start + t + 1 for t in range(length - 1)] + [TERMINAL if ended[i] else UNKNOWN]
        sequence += [i] * length
        position += list(range(length))
        expert += [experts is None or experts[i]] * length
    rows = (torch.tensor(table, dtype=torch.long) for table in (successor, sequence, position))
    n = len(successor)
    unknown = torch.full((n,), math.nan)
    return Transitions(actions, *rows, torch.ones(n), torch.tensor(expert, dtype=torch.bool), unknown)


@dataclass
class World:
    """Random teacher and student logits in float64 with a chain of transitions."""

    teacher: Tensor
    hidden: Tensor
    weight: Tensor
    transitions: Transitions

    @property
    def student(self) -> Tensor:
        return self.hidden @ self.weight.T

    def td(self, subset: ActionSubset, extraction: PolicyExtraction, lazy: bool = False) -> TDBatch:
        view: LogitView = DenseLogits(self.student)
        if lazy:
            view = FactoredLogits(self.hidden, Head(self.weight, None, V))
        teacher = DenseLogits(self.teacher)
        chosen = subset.with_action(subset.select(teacher), teacher, self.transitions.action)
        return TDBatch(self.transitions, view, chosen, extraction, teacher)


def make_world(seed: int = 0) -> World:
    generator = torch.Generator().manual_seed(seed)
    n = sum(LENGTHS)
    return World(
        teacher=torch.randn(n, V, generator=generator, dtype=torch.float64) * 2,
        hidden=torch.randn(n, 4, generator=generator, dtype=torch.float64).requires_grad_(),
        weight=(torch.randn(V, 4, generator=generator, dtype=torch.float64) * 2).requires_grad_(),
        transitions=chain(LENGTHS, ENDED, torch.randint(V, (n,), generator=generator)),
    )
