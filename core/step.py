"""One forward pass of the training: from a batch to the sum of its loss."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from distillzoo.core.batch import Batch
from distillzoo.core.divergence import kl
from distillzoo.core.extraction import PolicyExtraction
from distillzoo.core.logits import LogitView
from distillzoo.core.models import Backbone
from distillzoo.core.objective import PLAIN, Moments, Objective, TDBatch, support_term
from distillzoo.core.subset import ActionSubset, Subset, WholeVocabulary
from distillzoo.core.transitions import Transitions

MASS_ROWS: Final = 8
"""States of a forward pass on which the student's mass on the subset is measured; each costs a pass over the head,
unless the support term computes it anyway."""


@dataclass(frozen=True)
class Asked:
    """A batch's transitions and what the teacher and the target network say of them.

    Attributes:
        batch: the padded tokens.
        table: their transitions.
        subset: the teacher's subset; none for the whole vocabulary, and where the student's logits count too.
        teacher: the teacher's logits, where they are needed beyond the subset.
        target: the target network's logits, where there is one.
        moments: of the objective's returns over the optimiser step.
    """

    batch: Batch
    table: Transitions
    subset: Subset | None
    teacher: LogitView | None
    target: LogitView | None = None
    moments: Moments = PLAIN


@torch.no_grad()
def ask(
    batch: Batch,
    table: Transitions,
    teacher: Backbone | None,
    subset: ActionSubset,
    needs_view: bool,
    target: LogitView | None = None,
    cut: Callable[[Subset], Subset] | None = None,
) -> Asked:
    """What the teacher says of a batch: as much as is needed, and what came with the sequences is not asked again.

    Args:
        batch: the padded tokens.
        table: their transitions.
        teacher: none where nothing asks it.
        subset: of the composition.
        needs_view: whether the teacher's logits are needed beyond the subset.
        target: the target network's logits.
        cut: makes the subset's sets of those that the sequences come with, where they are larger.
    """
    stored = batch.stored
    if stored is not None:
        return Asked(batch, table, stored if cut is None else cut(stored), None, target)
    if teacher is None or not (subset.needs_teacher or needs_view):
        return Asked(batch, table, None, None, target)
    view = view_of_teacher(teacher, batch, table)
    if not subset.needs_teacher or subset.needs_student:
        return Asked(batch, table, None, view, target)
    chosen = subset.with_action(subset.select(view), view, table.action)
    return Asked(batch, table, chosen, view if needs_view else None, target)


def view_of_teacher(teacher: Backbone, batch: Batch, table: Transitions) -> LogitView:
    """The teacher's logits, from the states that the batch came with or by a forward pass."""
    if batch.teacher_states is not None:
        return teacher.view(batch.teacher_states)
    return teacher.view_of(batch, table)


@dataclass(frozen=True)
class PlainText:
    """A batch of the second corpus for the language-modelling term.

    Attributes:
        batch: the padded tokens.
        table: their transitions.
        teacher: the teacher's logits, if it has a share.
        weight: of the sum over the rows, in units of the sum over the other rows of the loss.
        teacher_share: of KL(teacher || student) in the term; the rest is -log pi of the text.
    """

    batch: Batch
    table: Transitions
    teacher: LogitView | None
    weight: float
    teacher_share: float


@dataclass(frozen=True)
class StepResult:
    """Sums over the rows of one forward pass; a mean is a sum divided by ``rows``."""

    loss: Float[Tensor, ""]
    sums: dict[str, Tensor]
    rows: int
    sizes: Int[Tensor, "N"]


