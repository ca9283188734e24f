"""What a larger vocabulary costs a step: two students that differ in nothing else, timed in turn.

Embedding and optimiser are left out: the input embedding is frozen and not tied to the head.
"""

import tempfile
from dataclasses import replace
from pathlib import Path

import click
import torch
from torch import nn

from distillzoo.benchmarks.speed.contenders import EIGHTH, Step, ours
from distillzoo.benchmarks.speed.measure import timed
from distillzoo.benchmarks.speed.shapes import SHAPES
from distillzoo.benchmarks.speed.workload import Workload, workload
from distillzoo.core.cli.output import silence_libraries
from distillzoo.core.world import pick_device, pick_dtype


def work_at(size: int, device: torch.device, folder: Path) -> Workload:
    """The default shape with another vocabulary and a head of its own."""
    known = SHAPES["smollm2-10"]
    shape = replace(known, vocabulary=size, student=known.student | {"tie_word_embeddings": False})
    work = workload(shape, device, pick_dtype("auto", device), folder)
    work.student.model.get_input_embeddings().requires_grad_(False)
    return work


@click.command()
@click.option("--sizes", type=int, nargs=2, default=(32_000, 256_000), show_default=True)
@click.option("--device", default="auto", show_default=True)
@click.option("--rounds", type=click.IntRange(1), default=9, show_default=True)
def main(sizes: tuple[int, int], device: str, rounds: int) -> None:
    """Ratios of a step of bd-iql from the cache at the larger vocabulary to the smaller."""
    silence_libraries()
    where = pick_device(device)
    for name, support in (("without the support term", {}), ("with it on 1/8 of the states", EIGHTH)):
        with tempfile.TemporaryDirectory() as folder:
            works = [work_at(size, where, Path(folder) / str(size)) for size in sizes]
            steps: dict[str, Step] = {
                f"{work.shape.vocabulary:,}": ours(
                    work, "iql", "top-p", cached=True, **{"gauge": "subset-max"} | support
                )
                for work in works
            }
            students = nn.ModuleList([work.student.model for work in works])
            found = timed(steps, students, where, rounds, lambda count: None)
        for size, timing in found.items():
            click.echo(
                f"bd-iql {name}, cache, V = {size}: {timing.seconds:.3f} s, {timing.ratio:.3f} of the first "
                f"({timing.low:.3f} to {timing.high:.3f}), {timing.memory / 2**20:,.0f} MiB"
            )


if __name__ == "__main__":
    main()
