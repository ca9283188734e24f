"""``distillzoo bench run``."""

import os
import re
import shlex
import sys
import tempfile
from pathlib import Path
from typing import Any, Final

import click

from distillzoo.core.errors import UserError
from distillzoo.core.registry import installed

DEVICE: Final = re.compile(r"auto|cpu|mps|cuda(:\d+)?")


def _names(context: Any, parameter: Any, value: str | None) -> list[str]:
    names = [name.strip() for name in (value or "").split(",") if name.strip()]
    if value is not None and not names:
        raise UserError(f"{parameter.opts[0]} {value!r} names nothing. Leave it out for the default.")
    return names


def inputs_given(context: Any, parameter: Any, values: tuple[str, ...]) -> dict[str, str]:
    """What ``--input NAME=VALUE`` says, as a callback of click."""
    found = {}
    for text in values:
        name, equals, value = text.partition("=")
        if not equals or not name or not value:
            raise UserError(f"--input {text!r} should read NAME=VALUE, for example train=train.jsonl.")
        found[name] = value
    return found


@click.command()
@click.argument("suite")
@click.option("--algos", callback=_names, metavar="A,B", help="Recipes.  [default: all]")
@click.option("--subsets", callback=_names, metavar="A,B", help="Each replaces the recipes' own.")
@click.option("--pairs", callback=_names, metavar="A,B", help="Pairs of teacher and student.  [default: all]")
@click.option("--seeds", type=click.IntRange(1), metavar="N", help="Seeds 0 to N - 1.  [default: the suite's]")
@click.option("--seed", "single", type=click.IntRange(0), multiple=True, metavar="N", help="Only this seed.")
@click.option(
    "--input",
    "inputs",
    multiple=True,
    callback=inputs_given,
    metavar="NAME=VALUE",
    help="A path or hub id that the suite asks for.",
)
@click.option(
    "--set",
    "sets",
    multiple=True,
    metavar="FIELD=VALUE",
    help="Over a cell's settings, or the suite's own: suite.FIELD=VALUE. Makes another suite of it.",
)
@click.option("--out", type=click.Path(path_type=Path), help="Folder of the matrix.  [default: bench/SUITE]")
@click.option("--resume", is_flag=True, help="Go on: what is done is skipped, what failed is run again.")
@click.option("--jobs", type=click.IntRange(1), metavar="N", help="Cells at a time.  [default: GPUs, else cores]")
@click.option("--executor", type=click.Choice(["local", "ray"]), default="local", show_default=True)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:N, mps.")
@click.option("--dry-run", is_flag=True, help="Two steps of every cell with tiny random models and embedded data.")
@click.option("--quiet", "-q", is_flag=True, help="Print the final lines only.")
def run(
    suite: str,
    algos: list[str],
    subsets: list[str],
    pairs: list[str],
    seeds: int | None,
    single: tuple[int, ...],
    inputs: dict[str, str],
    sets: tuple[str, ...],
    out: Path | None,
    resume: bool,
    jobs: int | None,
    executor: str,
    device: str,
    dry_run: bool,
    quiet: bool,
) -> None:
    """Run a matrix of algorithms, subsets, pairs and seeds on SUITE (distillzoo list benchmarks).

    Each cell is trained and scored in a process of its own and adds a row to OUT/results.jsonl. A cell that fails is
    noted with its error and the rest goes on.
    """
    from distillzoo.core.cli.output import loading

    registry = installed()
    with loading(quiet):
        from distillzoo.benchmarks.harness.benchmark import benchmark_of, parted
        from distillzoo.benchmarks.harness.cell import must_resolve
        from distillzoo.benchmarks.harness.executors import chosen_executor
        from distillzoo.benchmarks.harness.matrix import RESULTS, run_matrix
        from distillzoo.benchmarks.harness.plan import plan
        from distillzoo.benchmarks.harness.view import View
    benchmark, file = benchmark_of(registry, suite, sets)
    if not DEVICE.fullmatch(device):
        raise UserError(f"--device {device}: should be auto, cpu, cuda, cuda:N or mps.")
    if seeds is not None and single:
        raise UserError("--seeds and --seed exclude each other.")
    with tempfile.TemporaryDirectory() as temporary:
        if dry_run:
            from distillzoo.benchmarks.harness.dry_run import miniature, write

            small, inputs = miniature(benchmark, Path(temporary), inputs)
            _, sets = parted(sets)  # the others are in the miniature
            benchmark, file = small, write(small, Path(temporary) / f"{suite}.yaml")
            out = out or Path(temporary) / "matrix"
        cells = plan(
            registry,
            suite,
            benchmark,
            algos=algos or registry.names("recipe"),
            subsets=subsets,
            pairs=pairs,
            seeds=single or range(1 if dry_run and seeds is None else seeds or benchmark.seeds),
            inputs=benchmark.given(inputs),
            changes=sets,
            device=device.partition(":")[0],  # a cell sees the GPU that it gets and no other
            file=file,
            dry_run=dry_run,
        )
        for cell in {(cell.pair, cell.algo, cell.subset): cell for cell in cells}.values():
            must_resolve(cell, benchmark, registry)
        target = (out or Path("bench") / suite).expanduser().resolve()
        if resume and not quiet and not (target / "cells").is_dir():
            click.echo(f"'{target}' holds no matrix to go on with: this is a new one", err=True)
        working = chosen_executor(executor, jobs, device)
        if not quiet:
            click.echo(f"Cells: {len(cells)}, {working.jobs} at a time, into {target}", err=True)
        with View((benchmark.headline.metric, benchmark.headline.decoding), quiet) as view:
            try:
                standing = run_matrix(cells, target, working, resume, view)
            except KeyboardInterrupt:
                words = shlex.join(word for word in sys.argv[1:] if word != "--resume")
                click.echo(f"Stopped. Go on with: distillzoo {words} --resume", err=True)
                sys.exit(130)
    done = standing.total - len(standing.failed)
    click.echo(f"{done} of {standing.total} cells done, {len(standing.failed)} failed")
    for cell, row in standing.failed:
        click.echo(f"failed  {cell.name}: {row.error}", err=True)
    if not dry_run:
        click.echo(f"results {target / RESULTS}")
        click.echo(f"next    distillzoo leaderboard build {os.path.relpath(target / RESULTS)} --out site")
    if standing.failed:
        sys.exit(1)
