"""``distillzoo cache``: build, inspect and verify."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from distillzoo.core.cli.output import loading, print_json, silence_libraries
from distillzoo.core.cli.run import flags_tree
from distillzoo.core.config import resolve
from distillzoo.core.registry import installed

if TYPE_CHECKING:
    from distillzoo.core.cache.store import TeacherCache


@click.group()
def cache() -> None:
    """Caches of a teacher's subsets: pay for the teacher once, train from the cache as often as you like."""


@cache.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--algo", metavar="NAME", help="Recipe whose subset and trajectories are cached.")
@click.option("--subset", metavar="NAME", help="Replace the recipe's action subset.")
@click.option("--trajectories", metavar="NAME", help="Replace the recipe's trajectory source.")
@click.option("--teacher", metavar="MODEL", help="Hub id, folder, GGUF file, or micro.  [default: micro]")
@click.option("--student", metavar="MODEL", help="The same, or prune:layers=N.  [default: the suite's]")
@click.option("--data", metavar="DATA", help="JSON lines file, datasets id, or micro.")
@click.option("--valid", metavar="DATA", help="Evaluation data of the runs; default as in run.")
@click.option("--batch-size", type=click.IntRange(1), help="Sequences that the teacher reads at a time.")
@click.option("--seed", type=int, help="Seed of the sampling.")
@click.option("--device", help="auto, cpu, cuda, cuda:1, mps.")
@click.option("--dtype", type=click.Choice(["auto", "float32", "bfloat16", "float16"]), help="Of the matrix products.")
@click.option("--config", "file", type=click.Path(path_type=Path), help="YAML file with any part of the configuration.")
@click.option("--set", "sets", multiple=True, metavar="FIELD=VALUE", help="Any field, for example subset.p=0.9.")
@click.option("--quiet", "-q", is_flag=True, help="Print the final line only.")
def build(
    folder: Path,
    algo: str | None,
    file: Path | None,
    sets: tuple[str, ...],
    batch_size: int | None,
    quiet: bool,
    **flags: Any,
) -> None:
    """Build a cache in FOLDER, or go on with one whose building was cut off.

    It holds the trajectories of the run that the options describe, and the teacher's subset with its log-probabilities
    at each of their actions. Give the run the same options and --teacher-cache FOLDER.
    """
    registry = installed()
    if batch_size is not None:
        sets = (*sets, f"train.device_batch_size={batch_size}")
    with loading(quiet):
        config = resolve(registry, algo=algo, file=file, flags=flags_tree(flags), sets=sets)
        silence_libraries()
        from distillzoo.core.cache.build import build as fill
        from distillzoo.core.cache.build import must_fit
        from distillzoo.core.progress import Reporter
        from distillzoo.core.world import World

    world = World(config, registry, Reporter(quiet=quiet))
    must_fit(world)
    world.load()
    click.echo(_line(fill(world, folder)))


@cache.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print the facts as JSON.")
def inspect(folder: Path, as_json: bool) -> None:
    """Show what a cache holds and what it belongs to."""
    from distillzoo.core.cache.store import TeacherCache

    found = TeacherCache.open(folder)
    if as_json:
        print_json(
            {
                "key": found.key,
                "complete": found.complete,
                "sequences": found.sequences,
                "states": found.actions,
                "entries": found.entries,
                "bytes": found.bytes,
                "error_relative": found.error_relative,
                "error_offset": found.error_offset,
            }
        )
        return
    click.echo(_line(found))
    bound = f"{found.error_relative:.2%} of {2 * found.error_offset} - l - l'"
    click.echo(f"A log-probability l is off by at most {bound}, l' the least of its set, down to -24 nats.")
    for name, value in found.key.items():
        click.echo(f"{name.replace('_', ' '):18} {value}")


@cache.command()
@click.argument("folder", type=click.Path(path_type=Path))
def verify(folder: Path) -> None:
    """Check that every file of a cache is there and as it was written; exit code 1 if not."""
    from distillzoo.core.cache.store import TeacherCache

    found = TeacherCache.open(folder)
    wrong = found.verify()
    for sentence in wrong:
        click.echo(sentence)
    if not found.complete:
        click.echo(f"Not complete: {found.sequences:,} trajectories so far.")
    if wrong or not found.complete:
        sys.exit(1)
    click.echo(f"{len(found.shards)} shards are as they were written.")


def _line(cache: "TeacherCache") -> str:
    per_entry = cache.bytes / max(1, cache.entries)
    per_state = cache.bytes / max(1, cache.actions)
    return (
        f"{cache.folder}: {cache.sequences:,} trajectories, {cache.actions:,} states, {cache.entries:,} tokens in "
        f"their sets, {cache.bytes:,} bytes ({per_entry:.2f} a token of a set, {per_state:.1f} a state)"
        f"{'' if cache.complete else ', not complete'}"
    )
