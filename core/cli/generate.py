"""``distillzoo generate``."""

import sys

import click

from distillzoo.core.cli.evaluate import config_of
from distillzoo.core.errors import UserError
from distillzoo.core.registry import installed


@click.command()
@click.argument("run")
@click.argument("prompt")
@click.option("-n", "count", type=click.IntRange(min=1), default=1, show_default=True, help="Answers to sample.")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the sampling.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1, mps.")
@click.option("--set", "sets", multiple=True, metavar="FIELD=VALUE", help="For example evaluate.temperature=0.")
def generate(run: str, prompt: str, count: int, seed: int, device: str, sets: tuple[str, ...]) -> None:
    """Answer PROMPT with the student of RUN, a run directory, or with any model; - reads standard input."""
    if prompt == "-":
        prompt = sys.stdin.read()
    if not prompt.strip():
        raise UserError("The prompt is empty.")
    config = config_of(run, sets, {"seed": seed, "device": device})

    from distillzoo.core.cli.output import silence_libraries

    silence_libraries()
    from distillzoo.core.data import Truncation
    from distillzoo.core.trajectories import Sampler
    from distillzoo.core.world import World

    world = World(config, installed())
    (row,) = world.encoder.encode([{"instruction": prompt, "input": "", "output": ["-"]}], Truncation())
    sample: Sampler = world.generator(world.student, config.evaluate.batch_size)
    for completion in sample([row.prompt] * count, world.decoding, seed):
        click.echo(world.encoder.text(completion.tokens))
