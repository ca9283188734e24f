"""The training loop, on top of transformers' Trainer."""

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from pathlib import Path
from typing import Any, Final, cast

import torch
from accelerate.utils import gather_object
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import PreTrainedModel, PrinterCallback, Trainer, TrainerCallback, TrainerState

from distillzoo.core.batch import Batch
from distillzoo.core.errors import UserError
from distillzoo.core.logits import LogitView
from distillzoo.core.models import Backbone
from distillzoo.core.objective import Moments, Objective
from distillzoo.core.rounds import Rounds, Share, Shuffled
from distillzoo.core.spent import Spent
from distillzoo.core.step import Asked, Distillation, PlainText, StepResult, ask, view_of_teacher
from distillzoo.core.subset import ActionSubset, Subset
from distillzoo.core.target import TargetNetwork
from distillzoo.core.trajectories import Trajectory

SIZES_KEPT: Final = 4096
"""Subset sizes kept between two log rows for the 95th percentile."""

TARGET: Final = "target"
"""Folder of the target network in a checkpoint."""


@dataclass(frozen=True)
class Corpus:
    """The second corpus of the language-modelling term: its texts, the term's weight and the teacher's share in it."""

    texts: Sequence[Trajectory]
    weight: float
    teacher_share: float


class Places(Dataset[int]):
    """Stands for the sequences of a run whose trajectories come from ``Rounds``: the loop wants something to count."""

    def __init__(self, count: int) -> None:
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> int:
        return index


def _counted(places: list[int]) -> dict[str, Tensor]:
    return {"places": torch.tensor(places)}


class Diverged(UserError):
    """The loss is no longer finite."""


