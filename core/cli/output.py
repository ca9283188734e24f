"""Tables and JSON on standard output."""

import json
import logging
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from distillzoo.core.metric import ARROWS, Metric
from distillzoo.core.registry import installed
from distillzoo.core.rundir import RunDirectory


def silence_libraries() -> None:
    """Keep the libraries' own bars and chatter off the screen; our warnings stay. Call before importing them."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TQDM_DISABLE", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"(torch|transformers|accelerate)\b")
    logging.basicConfig(level=logging.ERROR, format="%(message)s")
    logging.getLogger("distillzoo").setLevel(logging.WARNING)
    import transformers

    transformers.utils.logging.disable_progress_bar()


@contextmanager
def loading(quiet: bool = False) -> Iterator[None]:
    """Shown on a terminal during the seconds that the imports take."""
    with Console(stderr=True, quiet=quiet).status("loading the libraries"):
        yield


def print_json(value: Any) -> None:
    """One JSON document."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))


def number(value: float | None, digits: int) -> str:
    """A figure for a table; a dash where it is not defined."""
    return "–" if value is None else f"{value:,.{digits}f}"


def print_scores(rows: list[tuple[str, dict[str, float | None]]], directions: Mapping[str, str]) -> None:
    """A table of models and metrics, with an arrow towards the better values, if either end is better."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("model")
    digits = []
    for name, direction in directions.items():
        metric: type[Metric] = installed().get("metric", name)
        table.add_column(f"{metric.label}{ARROWS[direction]}", justify="right")
        digits.append(metric.digits)
    for model, scores in rows:
        cells = (number(scores[name], d) for name, d in zip(directions, digits, strict=True))
        table.add_row(model, *cells, style="bold" if model == rows[-1][0] and len(rows) > 1 else "")
    Console().print(table)


def decoded(temperature: float, top_p: float) -> str:
    """How answers were picked, in words."""
    return "decoded greedily" if temperature == 0 else f"sampled at temperature {temperature:g}, top-p {top_p:g}"


def print_result(result: dict[str, Any], directory: RunDirectory) -> None:
    """The table that ends a run, its cost, and where its files are."""
    from distillzoo.core.report import score_table

    decoding, training = result["decoding"], result["training"]
    click.echo()
    print_scores(score_table(result), result["directions"])
    click.echo(
        f"\n{result['evaluated_rows']} prompts, {decoded(decoding['temperature'], decoding['top_p'])}.\n"
        f"{training['steps']} steps on {training['trajectories']:,} trajectories: {training['seconds']:.1f} s, "
        f"{training['tokens_per_second']:,.0f} response tokens a second.\n"
        f"{result['seconds']:.1f} s in all, peak memory {result['peak_memory_bytes'] / 2**30:.2f} GiB."
    )
    click.echo(f"model   {directory.model}\nreport  {directory.report}\nresult  {directory.result}")
