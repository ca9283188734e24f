"""One cell: train, score and write a row. ``python -m distillzoo.benchmarks.harness.cell FOLDER`` is its process."""

import hashlib
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from filelock import FileLock

from distillzoo.benchmarks.harness.benchmark import Benchmark, Pair, renamed, with_inputs
from distillzoo.benchmarks.harness.executors import PARENT
from distillzoo.benchmarks.harness.plan import Cell, suite_hash
from distillzoo.benchmarks.harness.row import (
    Cost,
    CurvePoint,
    DecodingUsed,
    PartUsed,
    Row,
)
from distillzoo.core.config import RunConfig, dump, merge, resolve
from distillzoo.core.files import write_whole
from distillzoo.core.recipe import Recipe
from distillzoo.core.registry import PART_KINDS, Kind, Registry, installed

ROW: Final = "row.json"
"""A finished cell's row, in its folder."""

CELL: Final = "cell.json"
"""What a cell is, in its folder."""


def configuration(
    cell: Cell, benchmark: Benchmark, registry: Registry, pair: Pair, models: Mapping[str, str]
) -> RunConfig:
    """The configuration of a cell's run: the recipe's, under what the benchmark holds fixed.

    Args:
        cell: the cell.
        benchmark: its benchmark.
        registry: of the parts.
        pair: the cell's pair.
        models: teacher and student, where they are not the pair's own.
    """
    headline = benchmark.decodings[benchmark.headline.decoding]
    evaluate: dict[str, Any] = {"before": False, "metrics": [benchmark.headline.metric]}
    curve = {}
    if benchmark.curve is not None:
        headline = benchmark.decodings[benchmark.curve.decoding]
        curve = {"every": benchmark.curve.every, "limit": benchmark.curve.limit, "metrics": benchmark.curve.metrics}
    evaluate |= {"temperature": headline.temperature, "top_p": headline.top_p}
    own = {"teacher": {"model": models["teacher"]}, "student": {"model": models["student"]}}
    flags: dict[str, Any] = {}
    if cell.subset is not None:
        flags["subset"] = {"name": cell.subset}
    for tree in (
        benchmark.algorithms.get(cell.algo, {}),
        benchmark.run,
        pair.run,
        {"evaluate": evaluate, "curve": curve, "seed": cell.seed, "device": cell.device, **own},
    ):
        flags = merge(flags, with_inputs(tree, cell.inputs))
    return resolve(registry, algo=cell.algo, flags=flags, sets=cell.run_changes, settings=benchmark.settings)


def must_resolve(cell: Cell, benchmark: Benchmark, registry: Registry) -> None:
    """Refuse what is wrong with a cell's settings before any process starts.

    Raises:
        UserError: a field, a value, a part or a metric is not known.
    """
    for decoding in benchmark.decodings.values():
        for metric in decoding.metrics:
            registry.entry("metric", metric)
    pair = Pair.model_validate(with_inputs(benchmark.pairs[cell.pair].model_dump(), cell.inputs))
    configuration(cell, benchmark, registry, pair, {"teacher": pair.teacher, "student": pair.student})


def run_cell(folder: Path, out: Path) -> Row:
    """Run the cell in ``folder``, or go on with it, and write its row and its answers.

    A cell that fails has a row with its error.
    """
    cell = Cell.read(folder / CELL)
    try:
        row = _trained(cell, folder, out)
    except Exception as error:
        traceback.print_exc()
        row = failed(cell, f"{type(error).__name__}: {error}")
    write_whole(folder / ROW, row.model_dump_json(indent=1) + "\n")
    return row


def failed(cell: Cell, error: str) -> Row:
    """The row of a cell that did not end well."""
    return Row(**_facts(cell, cell.benchmark, {}, {}, {}), status="failed", error=error)


