"""``distillzoo leaderboard`` on the command line."""

import sys
from dataclasses import asdict
from pathlib import Path

import click

from distillzoo.benchmarks.harness.command import inputs_given
from distillzoo.core.registry import installed


@click.group()
def leaderboard() -> None:
    """Draw, check and reproduce the results of benchmarks."""


@leaderboard.command()
@click.argument("results", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--out", type=click.Path(path_type=Path), default=Path("site"), show_default=True, help="Folder to write."
)
@click.option("--baseline", metavar="NAME", help="Algorithm that the others are compared with; default: kd, if there.")
@click.option(
    "--target", "targets", multiple=True, metavar="NAME", help="Algorithm whose final score the others race for."
)
def build(results: tuple[Path, ...], out: Path, baseline: str | None, targets: tuple[str, ...]) -> None:
    """Write index.html, leaderboard.md and leaderboard.csv of some results.jsonl.

    Rows of different suites, pairs of models or classes of machine stand in different tables. The page needs no
    network.
    """
    from distillzoo.core.cli.output import loading

    with loading():
        from distillzoo.benchmarks.leaderboard.build import build as write

        written = write(results, out, baseline, targets, installed())
    for path in written:
        click.echo(path)


@leaderboard.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
def check(file: Path, as_json: bool) -> None:
    """Say whether a results.jsonl may be put beside others. Exit code 1 if something has to be mended."""
    from distillzoo.benchmarks.leaderboard.check import check as findings_of
    from distillzoo.core.cli.output import print_json

    findings = findings_of(file, installed())
    problems = sum(finding.level == "problem" for finding in findings)
    if as_json:
        print_json({"fine": not problems, "findings": [asdict(finding) for finding in findings]})
    else:
        said: dict[tuple[str, str], list[int]] = {}
        for finding in findings:
            lines = said.setdefault((finding.level, finding.text), [])
            lines += [] if finding.line is None else [finding.line]
        for (level, text), lines in said.items():
            where = f"line{'s' if len(lines) > 1 else ''} {', '.join(map(str, lines))}: " if lines else ""
            click.echo(f"{level:8}{where}{text}")
        click.echo("Fine." if not problems else f"{problems} {'problem' if problems == 1 else 'problems'}.")
    if problems:
        sys.exit(1)


@leaderboard.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.argument("row")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Where ROW is a name.")
@click.option(
    "--input", "inputs", multiple=True, callback=inputs_given, metavar="NAME=VALUE", help="As for distillzoo bench run."
)
@click.option(
    "--out", type=click.Path(path_type=Path), default=Path("again"), show_default=True, help="Folder to run in."
)
def reproduce(file: Path, row: str, seed: int, inputs: dict[str, str], out: Path) -> None:
    """Run the cell of a ROW again, a line of FILE or an algorithm's name, and compare the scores.

    Exit code 1 if they differ by more than the seeds of the algorithm do. A run that was cut off goes on.
    """
    from distillzoo.core.cli.output import loading

    with loading():
        from distillzoo.benchmarks.leaderboard.reproduce import chosen, comparison
        from distillzoo.benchmarks.leaderboard.reproduce import reproduce as run_again
        from distillzoo.benchmarks.leaderboard.source import read_cells

        cells = read_cells([file])
        before = chosen(cells, row, seed)
    again = run_again(before, cells, inputs, out.expanduser().resolve(), installed())
    click.echo(comparison(again))
    if again.outcome == "not":
        sys.exit(1)
