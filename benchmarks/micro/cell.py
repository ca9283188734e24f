"""One cell of a table: a recipe with some settings and a seed, trained and scored in a folder of its own."""

import json
import shutil
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

NUCLEUS: Final = 0.8
"""The second decoding's top-p; the first is 1.0, both at temperature 1."""

METRICS: Final = ("right", "rouge-l", "forward-kl", "reverse-kl", "entropy", "nucleus-mass")


@dataclass(frozen=True)
class Cell:
    """A recipe, ``section.field=value`` settings over it, a seed and the split on which it is scored."""

    name: str
    algo: str
    sets: tuple[str, ...]
    seed: int
    split: str

    @property
    def folder(self) -> str:
        return f"{self.name}-{self.split}-{self.seed}"


def run_cell(cell: Cell, out: Path) -> dict[str, Any]:
    """Train and score a cell, or read what was found before; a cell that fails has an ``error`` and no scores.

    Returns:
        The cell, its scores at both decodings and its seconds of training.
    """
    path = out / f"{cell.folder}.json"
    if path.exists():
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if found["cell"] == json.loads(json.dumps(asdict(cell))):
            return found
    start = time.perf_counter()
    try:
        row = {"cell": asdict(cell), **_scores(cell, out / cell.folder)}
    except Exception as error:  # the other cells go on
        return {"cell": asdict(cell), "error": f"{type(error).__name__}: {error}"}
    row["seconds"] = time.perf_counter() - start
    half = path.with_suffix(".part")
    half.write_text(json.dumps(row, indent=1), encoding="utf-8")
    half.replace(path)
    return row


def _scores(cell: Cell, folder: Path) -> dict[str, Any]:
    import torch

    from distillzoo.core.cli.output import silence_libraries
    from distillzoo.core.config import resolve
    from distillzoo.core.distill import distil
    from distillzoo.core.progress import Reporter
    from distillzoo.core.registry import installed
    from distillzoo.core.rundir import RunDirectory
    from distillzoo.core.world import World

    silence_libraries()
    torch.set_num_threads(1)
    shutil.rmtree(folder, ignore_errors=True)
    registry = installed()
    measured = {"before": False, "limit": None, "temperature": 1.0, "top_p": 1.0, "metrics": list(METRICS)}
    flags = {"data": {"valid": f"micro:{cell.split}"}, "evaluate": measured, "seed": cell.seed, "device": "cpu"}
    config = resolve(registry, algo=cell.algo, flags=flags, sets=cell.sets)
    result = distil(config, registry, RunDirectory.create(folder), Reporter())
    assert result is not None, "this is the only process"
    trained = {"student": {"model": str(folder / "model")}}
    measured = {**measured, "top_p": NUCLEUS, "metrics": ["right", "rouge-l"]}
    config = resolve(registry, algo=cell.algo, flags={**flags, **trained, "evaluate": measured}, sets=cell.sets)
    world = World(config, registry)
    nucleus = world.evaluate(world.student, "the student", against_teacher=False)
    scores = result["scores"]["after"] | {f"{name} at {NUCLEUS}": value for name, value in nucleus.metrics.items()}
    shutil.rmtree(folder)
    return {
        "scores": scores,
        "training": result["training"],
        "hashes": result["hashes"],
        "config_sha256": result["config_sha256"],
        "versions": result["versions"],
        "git": result["git"],
    }
