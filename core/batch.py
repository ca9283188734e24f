"""Padded batches of trajectories."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.utils.data import Dataset

from distillzoo.core.cache.shard import Cached, Sets
from distillzoo.core.subset import Subset
from distillzoo.core.trajectories import Trajectory
from distillzoo.core.transitions import IGNORED, Transitions, transitions


@dataclass(frozen=True, eq=False)
class Taught(Trajectory):
    """A trajectory with the teacher's last hidden states at its actions, ``[n, D]``."""

    states: Float[Tensor, "n D"] = field(kw_only=True)


@dataclass(frozen=True, eq=False)
class Held(Trajectory):
    """A trajectory with the teacher's sets at its actions, in memory."""

    sets: Sets = field(kw_only=True)


@dataclass(frozen=True)
class Batch:
    """A padded batch on the device.

    ``ended`` says which sequences are not truncated. What the teacher says at the rows of ``transitions`` may have come
    with the sequences: its last hidden states, or its sets from a cache.
    """

    input_ids: Int[Tensor, "B T"]
    attention_mask: Int[Tensor, "B T"]
    labels: Int[Tensor, "B T"]
    ended: Bool[Tensor, "B"]
    expert: Bool[Tensor, "B"]
    behaviour: Float[Tensor, "B T"]
    teacher_states: Float[Tensor, "N D"] | None = None
    set_actions: Int[Tensor, "N K"] | None = None
    set_logprobs: Float[Tensor, "N K"] | None = None
    set_mask: Bool[Tensor, "N K"] | None = None
    set_mass: Float[Tensor, "N"] | None = None

    @property
    def stored(self) -> Subset | None:
        """The teacher's sets, if they came with the sequences."""
        if self.set_actions is None or self.set_logprobs is None or self.set_mask is None or self.set_mass is None:
            return None
        return Subset(self.set_actions, self.set_mask, self.set_logprobs, self.set_mass)

    def transitions(self) -> Transitions:
        return transitions(self.labels, self.input_ids, self.ended, self.expert, self.behaviour)


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
        behaviour = torch.full(shape, math.nan)
        for i, (prompt, response) in enumerate(rows):
            end = len(prompt) + len(response)
            ids[i, :end] = torch.tensor([*prompt, *response])
            mask[i, :end] = 1
            learnt = len(prompt) + trajectories[i].given
            labels[i, learnt:end] = ids[i, learnt:end]
            logprobs = trajectories[i].response.logprobs
            if logprobs is not None:
                behaviour[i, len(prompt) : end] = torch.tensor(logprobs)
        return {
            **_of_the_teacher(trajectories),
            "input_ids": ids,
            "attention_mask": mask,
            "labels": labels,
            "ended": torch.tensor([t.response.ended for t in trajectories]),
            "expert": torch.tensor([t.expert for t in trajectories]),
            "behaviour": behaviour,
        }

    def batch(self, trajectories: Sequence[Trajectory], device: torch.device) -> Batch:
        """The same as a ``Batch`` on a device."""
        return Batch(**{name: value.to(device) for name, value in self(trajectories).items()})


def _of_the_teacher(trajectories: Sequence[Trajectory]) -> dict[str, Tensor]:
    """What the sequences came with, if all of them did."""
    states = [t.states for t in trajectories if isinstance(t, Taught)]
    if len(states) == len(trajectories):
        return {"teacher_states": torch.cat(states)}
    sets = [t.sets for t in trajectories if isinstance(t, Cached | Held)]
    if len(sets) < len(trajectories):
        return {}
    counts = torch.cat([s.counts for s in sets])
    mask = torch.arange(int(counts.max()) if len(counts) else 0) < counts[:, None]
    actions = torch.zeros(mask.shape, dtype=torch.long)
    logprobs = torch.zeros(mask.shape)
    actions[mask], logprobs[mask] = torch.cat([s.actions for s in sets]).long(), torch.cat([s.logprobs for s in sets])
    mass = torch.cat([s.mass for s in sets])
    return {"set_actions": actions, "set_logprobs": logprobs, "set_mask": mask, "set_mass": mass}