class Distillation(nn.Module):
    """The module that accelerate wraps: it computes the loss inside its own forward.

    Calling the head outside a wrapped module's forward would leave gradients unreduced under DDP and weights sharded
    under FSDP. The teacher is no submodule: it is neither wrapped, saved nor optimised.
    """

    accepts_loss_kwargs = True  # the Trainer counts the response tokens of the whole optimiser step only then

    def __init__(
        self, student: Backbone, subset: ActionSubset, objective: Objective, extraction: PolicyExtraction
    ) -> None:
        super().__init__()
        self.student: PreTrainedModel = student.model
        self.backbone = student
        if student.head is not None and student.head.weight.requires_grad:
            student.head.weight.register_post_accumulate_grad_hook(_make_dense)
        self._subset, self._objective, self._extraction = subset, objective, extraction
        self._no_split_modules = getattr(student.model, "_no_split_modules", None)

    def train(self, mode: bool = True) -> "Distillation":
        """Never: under dropout the student would be another policy than the one that sampled and that is compared."""
        return super().train(False)

    def forward(self, asked: Asked, text: PlainText | None = None, only_returns: bool = False) -> StepResult | Tensor:
        """The sum of the loss over the batch's rows, in nats, and what is to be logged.

        Args:
            asked: the batch, and what the teacher says of it.
            text: a batch of the second corpus.
            only_returns: give the objective's ``returns``, ``[N]``, instead.
        """
        td = self._td(asked)
        if only_returns:
            return self._objective.returns(td)
        table = asked.table
        terms = self._objective.terms(td)
        losses = terms.losses()
        outside: Tensor | None = None
        if self._objective.support_weight > 0 and not td.subset.full:
            rows = self._support_rows(table)
            support = support_term(td.q, rows)
            losses["support"] = self._objective.support_weight * support
            outside = support if rows is None else support[rows] * (len(rows) / max(1, len(table)))
        loss = torch.stack([(table.weight * value).sum() for value in losses.values()]).sum()
        with torch.no_grad():
            watched = {**losses, **terms.diagnostics(), **self._watch(td, outside)}
            sums = {name: (table.weight * value.detach()).sum() for name, value in watched.items()}
        if text is not None:
            lm = text.weight * self._language_model(text).sum()
            loss, sums["lm"] = loss + lm, lm.detach()
        return StepResult(loss, sums, len(table), td.subset.size)

    def _states(self, batch: Batch, table: Transitions) -> Tensor:
        return self.backbone.states(batch.input_ids, batch.attention_mask, table.sequence, table.position)

    def _view(self, states: Tensor) -> LogitView:
        """With a gradient for the head that holds the rows of the tokens asked for alone.

        Where it is the first of an optimiser step it is made dense on arrival; what comes after is added to it row by
        row. DDP's buckets know dense gradients only, and get them.
        """
        alone = not (torch.distributed.is_available() and torch.distributed.is_initialized())
        return replace(self.backbone, sparse_gradient=alone).view(states)

    def _td(self, asked: Asked) -> TDBatch:
        states = self._states(asked.batch, asked.table)
        student, subset = self._view(states), asked.subset
        if self._subset.needs_student:
            assert asked.teacher is not None, "the trainer gives the teacher's logits to such a subset"
            with torch.no_grad():  # on a view of its own: what a view has computed it keeps, and without a gradient
                subset = self._subset.choose(asked.teacher, self.backbone.view(states.detach()))
                subset = self._subset.with_action(subset, asked.teacher, asked.table.action)
        elif subset is None:
            subset = WholeVocabulary(student, asked.teacher)
        return TDBatch(asked.table, student, subset, self._extraction, asked.teacher, asked.target, asked.moments)

    def _language_model(self, text: PlainText) -> Float[Tensor, "M"]:
        """(1 - share) * -log pi(a|s) + share * KL(pi_T || pi)(s) of each token of the second corpus."""
        view = self._view(self._states(text.batch, text.table))
        term = (1 - text.teacher_share) * (view.logsumexp() - view.select(text.table.action))
        if text.teacher is None:
            return term
        return term + text.teacher_share * view.rowwise(lambda student, teacher: kl(teacher, student), text.teacher)

    def _support_rows(self, table: Transitions) -> Tensor | None:
        share = self._objective.support_fraction
        if share >= 1.0:
            return None
        count = max(1, round(share * len(table)))
        return torch.randperm(len(table), device=table.action.device)[:count]

    def _watch(self, td: TDBatch, outside: Tensor | None) -> dict[str, Tensor]:
        """The soft value, the subset's size, mass and hits, and the student's mass on it.

        Args:
            td: the batch.
            outside: -log of the student's mass on the subset in some of the states, where a term computed it.
        """
        expert = td.transitions.expert
        found = {} if bool(expert.all()) else {"student_rows": (~expert).float()}
        if td.subset.full:
            return found | ({"value": td.value} if "value" in vars(td) else {})  # not worth a pass over the vocabulary
        if outside is None:
            rows = torch.randperm(len(td.transitions), device=td.student.device)[:MASS_ROWS]
            outside = td.student.logsumexp(rows) - td.q.logsumexp()[rows]
        return found | {
            "value": td.value,
            "subset_size": td.subset.size.float(),
            "teacher_mass": td.subset.mass,
            "action_inside": td.inside if td.subset.added is None else td.inside * ~td.subset.added,
            "student_mass": outside.neg().exp().mean().expand(len(td.transitions)),
        }


def _make_dense(weight: Tensor) -> None:
    """The optimisers need it."""
    if weight.grad is not None and weight.grad.is_sparse:
        weight.grad = weight.grad.to_dense()