class DistillTrainer(Trainer):
    """transformers' Trainer with the distillation step; loop, precision, sharding and checkpoints stay as they are.

    Args:
        teacher: none where nothing asks it.
        subset: of the composition.
        objective: of the composition.
        student: the module with the same parts.
        collator: turns trajectories into a batch.
        rounds: where the trajectories come from, if not from ``train_dataset``.
        corpus: of the language-modelling term.
        cut: makes the subset's sets of those that trajectories come with, where they are larger.
        spent: the account of this training.
    """

    def __init__(
        self,
        *,
        teacher: Backbone | None,
        subset: ActionSubset,
        objective: Objective,
        student: Distillation,
        collator: Any,
        rounds: Rounds | None = None,
        corpus: Corpus | None = None,
        cut: Callable[[Subset], Subset] | None = None,
        spent: Spent,
        **kwargs: Any,
    ) -> None:
        super().__init__(model=student, data_collator=collator if rounds is None else _counted, **kwargs)
        self.remove_callback(PrinterCallback)  # it prints every log row as a dict
        self._teacher, self._subset, self._objective = teacher, subset, objective
        self._needs_view = objective.needs_teacher_view(subset) or subset.needs_student
        self._collate, self._rounds, self._corpus, self._cut = collator, rounds, corpus, cut
        self._target: TargetNetwork | None = None
        if objective.target_update is not None:
            self._target = TargetNetwork(student.backbone, objective.target_update)
            self.add_callback(_Follow(self._target))
        self._share = share_of(self.args, self.accelerator.process_index, self.accelerator.num_processes)
        if corpus is not None:
            self._order = Shuffled(len(corpus.texts), self.args.seed, "corpus")
        self._sums: dict[str, float] = defaultdict(float)
        self._rows = 0
        self._sizes: list[int] = []
        self._spent = spent

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> tuple[list[Any], Any]:
        """The forward passes of an optimiser step, with all that spans them: counts, moments, the second corpus."""
        batches, count = super().get_batch_samples(epoch_iterator, num_batches, device)
        if not batches:  # some versions count a resumed epoch from its beginning and go on past its end
            return batches, count
        if self._rounds is not None:
            batches = [self._collate(part) for part in self._rounds.take(self.state.global_step)]
            count = self._get_num_items_in_batch(batches, device)
        count = count.clamp(min=1)  # where all tokens of a step are given there is none to learn
        passes: list[dict[str, Any]] = [{"batch": batch} for batch in batches]
        if self._corpus is not None:
            self._add_texts(passes, float(count))
        if self._objective.whitens:
            self._measure(passes)
        return passes, count

    def _add_texts(self, passes: list[dict[str, Any]], count: float) -> None:
        """Texts of the second corpus for each pass; their sum is divided by their own tokens of the whole step."""
        assert self._corpus is not None
        places, size = self._share.places(self.state.global_step), self._share.sequences
        for i, one in enumerate(passes):
            part = places[i * size : (i + 1) * size]
            one["text"] = self._collate([self._corpus.texts[self._order[place]] for place in part])
        rows = float(self._get_num_items_in_batch([one["text"] for one in passes], self.args.device))
        for one in passes:
            one["text_weight"] = self._corpus.weight * count / rows

    @torch.no_grad()
    def _measure(self, passes: list[dict[str, Any]]) -> None:
        """The moments of the objective's returns over all passes and processes; what the teacher said is kept."""
        found = []
        for one in passes:
            one["asked"] = self._ask(self._prepare_inputs(one["batch"]))
            found.append(cast(Tensor, self.model_wrapped(one["asked"], only_returns=True)).cpu().double())
        values = torch.cat(found)
        sums = gather_object([(len(values), values.sum().item(), values.square().sum().item())])
        count, total, squares = (sum(column) for column in zip(*sums, strict=True))
        mean = total / max(1, count)
        moments = Moments(mean, math.sqrt(max(squares / max(1, count) - mean * mean, 0.0)))
        for one in passes:
            one["asked"] = replace(one["asked"], moments=moments)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Loss of one forward pass, divided by the response tokens of the whole optimiser step.

        The gradients of all passes and processes then add up to that of the mean over all those tokens; DDP averages
        over processes, so the sum is scaled by their number.
        """
        assert num_items_in_batch is not None, "get_batch_samples counts the tokens of the optimiser step"
        asked = inputs["asked"] if "asked" in inputs else self._ask(inputs["batch"])
        text = self._plain_text(inputs["text"], inputs["text_weight"]) if "text" in inputs else None
        if text is not None:
            self._spent.student_tokens += len(text.table)
        result: StepResult = model(asked, text)
        values = (result.loss, *result.sums.values())
        wide = reduce(torch.promote_types, (value.dtype for value in values))
        # one copy from the device, which it waits for
        loss, *sums = torch.stack([value.detach().to(wide) for value in values]).tolist()
        if not math.isfinite(loss):
            bad = [name for name, value in zip(result.sums, sums, strict=True) if not math.isfinite(value)]
            raise Diverged(
                f"The loss is not finite at step {self.state.global_step} (terms: {', '.join(bad) or 'their sum'}). "
                f"The checkpoints so far are kept. A lower train.lr or, for TD terms, a larger alpha may help."
            )
        self._note(result, sums)
        scaled = result.loss * self.accelerator.num_processes / num_items_in_batch
        return (scaled, result) if return_outputs else scaled

    def _ask(self, inputs: dict[str, Any]) -> Asked:
        batch = Batch(**inputs)
        table = batch.transitions()
        target: LogitView | None = None
        if self._target is not None:
            with torch.no_grad(), self.accelerator.autocast():  # as the student, whose copy it is
                target = self._target.view(batch, table)
        asks = self._teacher is not None and (self._subset.needs_teacher or self._needs_view)
        if asks and batch.stored is None and batch.teacher_states is None:
            self._spent.teacher_read += len(table)
        return ask(batch, table, self._teacher, self._subset, self._needs_view, target, self._cut)

    @torch.no_grad()
    def _plain_text(self, inputs: dict[str, Any], weight: float) -> PlainText:
        assert self._corpus is not None
        batch = Batch(**inputs)
        table = batch.transitions()
        teacher: LogitView | None = None
        if self._corpus.teacher_share > 0:
            assert self._teacher is not None, "distil() gives a teacher where anything asks it"
            if batch.teacher_states is None:
                self._spent.teacher_read += len(table)
            teacher = view_of_teacher(self._teacher, batch, table)
        return PlainText(batch, table, teacher, weight, self._corpus.teacher_share)

    def _note(self, result: StepResult, sums: Sequence[float]) -> None:
        for name, value in zip(result.sums, sums, strict=True):
            self._sums[name] += value
        self._rows += result.rows
        self._spent.student_tokens += result.rows
        room = SIZES_KEPT - len(self._sizes)
        self._sizes.extend(result.sizes[:room].tolist())

    def train(self, resume_from_checkpoint: str | None = None, **kwargs: Any) -> Any:
        """Train, from a checkpoint if one is given: what the Trainer doesn't know of is read here."""
        if resume_from_checkpoint is not None:
            self._spent.load(Path(resume_from_checkpoint))
            if self._target is not None:
                self._target.load(Path(resume_from_checkpoint) / TARGET)
            if self._rounds is not None:
                self._rounds.load(Path(resume_from_checkpoint))
        return super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)

    def restore(self, checkpoint: Path) -> None:
        """Take weights and state of a checkpoint, for a run whose training had ended when it was cut off."""
        self._load_from_checkpoint(str(checkpoint))
        self._spent.load(checkpoint)
        self.state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))

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
        folder = Path(str(self.args.output_dir)) / f"checkpoint-{self.state.global_step}"
        try:
            if self._rounds is not None:  # before the trainer's own state, whose presence means a whole checkpoint
                self._rounds.save(folder)
            spent = self._spent.over_all_processes()
            if self.is_world_process_zero():
                spent.save(folder)
                if self._target is not None:
                    self._target.save(folder / TARGET)
            self.accelerator.wait_for_everyone()
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


class _Follow(TrainerCallback):
    """Moves the target network after each optimiser step."""

    def __init__(self, target: TargetNetwork) -> None:
        self._target = target

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._target.follow(state.global_step)


def share_of(args: Any, process: int, processes: int) -> Share:
    """This process's part of each optimiser step."""
    return Share(process, processes, args.gradient_accumulation_steps, args.per_device_train_batch_size, args.max_steps)
