"""Steps to be timed: forward and backward pass of one batch, with the gradients in place."""

import importlib.util
import os
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, Final

import torch
from torch import Tensor

from distillzoo.benchmarks.speed.workload import Workload
from distillzoo.core.batch import Batch
from distillzoo.core.extraction import PolicyExtraction
from distillzoo.core.models import Backbone
from distillzoo.core.objective import Objective
from distillzoo.core.registry import installed
from distillzoo.core.step import Distillation, StepResult, ask
from distillzoo.core.subset import ActionSubset
from distillzoo.core.taught import taught
from distillzoo.core.transitions import IGNORED, Transitions

Step = Callable[[], None]
"""One forward and backward pass; the gradients are added to what is there."""


EIGHTH: Final[dict[str, Any]] = {"support_weight": 1.0, "support_fraction": 0.125, "gauge": "subset-max"}
"""bd-iql with its support term on an eighth of the states."""


def contenders(work: Workload) -> dict[str, Callable[[], Step]]:
    """What makes each step, by name; TRL's only where it is installed. The first is what ratios are taken to.

    ``1/8`` has the support term on an eighth of the states. The steps ``loss: ...`` begin from batches and last hidden
    states on the device: they are heads and losses alone, forward and backward.
    """
    peers = {"gkd (trl)": lambda: _trl(work)} if importlib.util.find_spec("trl") is not None else {}
    return {
        "sft (transformers)": lambda: _sft(work),
        "student body": lambda: _body(work),
        "bc": lambda: ours(work, "nll", "full"),
        "kd": lambda: ours(work, "forward-kl", "full"),
        "bd-iql": lambda: ours(work, "iql", "top-p", support_weight=1.0),
        "bd-iql, cache": lambda: ours(work, "iql", "top-p", cached=True, support_weight=1.0),
        "bd-iql 1/8": lambda: ours(work, "iql", "top-p", **EIGHTH),
        "bd-iql 1/8, cache": lambda: ours(work, "iql", "top-p", cached=True, **EIGHTH),
        "teacher body": lambda: _teacher(work),
        **peers,
        "released, dense": lambda: _dense(work),
        "reading the cache": lambda: _reading(work),
        "loss: kd": lambda: ours(work, "forward-kl", "full", body=False),
        "loss: bd-iql 1/8": lambda: ours(work, "iql", "top-p", body=False, **EIGHTH),
        "loss: bd-iql 1/8, cache": lambda: ours(work, "iql", "top-p", cached=True, body=False, **EIGHTH),
        "loss: released, dense": lambda: _dense(work, body=False),
    }


def _autocast(work: Workload) -> torch.autocast:
    return torch.autocast(work.device.type, work.dtype, enabled=work.dtype != torch.float32)


def _sft(work: Workload) -> Step:
    """The whole model's own loss on the response tokens."""
    batch = work.batch(work.trajectories)

    def step() -> None:
        with _autocast(work):
            loss: Tensor = work.student.model(
                input_ids=batch.input_ids, attention_mask=batch.attention_mask, labels=batch.labels, use_cache=False
            ).loss
        loss.backward()

    return step


def _states(work: Workload, batch: Batch) -> Tensor:
    table = batch.transitions()
    return work.student.states(batch.input_ids, batch.attention_mask, table.sequence, table.position)


def _body(work: Workload) -> Step:
    """The student without its head: the least that any step costs."""
    batch = work.batch(work.trajectories)
    gradient: list[Tensor] = []

    def step() -> None:
        with _autocast(work):
            states = _states(work, batch)
        if not gradient:
            gradient.append(torch.randn_like(states))
        states.backward(gradient[0])

    return step


def _reading(work: Workload) -> Step:
    """The sequences and sets of a batch, from the mapped file to padded tensors."""

    def step() -> None:
        work.batch(work.cached)

    return step


def _teacher(work: Workload) -> Step:
    """The teacher's forward pass without its head."""
    batch = work.batch(work.trajectories)
    table = batch.transitions()

    def step() -> None:
        with torch.no_grad():
            work.teacher.states(batch.input_ids, batch.attention_mask, table.sequence, table.position)

    return step


