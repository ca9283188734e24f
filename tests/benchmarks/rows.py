"""Rows of ``results.jsonl`` without a training: what the harness would write of cells of the ``micro`` benchmark."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from distillzoo.benchmarks.harness.benchmark import Benchmark, benchmark_of
from distillzoo.benchmarks.harness.cell import config_hash
from distillzoo.benchmarks.harness.plan import suite_hash
from distillzoo.benchmarks.harness.row import CurvePoint, Row, write_lines
from distillzoo.benchmarks.leaderboard.settings import expected_settings
from distillzoo.core.recipe import Recipe
from distillzoo.core.registry import installed

LOWER = ("forward-kl", "reverse-kl", "ex-acc-err", "calibration")
NEITHER = ("length-ratio", "entropy")


def direction(metric: str) -> str:
    return "lower" if metric in LOWER else "none" if metric in NEITHER else "higher"


def row(algo: str, seed: int, *, level: float = 80.0, speed: float = 1.0, suite: str = "micro", **changes: Any) -> Row:
    """A cell that ended with a score of about ``level`` and took 60 / ``speed`` seconds to it."""
    registry = installed()
    benchmark, path = benchmark_of(registry, suite)
    known = algo in registry.names("recipe")
    random = np.random.default_rng([seed, *algo.encode()])
    final = level + float(random.normal(0, 1.5))
    pair = next(iter(benchmark.pairs))
    train = benchmark.run["train"]
    tree: dict[str, Any] = {
        "suite": suite,
        "suite_version": benchmark.version,
        "suite_sha256": suite_hash(path, ()),
        "suite_distribution": "distillzoo 0.1.0",
        "pair": pair,
        "algo": algo,
        "recipe": part(algo),
        "recipe_version": Recipe.read(registry.get("recipe", algo)).version if known else 1,
        "subset": None,
        "parts": {kind: part(name) for kind, name in zip(("subset", "objective"), ("top-p", "iql"), strict=True)},
        "metrics": {"right": part("right")},
        "seed": seed,
        "steps": train["max_steps"],
        "trials": benchmark.trials.get(algo),
        "config": {**benchmark.run, "algo": algo, "seed": seed, "subset": {"name": "top-p", "p": 0.8}},
        "decodings": {n: {"temperature": d.temperature, "top_p": d.top_p} for n, d in benchmark.decodings.items()},
        "hashes": {**benchmark.hashes, "data": "da" * 32, "student_after": f"{seed:064x}"},
        "hardware": "cpu x86_64",
        "device": "cpu",
        "threads": 1,
        "versions": {"python": "3.11.7", "torch": "2.13.0"},
        "git": "0123456789abcdef0123456789abcdef01234567",
        "dirty": False,
        "status": "done",
        "scores": scores(benchmark, final),
        "references": {"teacher": scores(benchmark, 99.0), "student before": scores(benchmark, 20.0)},
        "curve": curve(final, speed, random),
        "positions": positions(benchmark, random),
        "cost": {
            "seconds": 80 / speed,
            "training_seconds": 60 / speed,
            "sampling_seconds": 3.0,
            "peak_memory_bytes": 10**9 + len(algo) * 10**7,
            "student_tokens": 200_000,
            "sampled_tokens": 0,
            "teacher_tokens": 100_000,
            "tokens_per_second": 200_000 * speed / 60,
        },
        "command": f"distillzoo bench run {suite} --algos {algo} --pairs {pair} --seed {seed} --out again",
        "config_sha256": "",
        **changes,
    }
    if "config" not in changes and tree["pair"] in benchmark.pairs:
        tree["config"] = expected_settings(Row.model_validate(tree), benchmark, registry) or tree["config"]
    tree["config_sha256"] = changes.get("config_sha256") or config_hash(tree["config"])
    return Row.model_validate(tree)


def failed(algo: str, seed: int, error: str, **changes: Any) -> Row:
    """A cell that ended with an error before it had a device."""
    nothing = {"scores": [], "curve": [], "positions": [], "references": {}, "cost": None, "hashes": {}, "parts": {}}
    return row(algo, seed, status="failed", error=error, device="", config={}, steps=0, **nothing, **changes)


def zoo(seeds: int = 5) -> list[Row]:
    """Three algorithms: kd, a better one that is three times as fast, and a worse one."""
    kinds: dict[str, dict[str, float]] = {
        "kd": {"level": 80},
        "bd-iql": {"level": 90, "speed": 3},
        "minillm": {"level": 70, "speed": 0.2},
    }
    return [row(algo, seed, **kind) for algo, kind in kinds.items() for seed in range(seeds)]


def written(folder: Path, rows: Sequence[Row], name: str = "results.jsonl") -> Path:
    path = folder / name
    path.write_text(write_lines(rows), encoding="utf-8")
    return path


def part(name: str, distribution: str = "distillzoo") -> dict[str, str]:
    return {"name": name, "distribution": distribution, "version": "0.1.0" if distribution == "distillzoo" else "2.3"}


def scores(benchmark: Benchmark, level: float) -> list[dict[str, Any]]:
    """Better with a higher level, on every task alike."""
    values = {"higher": level, "lower": (100 - level) / 50, "none": 1.0}
    return [
        {"task": task, "decoding": name, "metric": metric, "value": values[direction(metric)] - place}
        | {"direction": direction(metric), "n": 500}
        for place, task in enumerate(benchmark.tasks)
        for name, decoding in benchmark.decodings.items()
        for metric in decoding.metrics
    ]


def curve(final: float, speed: float, random: np.random.Generator) -> list[CurvePoint]:
    """From 20 to the final score, which half of the time is enough for, nearly."""
    points = []
    for step in range(0, 201, 20):
        right = 20 + (final - 20) * (1 - math.exp(-step / 40)) / (1 - math.exp(-5)) + float(random.normal(0, 0.5))
        points.append(
            CurvePoint(
                step=step,
                seconds=step * 0.3 / speed,
                student_tokens=1000 * step,
                sampled_tokens=0,
                teacher_tokens=0,
                scores={"right": right if step < 200 else final, "rouge-l": right * 0.7},
            )
        )
    return points


def positions(benchmark: Benchmark, random: np.random.Generator) -> list[dict[str, Any]]:
    found = []
    for task in benchmark.tasks:
        for name, decoding in benchmark.decodings.items():
            for metric in set(decoding.metrics) & {"forward-kl"}:
                bins, first, width = [], 0, 1
                while first < 60:
                    value = 0.02 + 0.01 * math.log1p(first) + float(random.uniform(0, 0.01))
                    bins.append({"first": first, "last": first + width - 1, "value": value, "count": 500})
                    first += width
                    width = first
                found.append({"task": task, "decoding": name, "metric": metric, "bins": bins})
    return found
