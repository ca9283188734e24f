"""Filling a teacher cache, and the sets of a run that trains from one."""

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Final

from filelock import FileLock, Timeout

from distillzoo.core.batch import Batch, Collator, Held
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

MAY_DIFFER: Final = ("subset", "seed", "sampling")
"""Fields of a cache's key in which a run may differ: a smaller subset is cut out, and the trajectories are taken as
they were sampled."""


def key_of(world: World) -> dict[str, Any]:
    """What the content of a cache depends on."""
    config, teacher = world.config, world.teacher
    holes = [] if teacher.vocabulary.holes is None else teacher.vocabulary.holes.tolist()
    sampler = world.generator(teacher, config.evaluate.batch_size)
    prompts = [
        [row.prompt, [[reference.tokens, reference.ended] for reference in row.references]]
        for row in world.train_prompts
    ]
    return {
        "dtype": str(world.dtype).removeprefix("torch."),
        "max_length": config.data.max_length,
        "max_prompt_length": config.data.max_prompt_length,
        "vocabulary": [teacher.vocabulary.size, len(holes), _hash(holes)],
        "tokenizer": tokenizer_hash(world.tokenizer),
        "data": _hash(prompts),
        "teacher": world.teacher_hash,
        "teacher_config": _hash(teacher.model.config.to_json_string()),
        "trajectories": config.trajectories.model_dump(mode="json"),
        "subset": config.subset.model_dump(mode="json"),
        "seed": config.seed,
        "sampling": {
            "sampler": config.sampler,
            "max_new_tokens": sampler.max_new_tokens,
            "stops": list(sampler.stops),
            "suppressed": _hash(list(sampler.suppressed)),
            "device": world.device.type,
        },
    }


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


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
        (subset.weighted, f"{name} has importance weights"),
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
        UserError: the composition can't be cached, the folder holds something else or another build works on it, a
            log-probability is not finite, or a file can't be written.
    """
    must_fit(world)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError("cache build is for one process: start it without accelerate launch.")
    cache = TeacherCache.begin(folder, key_of(world), world.teacher.vocabulary.size)
    try:
        with FileLock(folder / ".lock", timeout=0):
            return _filled(world, TeacherCache.open(folder))
    except Timeout:
        raise UserError(f"Another build works on '{cache.folder}'. Wait for it, or stop it.") from None


def _filled(world: World, cache: TeacherCache) -> TeacherCache:
    if cache.complete:
        return cache
    trajectories = world.collect()
    with world.reporter.stage("the teacher reads the trajectories", total=len(trajectories)):
        world.reporter.advance(cache.sequences)
        for start in range(cache.sequences, len(trajectories), SHARD):
            for part in _with_sets(world, trajectories[start : start + SHARD]):
                cache = cache.add(part, [trajectory.sets for trajectory in part])
    return cache.finish()


def _with_sets(world: World, part: list[Trajectory]) -> Iterator[list[Held]]:
    """The trajectories with their sets, in as many pieces as it takes to hold each in memory."""
    size = world.config.train.device_batch_size or world.config.train.batch_size
    collator = Collator(world.tokenizer.pad_token_id)
    read = with_sets(world.teacher, world.parts[0], part, collator, size, world.reporter.advance)
    if read is None and len(part) == 1:
        raise UserError(
            f"The sets of one trajectory take more than {MOST_BYTES:,} bytes. Set subset.k_max, or take a smaller "
            f"subset."
        )
    if read is None:
        half = len(part) // 2
        yield from _with_sets(world, part[:half])
        yield from _with_sets(world, part[half:])
        return
    if not all(bool(trajectory.sets.logprobs.isfinite().all()) for trajectory in read):
        raise UserError(
            f"The teacher '{world.config.teacher.model}' gives log-probabilities that are not finite: its weights or "
            f"dtype {world.dtype} don't work."
        )
    yield read


def opened(world: World, folder: Path) -> tuple[list[Trajectory], Callable[[Subset], Subset] | None]:
    """The trajectories of the cache that a run trains from, and what cuts the run's sets out of those that are stored;
    None where they are the same.

    Raises:
        UserError: there is no cache, its files aren't as they were written, it belongs to another run, or it holds too
            little for the run's subset.
    """
    cache, key = TeacherCache.open(folder), key_of(world)
    cache.must_belong(key, MAY_DIFFER)
    wrong = cache.verify() if os.environ.get("RANK", "0") == "0" else []
    if wrong:
        raise UserError(f"The teacher cache in '{folder}' is damaged: {' '.join(wrong)} Build it anew.")
    trajectories = cache.trajectories()
    if cache.key["subset"] == key["subset"]:
        return trajectories, None
    cut = partial(served, world.parts[0], size=cache.size)
    size = world.config.train.device_batch_size or world.config.train.batch_size
    collator = Collator(world.tokenizer.pad_token_id)
    with world.reporter.stage("cutting the subset out of the cache", total=len(trajectories)):
        for start in range(0, len(trajectories), size):  # what is missing shows now and not in the training
            part = trajectories[start : start + size]
            stored = Batch(**collator(part)).stored
            assert stored is not None, "all of them come from a cache"
            cut(stored)
            world.reporter.advance(len(part))
    return trajectories, cut
