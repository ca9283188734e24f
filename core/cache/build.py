"""Filling a teacher cache, and the sets of a run that trains from one."""

import hashlib
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final

from distillzoo.core.batch import Batch, Collator
from distillzoo.core.cache.logits import served
from distillzoo.core.cache.store import TeacherCache
from distillzoo.core.errors import UserError
from distillzoo.core.models import tokenizer_hash
from distillzoo.core.subset import Subset
from distillzoo.core.taught import MOST_BYTES, with_sets
from distillzoo.core.trajectories import Trajectory
from distillzoo.core.world import World

SHARD: Final = 512
"""Trajectories a shard: what a killed build loses at most."""

MAY_DIFFER: Final = ("subset", "seed")
"""Fields of a cache's key in which a run may differ: a smaller subset is cut out, and the trajectories are taken as
they were sampled."""


def key_of(world: World) -> dict[str, Any]:
    """What the content of a cache depends on."""
    config = world.config
    data = json.dumps(world.train_rows, sort_keys=True, default=str)
    return {
        "teacher": world.teacher_hash,
        "tokenizer": tokenizer_hash(world.tokenizer),
        "data": hashlib.sha256(data.encode()).hexdigest(),
        "max_length": config.data.max_length,
        "max_prompt_length": config.data.max_prompt_length,
        "max_new_tokens": config.evaluate.max_new_tokens,
        "dtype": str(world.dtype).removeprefix("torch."),
        "trajectories": config.trajectories.model_dump(mode="json"),
        "subset": config.subset.model_dump(mode="json"),
        "seed": config.seed,
    }


def must_fit(world: World) -> None:
    """Refuse a composition that asks more of the teacher than a cache holds.

    Raises:
        UserError: with what it asks.
    """
    config = world.config
    if world.parts[3].period is not None:
        raise UserError(
            f"The source {config.trajectories.name} samples from the student as it learns, and a teacher cache holds "
            f"trajectories that don't change. Use dataset or teacher."
        )
    why = asks_more(world)
    if config.lm.data is not None and config.lm.weight * config.lm.teacher_share > 0:
        why = "lm.teacher_share has the teacher read the second corpus"
    if why is not None:
        raise UserError(f"A teacher cache holds the teacher's subset a state alone, and {why}.")


def asks_more(world: World) -> str | None:
    """Why the teacher's sets, computed once, are not all that the composition asks of the teacher; None if they are."""
    subset, objective = world.parts[:2]
    name = f"the subset {world.config.subset.name}"
    for asks, why in (
        (not subset.needs_teacher, f"{name} is the whole vocabulary"),
        (subset.needs_student, f"{name} depends on the student"),
        (subset.draws, f"{name} is drawn anew in each step"),
        (subset.include_action, "subset.include_action asks for the teacher's log-probability of every action"),
        (
            objective.needs_teacher_view(subset),
            f"the objective {world.config.objective.name}, as it is set, reads the teacher's whole distribution",
        ),
    ):
        if asks:
            return why
    return None


def build(world: World, folder: Path) -> TeacherCache:
    """A whole cache of the world's trajectories, going on where an earlier build was cut off.

    Raises:
        UserError: the composition can't be cached, the folder holds something else, or a file can't be written.
    """
    must_fit(world)
    cache = TeacherCache.begin(folder, key_of(world), world.teacher.vocabulary.size)
    if cache.complete:
        return cache
    trajectories = world.collect()
    size = world.config.train.device_batch_size or world.config.train.batch_size
    collator = Collator(world.tokenizer.pad_token_id)
    with world.reporter.stage("the teacher reads the trajectories", total=len(trajectories)):
        world.reporter.advance(cache.sequences)
        for start in range(cache.sequences, len(trajectories), SHARD):
            part = trajectories[start : start + SHARD]
            read = with_sets(world.teacher, world.parts[0], part, collator, size, world.reporter.advance)
            if read is None:
                raise UserError(
                    f"The sets of {SHARD} trajectories take more than {MOST_BYTES:,} bytes. Set subset.k_max, or take "
                    f"a smaller subset."
                )
            cache = cache.add(part, [trajectory.sets for trajectory in read])
    return cache.finish()


def opened(world: World, folder: Path) -> tuple[list[Trajectory], Callable[[Subset], Subset]]:
    """The trajectories of the cache that a run trains from, and what makes the run's sets of those that are stored.

    Raises:
        UserError: there is no cache, it belongs to another run, or it holds too little for the run's subset.
    """
    must_fit(world)
    cache, key = TeacherCache.open(folder), key_of(world)
    cache.must_belong(key, MAY_DIFFER)
    trajectories = cache.trajectories()
    if cache.key["subset"] == key["subset"]:
        return trajectories, lambda stored: stored
    cut = partial(served, world.parts[0], size=cache.size)
    collator = Collator(world.tokenizer.pad_token_id)
    for start in range(0, len(trajectories), SHARD):  # what is missing shows now and not in the middle of the training
        stored = Batch(**collator(trajectories[start : start + SHARD])).stored
        assert stored is not None, "all of them come from a cache"
        cut(stored)
    return trajectories, cut
