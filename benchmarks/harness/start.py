"""What the cells of a matrix share: where the models of a pair start, and the teacher's sets."""

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from distillzoo.benchmarks.harness.benchmark import Benchmark, FineTuning, Pair, content, with_inputs
from distillzoo.benchmarks.harness.plan import Cell
from distillzoo.core.cache.build import asks_more, build, key_of
from distillzoo.core.config import RunConfig, dump, merge, resolve
from distillzoo.core.distill import distil
from distillzoo.core.files import write_whole
from distillzoo.core.progress import Reporter
from distillzoo.core.registry import Registry
from distillzoo.core.rundir import RunDirectory
from distillzoo.core.world import World


def models_of(cell: Cell, benchmark: Benchmark, registry: Registry, pair: Pair, shared: Path) -> Mapping[str, str]:
    """Teacher and student of a cell. A start is a run below ``shared``, under a key of its configuration; the first
    cell that needs it makes it, and others wait."""
    teacher, student = pair.teacher, pair.student
    if benchmark.teacher_start is not None:
        teacher = _made(cell, benchmark, registry, benchmark.teacher_start, pair, pair.teacher, pair.teacher, shared)
    if benchmark.student_start is not None:
        student = _made(cell, benchmark, registry, benchmark.student_start, pair, teacher, pair.student, shared)
    return {"teacher": teacher, "student": student}


def _made(
    cell: Cell,
    benchmark: Benchmark,
    registry: Registry,
    tuning: FineTuning,
    pair: Pair,
    teacher: str,
    student: str,
    shared: Path,
) -> str:
    models = {"teacher": {"model": teacher}, "student": {"model": student}}
    alone = {"evaluate": {"before": False, "metrics": []}, "seed": 0, "device": cell.device}
    flags: dict[str, object] = {}
    for tree in (benchmark.run, pair.run, tuning.run, {**models, **alone}):
        flags = merge(flags, with_inputs(tree, cell.inputs))
    config = resolve(registry, algo=tuning.algo, flags=flags, settings=benchmark.settings)
    facts = [dump(config), content(cell.inputs)]
    key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
    directory = RunDirectory(shared / f"start-{key}")
    shared.mkdir(parents=True, exist_ok=True)
    with FileLock(shared / f"start-{key}.lock"):
        if not directory.result.exists():
            if not directory.config.exists():
                shutil.rmtree(directory.path, ignore_errors=True)
                RunDirectory.create(directory.path)
            distil(config, registry, directory, Reporter(quiet=False), score=False)
            shutil.rmtree(directory.checkpoints, ignore_errors=True)
    return str(directory.model.resolve())


@dataclass(frozen=True)
class Shared:
    """A teacher cache, and what the teacher's samples in it cost."""

    folder: Path
    sampling_seconds: float
    sampled_tokens: int


def cache_of(config: RunConfig, registry: Registry, shared: Path) -> Shared | None:
    """The teacher cache of a cell, built by the first that needs its content; None where the algorithm asks the teacher
    for more than its sets, or samples as it learns."""
    world = World(config, registry, Reporter(quiet=False))
    online, corpus = world.parts[3].period is not None, config.lm.weight * config.lm.teacher_share > 0
    if online or corpus or asks_more(world) is not None:
        return None
    world.load()
    key = hashlib.sha256(json.dumps(key_of(world), sort_keys=True).encode()).hexdigest()[:16]
    folder = shared / f"cache-{key}"
    with FileLock(shared / f"cache-{key}.lock"):
        account = folder.with_suffix(".json")
        if not account.exists():
            build(world, folder)
            sampled = sum(tokens for tokens, _ in world.spent.offline.values())
            write_whole(account, json.dumps({"seconds": world.spent.sampling_seconds, "tokens": sampled}))
        paid = json.loads(account.read_text(encoding="utf-8"))
    return Shared(folder.resolve(), paid["seconds"], paid["tokens"])
