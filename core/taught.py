"""The teacher's states along trajectories that don't change, computed once for the whole training."""

from collections.abc import Callable, Sequence
from typing import Final, cast

import torch

from distillzoo.core.batch import Batch, Collator, Taught
from distillzoo.core.models import Backbone
from distillzoo.core.trajectories import Trajectory

MOST_BYTES: Final = 1 << 31
"""Memory that the states may take; the teacher of longer data runs in every step."""

ROUNDS: Final = 1.5
"""A pass over the data costs one round of the training. With fewer rounds to come it isn't worth it."""


def pays(teacher: Backbone, trajectories: Sequence[Trajectory], sequences: int) -> bool:
    """Whether to compute the states before the training.

    The answer is the same when a run is resumed, which otherwise would not end with the same bits.

    Args:
        teacher: a model whose head is linear, or all its logits would have to be kept.
        trajectories: of the training.
        sequences: how many this process trains on until the end, some of them several times.
    """
    if teacher.head is None or not trajectories or sequences < ROUNDS * len(trajectories):
        return False
    tokens = sum(len(t.response.tokens) - t.given for t in trajectories)
    weight = teacher.head.weight
    return tokens * weight.shape[1] * weight.element_size() <= MOST_BYTES


@torch.no_grad()
def taught(
    teacher: Backbone,
    trajectories: Sequence[Trajectory],
    collator: Collator,
    batch_size: int,
    progress: Callable[[int], None],
) -> list[Taught]:
    """The trajectories with the teacher's states, computed in batches of like length, the longest first."""
    order = sorted(range(len(trajectories)), key=lambda i: -_length(trajectories[i]))
    found: list[Taught | None] = [None] * len(trajectories)
    for start in range(0, len(order), batch_size):
        part = order[start : start + batch_size]
        inputs = collator([trajectories[i] for i in part])
        batch = Batch(**{name: value.to(teacher.model.device) for name, value in inputs.items()})
        table = batch.transitions()
        states = teacher.states(batch.input_ids, batch.attention_mask, table.sequence, table.position).cpu()
        counts = torch.bincount(table.sequence, minlength=len(part)).tolist()
        for i, mine in zip(part, states.split(counts), strict=True):
            found[i] = Taught(**vars(trajectories[i]), states=mine.clone())
        progress(len(part))
    return cast(list[Taught], found)


def _length(trajectory: Trajectory) -> int:
    return len(trajectory.prompt) + len(trajectory.response.tokens)
