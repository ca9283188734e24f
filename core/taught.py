"""What the teacher says along trajectories that don't change, computed once for the whole training."""

from collections.abc import Callable, Iterator, Sequence
from typing import Final

import torch
from torch import Tensor

from distillzoo.core.batch import Collator, Held, Taught
from distillzoo.core.cache.shard import Sets
from distillzoo.core.models import Backbone
from distillzoo.core.subset import ActionSubset
from distillzoo.core.trajectories import Trajectory

MOST_BYTES: Final = 1 << 31
"""Memory that the states or sets may take; where it is too little the teacher runs in every step."""

ROUNDS: Final = 1.5
"""A pass over the data costs one round of the training. With fewer rounds to come it isn't worth it."""


def pays(trajectories: Sequence[Trajectory], sequences: int) -> bool:
    """Whether the teacher should read the trajectories before the training.

    The answer is the same when a run is resumed, which otherwise would not end with the same bits on a CPU.

    Args:
        trajectories: of the training.
        sequences: how many this process trains on until the end, some of them several times.
    """
    return bool(trajectories) and sequences >= ROUNDS * len(trajectories)


def states_fit(teacher: Backbone, trajectories: Sequence[Trajectory]) -> bool:
    """Whether the teacher's states can be kept: its head is linear, or it would be all its logits, and they are few."""
    if teacher.head is None:
        return False
    tokens = sum(len(t.response.tokens) - t.given for t in trajectories)
    weight = teacher.head.weight
    return tokens * weight.shape[1] * weight.element_size() <= MOST_BYTES


def taught(
    teacher: Backbone,
    trajectories: Sequence[Trajectory],
    collator: Collator,
    batch_size: int,
    progress: Callable[[int], None],
) -> list[Trajectory]:
    """The trajectories with the teacher's states."""
    found = list(trajectories)
    for places, states, counts in _read(teacher, trajectories, collator, batch_size, progress):
        for place, mine in zip(places, states.cpu().split(counts), strict=True):
            found[place] = Taught(**vars(trajectories[place]), states=mine.clone())
    return found


@torch.no_grad()
def with_sets(
    teacher: Backbone,
    subset: ActionSubset,
    trajectories: Sequence[Trajectory],
    collator: Collator,
    batch_size: int,
    progress: Callable[[int], None],
) -> list[Held] | None:
    """The trajectories with the teacher's sets, for a subset that asks the teacher alone and draws nothing.

    Returns:
        None where the sets take more than ``MOST_BYTES``.
    """
    found: dict[int, Held] = {}
    left = MOST_BYTES
    for places, states, counts in _read(teacher, trajectories, collator, batch_size, progress):
        chosen = subset.select(teacher.view(states))
        sizes, actions = chosen.size.cpu().split(counts), chosen.actions[chosen.mask].int().cpu()
        logprobs, masses = chosen.logprobs[chosen.mask].float().cpu(), chosen.mass.float().cpu().split(counts)
        left -= actions.nbytes + logprobs.nbytes
        if left < 0:
            return None
        entries = [int(size.sum()) for size in sizes]
        parts = zip(places, sizes, actions.split(entries), logprobs.split(entries), masses, strict=True)
        for place, *tensors in parts:
            found[place] = Held(**vars(trajectories[place]), sets=Sets(*(tensor.clone() for tensor in tensors)))
    return [found[place] for place in range(len(trajectories))]


@torch.no_grad()
def _read(
    teacher: Backbone,
    trajectories: Sequence[Trajectory],
    collator: Collator,
    batch_size: int,
    progress: Callable[[int], None],
) -> Iterator[tuple[list[int], Tensor, list[int]]]:
    """The teacher's last hidden states, in batches of like length, the longest first.

    Yields:
        The places of a batch's trajectories, the states at all their actions, how many of them are each one's.
    """
    order = sorted(range(len(trajectories)), key=lambda i: -_length(trajectories[i]))
    for start in range(0, len(order), batch_size):
        places = order[start : start + batch_size]
        batch = collator.batch([trajectories[i] for i in places], teacher.model.device)
        table = batch.transitions()
        states = teacher.states(batch.input_ids, batch.attention_mask, table.sequence, table.position)
        yield places, states, torch.bincount(table.sequence, minlength=len(places)).tolist()
        progress(len(places))


def _length(trajectory: Trajectory) -> int:
    return len(trajectory.prompt) + len(trajectory.response.tokens)
