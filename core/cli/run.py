"""``distillzoo run``."""

import importlib.util
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import click

from distillzoo.core.config import RunConfig, merge, nested, resolve
from distillzoo.core.errors import UserError
from distillzoo.core.registry import PART_KINDS, installed
from distillzoo.core.rundir import RunDirectory

PLACES = {
    "subset": "subset.name",
    "objective": "objective.name",
    "extraction": "extraction.name",
    "trajectories": "trajectories.name",
    "teacher": "teacher.model",
    "student": "student.model",
    "data": "data.train",
    "valid": "data.valid",
    "teacher_cache": "teacher_cache",
    "max_steps": "train.max_steps",
    "batch_size": "train.batch_size",
    "lr": "train.lr",
    "seed": "seed",
    "device": "device",
    "dtype": "dtype",
    "output": "output",
}
"""Where each flag stands in the configuration."""

SWITCHES = {"compile": "train.compile", "wandb": "wandb"}


def flags_tree(flags: dict[str, Any]) -> dict[str, Any]:
    """The configuration tree that flags stand for; those not given are left out."""
    tree: dict[str, Any] = {}
    for flag, place in PLACES.items():
        if flags.get(flag) is not None:
            tree = merge(tree, nested(place, flags[flag]))
    for flag, place in SWITCHES.items():
        if flags.get(flag):
            tree = merge(tree, nested(place, True))
    return tree


@click.command()
@click.option("--algo", metavar="NAME", help="Recipe: bc, kd, seqkd, bd-iql, ... (distillzoo list recipes).")
@click.option("--subset", metavar="NAME", help="Replace the recipe's action subset.")
@click.option("--objective", metavar="NAME", help="Replace the recipe's objective.")
@click.option(
    "--extraction",
    metavar="NAME",
    help="Replace the policy extraction; sets the decoding too.",
)
@click.option("--trajectories", metavar="NAME", help="Replace the recipe's trajectory source.")
@click.option("--teacher", metavar="MODEL", help="Hub id, folder, GGUF file, or micro.  [default: micro]")
@click.option("--student", metavar="MODEL", help="The same, or prune:layers=N.  [default: the suite's]")
@click.option("--data", metavar="DATA", help="JSON lines file, datasets id, or micro.")
@click.option("--valid", metavar="DATA", help="Evaluation data; default: the suite's, or 5% of the data held out.")
@click.option("--teacher-cache", type=click.Path(path_type=Path), help="Train from what cache build wrote.")
@click.option("--max-steps", type=int, help="Optimiser steps.")
@click.option("--batch-size", type=int, help="Sequences an optimiser step.")
@click.option("--lr", type=float, help="Peak learning rate.")
@click.option("--seed", type=int, help="Seed of sampling, data order and training.")
@click.option("--device", help="auto, cpu, cuda, cuda:1, mps.")
@click.option("--dtype", type=click.Choice(["auto", "float32", "bfloat16", "float16"]), help="Of the matrix products.")
@click.option("--output", type=click.Path(path_type=Path), help="Run directory.  [default: runs/ALGO-SUBSET-N]")
@click.option("--config", "file", type=click.Path(path_type=Path), help="YAML file with any part of the configuration.")
@click.option("--set", "sets", multiple=True, metavar="FIELD=VALUE", help="Any field, for example subset.p=0.9.")
@click.option("--resume", type=click.Path(path_type=Path), help="Continue the run in this directory.")
@click.option("--compile", is_flag=True, help="Compile the models' bodies; pays in long runs.")
@click.option("--wandb", is_flag=True, help="Log to Weights & Biases too.")
@click.option("--quiet", "-q", is_flag=True, help="Print the final table only.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON on standard output.")
def run(
    algo: str | None,
    file: Path | None,
    sets: tuple[str, ...],
    resume: Path | None,
    quiet: bool,
    as_json: bool,
    **flags: Any,
) -> None:
    """Distil a student from a teacher.

    Without --teacher, --student and --data it works on the embedded micro world. A recipe (--algo), a YAML file
    (--config), flags and --set fill one configuration, each over the one before; it is written into the run directory,
    and running that file again repeats the run.
    """
    from distillzoo.core.cli.output import loading

    registry = installed()
    if resume is not None:
        given = [f"--{name.replace('_', '-')}" for name, value in flags.items() if value not in (None, False)]
        given += [name for name, value in (("--algo", algo), ("--config", file), ("--set", sets)) if value]
        if given:
            raise UserError(f"--resume continues a run as it was configured; leave out {', '.join(given)}.")
        directory = RunDirectory.open(resume)
        if not _first_process():
            directory = RunDirectory.shared(resume)
        if directory.result.exists():
            raise UserError(f"The run in '{resume}' is finished: its result is in {directory.result}.")
        with loading(quiet or as_json):
            config = resolve(registry, file=directory.config)
    else:
        if algo is None and file is None and not any(flags.get(kind) for kind in PART_KINDS):
            raise UserError(
                f"Name an algorithm: --algo {' | '.join(registry.names('recipe'))}, for example "
                f"distillzoo run --algo bd-iql --subset top-p."
            )
        with loading(quiet or as_json):
            config = resolve(registry, algo=algo, file=file, flags=flags_tree(flags), sets=sets)
        directory = _directory(config)
    _distil(config, directory, quiet, as_json)


def _directory(config: RunConfig) -> RunDirectory:
    """A new run directory, which the first of several processes makes and alone writes."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and config.output is None:
        raise UserError("Several processes work on one run: say where with --output.")
    if config.output is not None and not _first_process():
        return RunDirectory.shared(config.output)
    stem = f"{config.algo or config.objective.name}-{config.subset.name}"
    return RunDirectory.create(config.output or RunDirectory.next_free(stem))


def _first_process() -> bool:
    return os.environ.get("RANK", "0") == "0"


def _distil(config: RunConfig, directory: RunDirectory, quiet: bool, as_json: bool) -> None:
    from distillzoo.core.cli.output import loading, print_json, print_result, silence_libraries

    if any(os.environ.get(name) == "true" for name in ("ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED")):
        raise UserError("FSDP and DeepSpeed are not supported yet: use one process, or several with plain DDP.")
    if config.wandb and importlib.util.find_spec("wandb") is None:
        raise UserError("--wandb needs the package wandb: pip install 'distillzoo[wandb]'.")
    compiler = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")
    if config.train.compile and shutil.which(compiler) is None:
        raise UserError(f"--compile needs a C++ compiler and there is no '{compiler}': install it, or name one in CXX.")
    with loading(quiet or as_json):
        silence_libraries()
        from distillzoo.core.distill import distil
        from distillzoo.core.progress import Reporter

    try:
        result = distil(config, installed(), directory, Reporter(quiet=quiet or as_json or not _first_process()))
    except UserError:
        directory.remove_if_empty()
        raise
    if result is None:
        return
    if as_json:
        print_json(result | {"directory": str(directory.path)})
    else:
        print_result(result, directory)
