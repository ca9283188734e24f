"""``python -m distillzoo.benchmarks.micro tune | ablate --out DIR``."""

import json
import os
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Final

import click
import yaml

from distillzoo.benchmarks.micro.cell import Cell, run_cell
from distillzoo.benchmarks.micro.table import markdown

HERE: Final = Path(__file__).parent

TUNING_SEED: Final = 1000
"""No seed of the benchmark."""


@click.group()
def main() -> None:
    """The zoo on the micro world."""


out = click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder of the cells' results.")
jobs = click.option(
    "--jobs", type=int, default=os.cpu_count(), show_default=True, help="Cells at a time, one core each."
)
only = click.option("--only", multiple=True, help="Names to run; all if not given.")
seeds = click.option("--seeds", type=int, default=5, show_default=True)


@main.command()
@out
@jobs
@only
def tune(out: Path, jobs: int, only: tuple[str, ...]) -> None:
    """Try each recipe's settings of trials.yaml on the validation split, and say which were best."""
    trials: dict[str, list[dict[str, Any]]] = yaml.safe_load((HERE / "trials.yaml").read_text(encoding="utf-8"))
    cells = {
        (algo, number): Cell(f"{algo}-trial{number}", algo, _sets(trial), TUNING_SEED, "valid")
        for algo, several in trials.items()
        for number, trial in enumerate(several)
        if not only or algo in only
    }
    rows = _run(cells.values(), out, jobs)
    for algo in dict.fromkeys(algo for algo, _ in cells):
        mine = [rows[cell] for (a, _), cell in cells.items() if a == algo]
        for row in mine:
            click.echo(f"{algo:20} {_tuned(row):6.2f}  {' '.join(row['cell']['sets'])} {row.get('error', '')}")
        click.echo(f"{algo:20} best: {' '.join(max(mine, key=_tuned)['cell']['sets'])}")


@main.command()
@out
@jobs
@only
@seeds
def ablate(out: Path, jobs: int, only: tuple[str, ...], seeds: int) -> None:
    """The variants of ablations.yaml, on the test split."""
    variants: dict[str, Any] = yaml.safe_load((HERE / "ablations.yaml").read_text(encoding="utf-8"))
    names = [name for name in variants if not only or name in only]
    cells = [
        Cell(name, variants[name]["algo"], _sets(variants[name].get("sets", {})), seed, "test")
        for name, seed in product(names, range(seeds))
    ]
    _print(cells, names, out, jobs)


def _sets(settings: dict[str, Any]) -> tuple[str, ...]:
    return tuple(f"{field}={json.dumps(value)}" for field, value in settings.items())


def _tuned(row: dict[str, Any]) -> float:
    """What is maximised on the validation split: right answers, the mean over both decodings."""
    scores = row.get("scores", {"right": -1.0, "right at 0.8": -1.0})
    return float(scores["right"] + scores["right at 0.8"]) / 2


def _run(cells: Iterable[Cell], out: Path, jobs: int) -> dict[Cell, dict[str, Any]]:
    out.mkdir(parents=True, exist_ok=True)
    rows: dict[Cell, dict[str, Any]] = {}
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        waiting = {pool.submit(run_cell, cell, out): cell for cell in cells}
        for done in as_completed(waiting):
            cell, row = waiting[done], done.result()
            rows[cell] = row
            said = row.get("error") or f"right {row['scores']['right']:.1f}, {row['seconds']:.0f} s"
            click.echo(f"[{len(rows)}/{len(waiting)}] {cell.folder}: {said}", err=True)
    return rows


def _print(cells: Sequence[Cell], names: Sequence[str], out: Path, jobs: int) -> None:
    rows = _run(cells, out, jobs)
    by_name = {name: [rows[cell] for cell in cells if cell.name == name] for name in names}
    click.echo(markdown(by_name))
    if any("error" in row for row in rows.values()):
        sys.exit(1)


if __name__ == "__main__":
    main()
