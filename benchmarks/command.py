"""``distillzoo bench`` on the command line."""

import json
import tempfile
from dataclasses import asdict, replace
from pathlib import Path

import click

from distillzoo.benchmarks.harness.command import run
from distillzoo.benchmarks.judge.command import judge
from distillzoo.benchmarks.lm_eval import lm_eval
from distillzoo.benchmarks.speed.shapes import SHAPES
from distillzoo.core.errors import UserError, suggest


@click.group()
def bench() -> None:
    """Benchmarks."""


bench.add_command(run)
bench.add_command(judge)
bench.add_command(lm_eval)


@bench.command()
@click.option("--shape", default="smollm2-10", show_default=True, metavar="NAME", help=f"One of {', '.join(SHAPES)}.")
@click.option("--vocabulary", type=click.IntRange(64), metavar="V", help="Another vocabulary than the shape's.")
@click.option("--sequences", type=click.IntRange(1), metavar="N", help="Other sequences a step than the shape's.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1, mps.")
@click.option("--dtype", type=click.Choice(["auto", "float32", "bfloat16"]), default="auto", show_default=True)
@click.option("--rounds", type=click.IntRange(1), default=7, show_default=True, help="Times that each step is timed.")
@click.option("--only", multiple=True, metavar="NAME", help="Steps to time beside the first; all if not given.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder for speed.json and speed.svg.")
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
def speed(
    shape: str,
    vocabulary: int | None,
    sequences: int | None,
    device: str,
    dtype: str,
    rounds: int,
    only: tuple[str, ...],
    out: Path | None,
    as_json: bool,
) -> None:
    """Time a training step of several algorithms side by side, on random weights.

    A step is a forward and a backward pass; the optimiser, which is the same for all, is left out. All steps are timed
    in turn, and each figure is compared with that of plain fine-tuning in the same round.
    """
    if shape not in SHAPES:
        raise UserError(f"There is no shape '{shape}'.{suggest(shape, SHAPES)}")
    from distillzoo.core.cli.output import loading, print_json, silence_libraries

    with loading(as_json):
        silence_libraries()
        from distillzoo.benchmarks.speed.contenders import contenders
        from distillzoo.benchmarks.speed.measure import peak_rate, timed
        from distillzoo.benchmarks.speed.table import chart, facts, print_table
        from distillzoo.benchmarks.speed.workload import workload
        from distillzoo.core.progress import Reporter
        from distillzoo.core.world import pick_device, pick_dtype

    known = SHAPES[shape]
    chosen = replace(known, vocabulary=vocabulary or known.vocabulary, sequences=sequences or known.sequences)
    where = pick_device(device)
    reporter = Reporter(quiet=as_json)
    with tempfile.TemporaryDirectory() as folder:
        with reporter.stage(f"making the models of {shape}"):
            work = workload(chosen, where, pick_dtype(dtype, where), Path(folder) / "cache")
        made = contenders(work)
        unknown = [name for name in only if name not in made]
        if unknown:
            raise UserError(f"There is no step '{unknown[0]}'.{suggest(unknown[0], made)}")
        first = next(iter(made))
        steps = {name: make() for name, make in made.items() if not only or name in only or name == first}
        with reporter.stage("timing", total=len(steps) * (rounds + 2)):
            peak = peak_rate(where, work.dtype)
            timings = timed(steps, work.student.model, where, rounds, reporter.advance)
    result = {**facts(work, rounds, peak), "steps": {name: asdict(timing) for name, timing in timings.items()}}
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        (out / "speed.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
        (out / "speed.svg").write_text(chart(timings), encoding="utf-8")
    if as_json:
        print_json(result)
    else:
        print_table(result, timings)
