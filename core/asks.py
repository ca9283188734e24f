"""What a composition asks of the student's and the teacher's logits, found out by trying it on a few states."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from distillzoo.core.checks.world import Layout, laid_out, make_world
from distillzoo.core.config import PlainCorpus
from distillzoo.core.extraction import PolicyExtraction
from distillzoo.core.logits import DenseLogits, LogitView, RowFunction
from distillzoo.core.objective import Objective, TDBatch
from distillzoo.core.subset import ActionSubset, WholeVocabulary


@dataclass(frozen=True)
class Asks:
    """In words, what a step needs of the student's head and of the teacher."""

    student: str
    teacher: str


class _Watched(DenseLogits):
    """Logits that remember how they were asked for."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__(logits)
        self.reduced = self.whole = False

    def logsumexp(self, rows: Any = None) -> Tensor:
        self.reduced = True
        return super().logsumexp(rows)

    def rowwise(self, fn: RowFunction, other: LogitView | None = None) -> Tensor:
        self.whole = True
        return super().rowwise(fn, other)

    def block(self, rows: Any) -> Tensor:
        self.whole = True
        return super().block(rows)


def of_the_teacher(subset: ActionSubset, objective: Objective, lm: PlainCorpus) -> str:
    """What one step of the composition asks of the teacher."""
    if objective.needs_teacher_view(subset) or subset.needs_student or lm.weight * lm.teacher_share > 0:
        return "the whole distribution"
    return "the subset" if subset.needs_teacher else "nothing"


def asks(subset: ActionSubset, objective: Objective, extraction: PolicyExtraction, lm: PlainCorpus) -> Asks:
    """What one step of the composition asks for. The logits of the taken actions are always among it."""
    world = make_world()
    table, rows = laid_out(world, Layout(tuple(range(len(world.answers)))))
    teacher, target = DenseLogits(world.teacher[rows]), DenseLogits(world.student.detach()[rows])
    student = _Watched(world.student[rows])
    if subset.needs_teacher:
        chosen = subset.choose(teacher, target) if subset.needs_student else subset.select(teacher)
    else:
        chosen = WholeVocabulary(student, teacher)
    objective.terms(TDBatch(table, student, chosen, extraction, teacher, target))
    share = objective.support_fraction
    if student.whole or (lm.weight > 0 and lm.teacher_share > 0):
        of_student = "all logits, in chunks"
    elif student.reduced or lm.weight > 0 or (objective.support_weight > 0 and not chosen.full and share == 1):
        of_student = "a sum over the vocabulary, in chunks" + ("" if chosen.full else ", and the subset")
    elif objective.support_weight > 0 and not chosen.full:
        of_student = f"the subset, and a sum over the vocabulary in {share:g} of the states"
    else:
        of_student = "the subset"
    return Asks(of_student, of_the_teacher(subset, objective, lm))
