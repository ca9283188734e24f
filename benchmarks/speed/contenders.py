"""Steps to be timed: forward and backward pass of one batch, with the gradients in place."""

import importlib.util
import os
from collections.abc import Callable
from types import SimpleNamespace

import torch
from torch import Tensor

from distillzoo.benchmarks.speed.workload import Workload
from distillzoo.core.batch import Batch
from distillzoo.core.registry import installed
from distillzoo.core.step import Asked, Distillation, StepResult
from distillzoo.core.transitions import IGNORED

Step = Callable[[], None]
"""One forward and backward pass; the gradients are added to what is there."""


def contenders(work: Workload) -> dict[str, Step]:
    """All steps by name, TRL's only where it is installed. The first is what ratios are taken to."""
    peers = {"gkd (trl)": _trl(work)} if importlib.util.find_spec("trl") is not None else {}
    return {
        "sft (transformers)": _sft(work),
        "student body": _body(work),
        "bc": _ours(work, "nll", "full"),
        "kd": _ours(work, "forward-kl", "full"),
        "bd-iql, live teacher": _ours(work, "iql", "top-p"),
        "bd-iql, cache": _ours(work, "iql", "top-p", cached=True),
        "teacher body": _teacher(work),
        **peers,
        "dense bd loss": _dense(work),
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


def _teacher(work: Workload) -> Step:
    """The teacher's forward pass without its head."""
    batch = work.batch(work.trajectories)
    table = batch.transitions()

    def step() -> None:
        with torch.no_grad():
            work.teacher.states(batch.input_ids, batch.attention_mask, table.sequence, table.position)

    return step


def _ours(work: Workload, objective: str, subset: str, cached: bool = False) -> Step:
    """A step of the trainer: collating, the teacher where it is live, and the objective."""
    parameters = {"gauge": "subset-max", "support_weight": 1.0, "support_fraction": 0.125} if objective == "iql" else {}
    loss = installed().get("objective", objective)(**parameters)
    chosen = work.subset if subset == "top-p" else installed().get("subset", subset)()
    extraction = installed().get("extraction", "projected-softmax" if subset == "top-p" else "softmax")()
    module = Distillation(work.student, chosen, loss, extraction)
    view = loss.needs_teacher_view(chosen)

    def step() -> None:
        batch = work.batch(work.cached if cached else work.trajectories)
        table = batch.transitions()
        found, teacher = batch.stored, None
        if found is None and (chosen.needs_teacher or view):
            with torch.no_grad():
                teacher = work.teacher.view_of(batch, table)
                found = chosen.select(teacher) if chosen.needs_teacher else None
        with _autocast(work):
            result = module(Asked(batch, table, found, teacher if view else None))
        assert isinstance(result, StepResult)
        (result.loss / result.rows).backward()

    return step


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


def _dense(work: Workload) -> Step:
    """The loss of the program released with arXiv:2505.20335, on tensors of logits [B, T, V] as there."""
    objective = installed().get("objective", "iql-released")()
    gamma, alpha, epsilon, q_min = objective.gamma, objective.alpha, objective.epsilon, objective.q_min
    batch = work.batch(work.trajectories)
    response = torch.nn.functional.pad(batch.labels != IGNORED, (0, 1))[:, 1:]  # the states of response tokens
    ends = response & ~torch.nn.functional.pad(response, (0, 1))[:, 1:]
    real = response & ~ends  # the end-of-sequence token counts as padding there

    def step() -> None:
        with torch.no_grad():
            theirs = work.teacher.model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
            order = _wide(theirs).softmax(-1).sort(-1, descending=True)
            kept = order.values.cumsum(-1) - order.values < work.subset.p  # type: ignore[attr-defined]
            inside = torch.zeros_like(kept).scatter(-1, order.indices, kept)
        with _autocast(work):
            logits = work.student.model(
                input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False
            ).logits
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