def _trained(cell: Cell, folder: Path, out: Path) -> Row:
    from accelerate.utils import release_memory

    from distillzoo.benchmarks.harness.scores import must_be_pinned, references, scored
    from distillzoo.benchmarks.harness.start import cache_of, models_of
    from distillzoo.core.cli.output import silence_libraries
    from distillzoo.core.distill import distil
    from distillzoo.core.progress import Reporter
    from distillzoo.core.rundir import RunDirectory

    silence_libraries()
    start = time.perf_counter()
    registry, benchmark = installed(), cell.benchmark
    pair = Pair.model_validate(with_inputs(benchmark.pairs[cell.pair].model_dump(), cell.inputs))
    models = models_of(cell, benchmark, registry, pair, out / "shared")
    config = configuration(cell, benchmark, registry, pair, models)
    cached = cache_of(config, registry, out / "shared") if benchmark.teacher_cache else None
    shared = time.perf_counter() - start
    if cached is not None:
        config.teacher_cache = cached.folder
    must_be_pinned(cell, benchmark, registry, config)
    directory = RunDirectory(folder / "run")
    begun = directory.config.read_text(encoding="utf-8") if directory.config.exists() else None
    if begun != dump(config) or not directory.result.exists():
        if begun != dump(config):  # never begun, or under other settings
            shutil.rmtree(directory.path, ignore_errors=True)
            RunDirectory.create(directory.path)
        distil(config, registry, directory, Reporter(quiet=False), score=False)
        release_memory()  # the student is read again for its scores
    result = json.loads(directory.result.read_text(encoding="utf-8"))
    trained = time.perf_counter()
    found = scored(cell, benchmark, registry, config, directory.model)
    evaluated = time.perf_counter()
    beside = references(cell, benchmark, registry, config, out / "shared")
    shared += time.perf_counter() - evaluated
    answers = out / "answers" / f"{cell.folder}.jsonl"
    write_whole(answers, "".join(answer.model_dump_json() + "\n" for answer in found.answers))
    training = result["training"]
    if cached is not None:
        training["sampling_seconds"] += cached.sampling_seconds
        training["teacher_tokens"] += cached.sampled_tokens
    made = {models[which]: f"start:{which}" for which in models if models[which] != getattr(pair, which)}
    names = {value: f"input:{name}" for name, value in cell.inputs.items()} | made
    names[str(config.teacher_cache)] = "shared:teacher-cache"
    tree = renamed(config.model_dump(mode="json", exclude={"output"}), names)
    row = Row(
        **_facts(cell, benchmark, tree, result, found.hashes),
        status="done",
        scores=found.scores,
        references=beside,
        curve=[_point(point) for point in directory.read(directory.curve)],
        positions=found.positions,
        cost=Cost(
            seconds=time.perf_counter() - start,
            evaluation_seconds=evaluated - trained,
            shared_seconds=shared,
            training_seconds=training["seconds"],
            peak_memory_bytes=result["peak_memory_bytes"],
            **{name: training[name] for name in _ACCOUNT},
        ),
        outputs=f"answers/{answers.name}",
    )
    shutil.rmtree(directory.checkpoints, ignore_errors=True)
    return row


_ACCOUNT: Final = ("sampling_seconds", "student_tokens", "sampled_tokens", "teacher_tokens", "tokens_per_second")


def _point(point: dict[str, Any]) -> CurvePoint:
    return CurvePoint(**{name: point[name] for name in CurvePoint.model_fields})


