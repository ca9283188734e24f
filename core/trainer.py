"""The training step, on top of transformers' Trainer."""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

import torch
from jaxtyping import Bool, Float, Int
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import PreTrainedModel, PrinterCallback, Trainer, TrainerState

from distillzoo.core.errors import UserError
from distillzoo.core.extraction import PolicyExtraction
from distillzoo.core.logits import LogitView
from distillzoo.core.models import Backbone
from distillzoo.core.objective import Objective, TDBatch, support_term
from distillzoo.core.subset import ActionSubset, Subset, WholeVocabulary
from distillzoo.core.trajectories import Trajectory
from distillzoo.core.transitions import IGNORED, Transitions, transitions

SIZES_KEPT: Final = 4096
"""Subset sizes kept between two log rows for the 95th percentile."""

MASS_ROWS: Final = 64
"""States of a forward pass on which the student's mass on the subset is measured; each costs a pass over the head."""


@dataclass(frozen=True)
class Batch:
    """A padded batch on the device; ``ended`` says which sequences are not truncated."""

    input_ids: Int[Tensor, "B T"]
    attention_mask: Int[Tensor, "B T"]
    labels: Int[Tensor, "B T"]
    ended: Bool[Tensor, "B"]

    def transitions(self) -> Transitions:
        return transitions(self.labels, self.input_ids, self.ended)


class TrajectoryData(Dataset[Trajectory]):
    """The collected trajectories."""

    def __init__(self, trajectories: Sequence[Trajectory]) -> None:
        self.trajectories = trajectories

    def __len__(self) -> int:
        return len(self.trajectories)

    def __getitem__(self, index: int) -> Trajectory:
        return self.trajectories[index]


@dataclass(frozen=True)
class Collator:
    """Pads trajectories on the right. ``labels`` holds the response tokens in place and ``IGNORED`` elsewhere."""

    pad: int

    def __call__(self, trajectories: Sequence[Trajectory]) -> dict[str, Tensor]:
        rows = [(t.prompt, t.response.tokens) for t in trajectories]
        width = max(len(p) + len(r) for p, r in rows)
        shape = (len(rows), width)
        ids = torch.full(shape, self.pad)
        mask = torch.zeros(shape, dtype=torch.long)
        labels = torch.full(shape, IGNORED)
        for i, (prompt, response) in enumerate(rows):
            end = len(prompt) + len(response)
            ids[i, :end] = torch.tensor([*prompt, *response])
            mask[i, :end] = 1
            labels[i, len(prompt) : end] = torch.tensor(response)
        ended = torch.tensor([t.response.ended for t in trajectories])
        return {"input_ids": ids, "attention_mask": mask, "labels": labels, "ended": ended}


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

    def __init__(self, student: Backbone, objective: Objective, extraction: PolicyExtraction) -> None:
        super().__init__()
        self.student: PreTrainedModel = student.model
        self._backbone = student
        self._objective, self._extraction = objective, extraction
        self._no_split_modules = getattr(student.model, "_no_split_modules", None)

    def forward(self, batch: Batch, table: Transitions, subset: Subset | None, teacher: LogitView | None) -> StepResult:
        """The sum of the loss over the batch's rows, in nats, and what is to be logged.

        Args:
            batch: the padded tokens.
            table: their transitions.
            subset: the teacher's subset, none for the whole vocabulary.
            teacher: the teacher's logits, for objectives that need its whole distribution.
        """
        states = self._backbone.states(batch.input_ids, batch.attention_mask, table.sequence, table.position)
        student = self._backbone.view(states)
        if subset is None:
            subset = WholeVocabulary(student, teacher)
        td = TDBatch(table, student, subset, self._extraction, teacher)
        terms = self._objective.terms(td)
        losses = terms.losses()
        if self._objective.support_weight > 0 and not subset.full:
            losses["support"] = self._objective.support_weight * support_term(td.q, self._support_rows(table))
        loss = torch.stack([(table.weight * value).sum() for value in losses.values()]).sum()
        with torch.no_grad():
            watched = {**losses, **terms.diagnostics(), **self._watch(td)}
            sums = {name: (table.weight * value.detach()).sum() for name, value in watched.items()}
        return StepResult(loss, sums, len(table), subset.size)

    def _support_rows(self, table: Transitions) -> Tensor | None:
        share = self._objective.support_fraction
        if share >= 1.0:
            return None
        count = max(1, round(share * len(table)))
        return torch.randperm(len(table), device=table.action.device)[:count]

    def _watch(self, td: TDBatch) -> dict[str, Tensor]:
        """The soft value, the subset's size, mass and hits, and the student's mass on it."""
        if td.subset.full:
            return {"value": td.value} if "value" in vars(td) else {}  # not worth a pass over the vocabulary
        rows = torch.randperm(len(td.transitions), device=td.student.device)[:MASS_ROWS]
        inside = td.q.logsumexp()[rows] - td.student.logsumexp(rows)
        return {
            "value": td.value,
            "subset_size": td.subset.size.float(),
            "teacher_mass": td.subset.mass,
            "action_inside": td.inside if td.subset.added is None else td.inside * ~td.subset.added,
            "student_mass": inside.exp().mean().expand(len(td.transitions)),
        }