def ours(
    work: Workload, objective: str, subset: str, cached: bool = False, body: bool = True, **parameters: Any
) -> Step:
    """A step of the trainer: collating, the teacher where it is live, and the objective."""
    loss = installed().get("objective", objective)(**parameters)
    chosen = work.subset if subset == "top-p" else installed().get("subset", subset)()
    extraction = installed().get("extraction", "projected-softmax" if subset == "top-p" else "softmax")()
    rows = work.cached if cached else work.trajectories
    view = loss.needs_teacher_view(chosen)
    if body:
        module, given = Distillation(work.student, chosen, loss, extraction), None
    else:
        with torch.no_grad():
            states = _states(work, work.batch(rows))
        module = _WithoutBody(work.student, chosen, loss, extraction, states)
        if not cached:
            rows = taught(work.teacher, rows, work.collator, len(rows), lambda count: None)
        given = work.batch(rows)

    def step() -> None:
        batch = given or work.batch(rows)
        asked = ask(batch, batch.transitions(), work.teacher, chosen, view)
        with _autocast(work):
            result = module(asked)
        assert isinstance(result, StepResult)
        (result.loss / result.rows).backward()
        if isinstance(module, _WithoutBody):
            module.given.grad = None

    return step


class _WithoutBody(Distillation):
    """The step on hidden states that are there, with their gradient."""

    def __init__(
        self,
        student: Backbone,
        subset: ActionSubset,
        objective: Objective,
        extraction: PolicyExtraction,
        states: Tensor,
    ) -> None:
        super().__init__(student, subset, objective, extraction)
        self.given = states.requires_grad_()

    def _states(self, batch: Batch, table: Transitions) -> Tensor:
        return self.given


def _trl(work: Workload) -> Step:
    """The loss of TRL's GKD trainer with lambda 0 and beta 0: as ``kd``, on the batch's own responses."""
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    from trl.experimental.gkd import GKDTrainer

    trainer = SimpleNamespace(
        teacher_model=work.teacher.model, beta=0.0, generalized_jsd_loss=GKDTrainer.generalized_jsd_loss
    )
    batch = work.batch(work.trajectories)
    inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask, "labels": batch.labels}

    def step() -> None:
        with _autocast(work):
            loss: Tensor = GKDTrainer.compute_loss(trainer, work.student.model, inputs)
        loss.backward()

    return step


def _dense(work: Workload, body: bool = True) -> Step:
    """The loss of the program released with arXiv:2505.20335, on tensors of logits [B, T, V] as there."""
    objective = installed().get("objective", "iql-released")()
    gamma, alpha, epsilon, q_min = objective.gamma, objective.alpha, objective.epsilon, objective.q_min
    batch = work.batch(work.trajectories)
    response = torch.nn.functional.pad(batch.labels != IGNORED, (0, 1))[:, 1:]  # the states of response tokens
    ends = response & ~torch.nn.functional.pad(response, (0, 1))[:, 1:]
    real = response & ~ends  # the end-of-sequence token counts as padding there
    theirs_of, ours_of = _whole_logits(work.teacher, batch, body), _whole_logits(work.student, batch, body)

    def step() -> None:
        with torch.no_grad():
            order = _wide(theirs_of()).softmax(-1).sort(-1, descending=True)
            kept = order.values.cumsum(-1) - order.values < work.subset.p  # type: ignore[attr-defined]
            inside = torch.zeros_like(kept).scatter(-1, order.indices, kept)
        with _autocast(work):
            logits = ours_of()
        logits = _wide(logits)
        q = (logits - logits.amax(-1, keepdim=True)).clamp(min=q_min)
        policy = q.softmax(-1) * inside + epsilon
        policy = policy / policy.sum(-1, keepdim=True)
        value = (policy * (q - policy.log())).sum(-1) * real
        ahead = gamma * torch.cat([value[:, 1:], torch.zeros_like(value[:, :1])], 1)
        reward = torch.where(inside, q, 0.0) - ahead[..., None]
        terms = value - ahead - reward.mean(-1) + reward.square().mean(-1) / (4 * alpha)
        (terms[real].sum() / response.sum()).backward()

    return step


def _wide(logits: Tensor) -> Tensor:
    return logits if logits.dtype == torch.float64 else logits.float()


def _whole_logits(backbone: Backbone, batch: Batch, body: bool) -> Callable[[], Tensor]:
    """All logits of a batch, [B, T, V], of the whole model or from states that are there."""
    inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask, "use_cache": False}
    if body:
        return lambda: backbone.model(**inputs).logits
    with torch.no_grad():
        states = backbone.model.base_model(**inputs).last_hidden_state

    def logits() -> Tensor:
        leaf = states.detach().requires_grad_(torch.is_grad_enabled())
        return backbone.model.get_output_embeddings()(leaf)  # type: ignore[no-any-return]

    return logits