def _facts(
    cell: Cell, benchmark: Benchmark, config: dict[str, Any], result: dict[str, Any], tasks: Mapping[str, str]
) -> dict[str, Any]:
    """All of a row but what was measured."""
    from distillzoo.core.distill import git_revision, versions

    registry = installed()
    suite, recipe = registry.entry("benchmark", cell.suite), registry.entry("recipe", cell.algo)
    chosen = Recipe.read(Path(recipe.target))

    def used(kind: Kind, name: str) -> PartUsed:
        entry = registry.entry(kind, name)
        return PartUsed(name=name, distribution=entry.distribution, version=entry.version)

    git, device, threads = git_revision(), str(result.get("device", "")), own_threads()
    metrics = sorted({name for decoding in benchmark.decodings.values() for name in decoding.metrics})
    return {
        "suite": cell.suite,
        "suite_version": benchmark.version,
        "suite_sha256": suite_hash(Path(cell.file), cell.changes),
        "suite_distribution": suite.origin,
        "pair": cell.pair,
        "algo": cell.algo,
        "recipe": used("recipe", cell.algo),
        "recipe_version": chosen.version,
        "changes": list(cell.changes),
        "dry_run": cell.dry_run,
        "subset": cell.subset,
        "parts": {kind: used(kind, config[kind]["name"]) for kind in PART_KINDS if config},
        "metrics": {name: used("metric", name) for name in metrics if config},
        "seed": cell.seed,
        "steps": result.get("training", {}).get("steps", 0),
        "trials": benchmark.trials.get(cell.algo, chosen.trials),
        "config": config,
        "config_sha256": config_hash(config),
        "decodings": {
            name: DecodingUsed(temperature=one.temperature, top_p=one.top_p)
            for name, one in benchmark.decodings.items()
        },
        "hashes": {**result.get("hashes", {}), **tasks},
        "hardware": hardware(device, threads),
        "threads": threads,
        "device": device,
        "versions": result.get("versions", versions()),
        "git": None if git is None else git.removesuffix("-dirty"),
        "dirty": None if git is None else git.endswith("-dirty"),
        "command": command(cell, threads if device.startswith("cpu") else None),
    }


def config_hash(config: Mapping[str, Any]) -> str:
    """sha256 of a row's configuration."""
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()


def own_threads() -> int:
    """Threads of this process on a CPU."""
    return int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1))


def hardware(device: str, threads: int) -> str:
    """The class of a machine: the GPU's name, or the processor's and the threads of a cell."""
    if device and not device.startswith("cpu"):
        return device
    return f"{_processor() or 'cpu'} ({platform.machine()}), {threads} thread(s)"


def _processor() -> str:
    """The processor's name; nothing where the system does not tell it."""
    if sys.platform == "darwin":
        asked = ["sysctl", "-n", "machdep.cpu.brand_string"]
        return subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip()
    facts = Path("/proc/cpuinfo")
    lines = facts.read_text(encoding="utf-8").splitlines() if facts.exists() else []
    known = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    arm = [known[name] for name in ("CPU implementer", "CPU part") if name in known]
    return known.get("model name", " ".join(arm))


def command(cell: Cell, threads: int | None) -> str:
    """What runs this cell again, with so many threads on a CPU and None elsewhere."""
    words = [] if threads is None else [f"OMP_NUM_THREADS={threads}"]
    words += ["distillzoo", "bench", "run", cell.suite, "--algos", cell.algo]
    words += ["--subsets", cell.subset] if cell.subset is not None else []
    words += ["--pairs", cell.pair, "--seed", str(cell.seed)]
    words += ["--dry-run"] if cell.dry_run else []
    words += [] if cell.device == "auto" else ["--device", cell.device]
    for name in cell.inputs:
        words += ["--input", f"{name}={name.upper()}"]
    for change in cell.changes:
        words += ["--set", change]
    return shlex.join([*words, "--out", f"again/{cell.folder}"])


def _die_with_the_harness() -> None:
    """A cell whose harness was killed ends, or two would work on one folder after a resume."""
    parent = int(os.environ.get(PARENT, os.getppid()))

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def main() -> None:
    """The process of a cell: FOLDER is below the matrix's ``cells``."""
    folder = Path(sys.argv[1])
    _die_with_the_harness()
    with FileLock(folder / ".lock"):
        row = run_cell(folder, folder.parent.parent)
    sys.exit(0 if row.status == "done" else 1)


if __name__ == "__main__":
    main()
