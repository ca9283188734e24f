"""The cells of a matrix."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import product
from pathlib import Path
from typing import Any, Final

from distillzoo.benchmarks.harness.benchmark import Benchmark, parted, sha256_of
from distillzoo.core.errors import UserError, suggest
from distillzoo.core.registry import Registry

OWN: Final = ("seed", "device", "output", "algo")
"""Fields that belong to a cell and that no setting over the whole matrix may change."""


@dataclass(frozen=True)
class Cell:
    """One cell, with all that a process needs to run it.

    Attributes:
        suite: name of the benchmark.
        file: the benchmark's file.
        pair: one of its pairs.
        algo: a recipe.
        subset: replaces the recipe's; None leaves it.
        seed: of training, data order and sampling.
        inputs: values of the benchmark's inputs.
        changes: ``FIELD=VALUE`` settings over the benchmark's.
        device: auto, cpu, cuda.
        dry_run: whether models and data are stand-ins and two steps are all.
    """

    suite: str
    file: str
    pair: str
    algo: str
    subset: str | None
    seed: int
    inputs: Mapping[str, str] = field(hash=False)
    changes: tuple[str, ...]
    device: str
    dry_run: bool = False

    @property
    def name(self) -> str:
        """What a person calls the cell."""
        what = self.algo if self.subset is None else f"{self.algo}, {self.subset}"
        return f"{self.pair} · {what} · seed {self.seed}"

    @property
    def benchmark(self) -> Benchmark:
        """The benchmark as it holds for the cell; raises as ``Benchmark.read``."""
        return Benchmark.read(Path(self.file), self.changes)

    @property
    def run_changes(self) -> tuple[str, ...]:
        """The settings over the configuration of its run."""
        return parted(self.changes)[1]

    @property
    def folder(self) -> str:
        """Name of the cell's folder."""
        parts = (self.pair, self.algo, self.subset, f"seed{self.seed}")
        return "--".join(part for part in parts if part is not None)

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1)

    @classmethod
    def read(cls, path: Path) -> "Cell":
        """The cell that ``to_json`` wrote.

        Raises:
            UserError: the file is damaged.
        """
        try:
            values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            return cls(**{**values, "changes": tuple(values["changes"])})
        except (ValueError, TypeError, KeyError):
            raise UserError(f"'{path}' is no cell's file. Remove '{path.parent}' to run the cell again.") from None


def plan(
    registry: Registry,
    suite: str,
    benchmark: Benchmark,
    *,
    algos: Sequence[str],
    subsets: Sequence[str],
    pairs: Sequence[str],
    seeds: Iterable[int],
    inputs: Mapping[str, str],
    changes: tuple[str, ...],
    device: str,
    file: Path,
    dry_run: bool = False,
) -> list[Cell]:
    """The cells, seed by seed, so that a matrix that is cut off has every algorithm under the first seeds.

    Raises:
        UserError: a name is unknown.
    """
    for change in changes:
        if change.partition("=")[0].strip() in OWN:
            raise UserError(f"--set {change}: that is the cell's own; use --seed, --seeds or --device.")
    for algo in algos:
        registry.entry("recipe", algo)
    for subset in subsets:
        registry.entry("subset", subset)
    for pair in pairs:
        if pair not in benchmark.pairs:
            raise UserError(f"The benchmark '{suite}' has no pair '{pair}'.{suggest(pair, benchmark.pairs)}")
    chosen: list[str | None] = [*subsets] or [None]
    return [
        Cell(suite, str(file), pair, algo, subset, seed, dict(inputs), changes, device, dry_run)
        for seed, pair, algo, subset in product(
            dict.fromkeys(seeds), dict.fromkeys(pairs or benchmark.pairs), dict.fromkeys(algos), dict.fromkeys(chosen)
        )
    ]


def suite_hash(file: Path, changes: Sequence[str]) -> str:
    """sha256 of a benchmark's file, and of the settings over it if there are any."""
    own = sha256_of(file)
    return own if not changes else hashlib.sha256("\n".join([own, *sorted(changes)]).encode()).hexdigest()
