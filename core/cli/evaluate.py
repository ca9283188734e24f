"""``distillzoo evaluate``."""

from pathlib import Path
from typing import Any

import click

from distillzoo.core.config import RunConfig, resolve
from distillzoo.core.errors import UserError
from distillzoo.core.registry import installed
from distillzoo.core.rundir import RunDirectory

UNUSED = "none"
"""Stands for data that a command does not read."""


def config_of(target: str, sets: tuple[str, ...], flags: dict[str, Any]) -> RunConfig:
    """The configuration to evaluate or sample with: a run's own with its trained model as the student, or a model's.

    Raises:
        UserError: the run isn't finished, or the target is no run and no model.
    """
    registry = installed()
    path = Path(target).expanduser()
    if (path / "config.yaml").exists():
        directory = RunDirectory.open(path)
        if not directory.model.exists():
            raise UserError(f"The run in '{path}' has no model yet. Continue it with: distillzoo run --resume {path}")
        flags = flags | {"student": {"model": str(directory.model)}}
        return resolve(registry, file=directory.config, flags=flags, sets=sets)
    suite = target.partition(":")[0] if target.partition(":")[0] in registry.names("suite") else None
    if suite is None and not path.exists() and "/" not in target:
        raise UserError(
            f"There is no run directory, folder or suite named '{target}'. A model on the hub is named owner/name."
        )
    parts = {"subset": {"name": "full"}, "objective": {"name": "nll"}}
    models = {"student": {"model": target}, "teacher": flags.get("teacher", {"model": target})}
    own = {"train": UNUSED} if suite is None else {"train": suite, "valid": suite}
    data = {"data": flags.get("data", own)}
    return resolve(registry, flags={**parts, **data, **flags, **models}, sets=sets)


@click.command()
@click.argument("run")
@click.option("--data", metavar="DATA", help="JSON lines file, datasets id, or a suite's split, as in micro:test.")
@click.option("--teacher", metavar="MODEL", help="Teacher to compare with.  [default: the run's; none for a model]")
@click.option("--limit", type=int, help="Evaluate on the first so many rows.")
@click.option("--seed", type=int, help="Seed of the sampling.")
@click.option("--device", help="auto, cpu, cuda, cuda:1, mps.")
@click.option("--set", "sets", multiple=True, metavar="FIELD=VALUE", help="Any field, for example evaluate.top_p=0.8.")
@click.option("--quiet", "-q", is_flag=True, help="Print the table only.")
@click.option("--json", "as_json", is_flag=True, help="Print scores and answers as JSON.")
def evaluate(
    run: str,
    data: str | None,
    teacher: str | None,
    limit: int | None,
    seed: int | None,
    device: str | None,
    sets: tuple[str, ...],
    quiet: bool,
    as_json: bool,
) -> None:
    """Evaluate RUN, a run directory, or any model given as a folder, hub id or GGUF file."""
    flags: dict[str, Any] = {}
    if data is not None:
        flags["data"] = {"train": data, "valid": data}
    if teacher is not None:
        flags["teacher"] = {"model": teacher}
    if limit is not None:
        flags["evaluate"] = {"limit": limit}
    flags |= {k: v for k, v in (("seed", seed), ("device", device)) if v is not None}
    config = config_of(run, sets, flags)
    if config.data.train == UNUSED:
        raise UserError("Evaluation data are needed: pass --data with a JSON lines file or a datasets id.")

    from distillzoo.core.cli.output import decoded, print_json, print_scores, silence_libraries

    silence_libraries()
    from distillzoo.core.progress import Reporter
    from distillzoo.core.world import World

    world = World(config, installed(), Reporter(quiet=quiet or as_json))
    compared = (Path(run).expanduser() / "config.yaml").exists() or teacher is not None
    scores = world.evaluate(world.student, "the student", against_teacher=compared)
    directions = {name: metric.direction for name, metric in world.metrics.items()}
    if as_json:
        print_json({"rows": len(world.valid_rows), "decoding": vars(world.decoding), **scores.to_json()})
        return
    print_scores([(run, scores.metrics)], directions)
    how = decoded(world.decoding.temperature, world.decoding.top_p)
    click.echo(
        f"\n{len(world.valid_rows)} prompts, {how}, seed {config.seed}; "
        f"{scores.tokens_per_second:,.0f} sampled tokens a second."
    )