class Diverged(UserError):
    """The loss is no longer finite."""


class DistillTrainer(Trainer):
    """transformers' Trainer with the distillation step; loop, precision, sharding and checkpoints stay as they are."""

    def __init__(
        self,
        *,
        teacher: Backbone | None,
        subset: ActionSubset,
        objective: Objective,
        student: Distillation,
        **kwargs: Any,
    ) -> None:
        super().__init__(model=student, **kwargs)
        self.remove_callback(PrinterCallback)  # it prints every log row as a dict
        self._teacher, self._subset = teacher, subset
        self._needs_view = objective.needs_teacher_view(subset)
        self._sums: dict[str, float] = defaultdict(float)
        self._rows = 0
        self._sizes: list[int] = []
        self.response_tokens = 0
        """Response tokens trained on, by this process until ``count_all_processes``."""

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Loss summed over this forward's rows and divided by the response tokens of the whole optimiser step.

        DDP averages gradients over processes, so the sum is scaled by their number.
        """
        batch = Batch(inputs["input_ids"], inputs["attention_mask"], inputs["labels"], inputs["ended"])
        table = batch.transitions()
        subset, view = self._ask_teacher(batch, table)
        result: StepResult = model(batch=batch, table=table, subset=subset, teacher=view)
        if not math.isfinite(float(result.loss.detach())):
            bad = [name for name, value in result.sums.items() if not math.isfinite(float(value))]
            raise Diverged(
                f"The loss is not finite at step {self.state.global_step} (terms: {', '.join(bad) or 'their sum'}). "
                f"The checkpoints so far are kept. A lower train.lr or, for TD terms, a larger alpha may help."
            )
        self._note(result)
        count = result.rows if num_items_in_batch is None else num_items_in_batch
        loss = result.loss * self.accelerator.num_processes / count
        return (loss, result) if return_outputs else loss

    @torch.no_grad()
    def _ask_teacher(self, batch: Batch, table: Transitions) -> tuple[Subset | None, LogitView | None]:
        if self._teacher is None:
            return None, None
        states = self._teacher.states(batch.input_ids, batch.attention_mask, table.sequence, table.position)
        view = self._teacher.view(states)
        if not self._subset.needs_teacher:
            return None, view
        subset = self._subset.with_action(self._subset.select(view), view, table.action)
        return subset, view if self._needs_view else None

    def _note(self, result: StepResult) -> None:
        for name, value in result.sums.items():
            self._sums[name] += float(value)
        self._rows += result.rows
        self.response_tokens += result.rows
        room = SIZES_KEPT - len(self._sizes)
        self._sizes.extend(result.sizes[:room].tolist())

    def restore(self, checkpoint: Path) -> None:
        """Take weights and state of a checkpoint, for a run whose training had ended when it was cut off."""
        self._load_from_checkpoint(str(checkpoint))
        self.state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))

    def count_all_processes(self) -> None:
        """Make ``response_tokens`` the count over all processes."""
        local = torch.tensor(self.response_tokens, device=self.accelerator.device)
        self.response_tokens = int(self.accelerator.reduce(local, "sum"))

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the means of all terms since the last row of the log."""
        if self._rows and "loss" in logs:
            logs = logs | {name: total / self._rows for name, total in self._sums.items()}
            if "subset_size" in logs:
                logs["subset_size_p95"] = torch.tensor(self._sizes).float().quantile(0.95).item()
            self._sums.clear()
            self._rows = 0
            self._sizes.clear()
        super().log(logs, start_time)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        try:
            super()._save_checkpoint(model, trial)
        except (OSError, SafetensorError, RuntimeError) as error:  # torch reports a full disk as a RuntimeError
            raise UserError(
                f"A checkpoint could not be written into '{self.args.output_dir}': {error}. Make room and go on with "
                f"--resume {Path(str(self.args.output_dir)).parent}; the whole checkpoints before it are kept."
            ) from None

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """Save the student as a model of its own, so that every checkpoint loads with ``from_pretrained``."""
        folder = Path(output_dir or str(self.args.output_dir))
        student = self.accelerator.unwrap_model(self.model).student
        if state_dict is not None:
            state_dict = {k.removeprefix("student."): v for k, v in state_dict.items()}
        student.save_pretrained(folder, state_dict=state_dict)
        if self.processing_class is not None:
            self.processing_class.save_pretrained(folder)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        student: PreTrainedModel = cast(Distillation, self.model if model is None else model).student
        saved = type(student).from_pretrained(resume_from_checkpoint, dtype=student.dtype, use_safetensors=True)
        student.load_state_dict(saved.state_dict())
