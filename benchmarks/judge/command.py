"""``distillzoo bench judge``."""

import math
import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import click

from distillzoo.core.errors import UserError

if TYPE_CHECKING:
    from distillzoo.benchmarks.judge.winrate import WinRate

USUAL_KEY = "OPENAI_API_KEY"


@click.command()
@click.argument("folder", metavar="RESULTS_FOLDER", type=click.Path(path_type=Path))
@click.option("--against", required=True, metavar="ALGO|references", help="The opponent of all other algorithms.")
@click.option("--endpoint", required=True, metavar="URL", help="Base of the API, as in https://api.openai.com/v1.")
@click.option("--model", required=True, metavar="NAME", help="The judge, as the endpoint names it.")
@click.option("--key-env", metavar="NAME", help=f"Variable with the API key.  [default: {USUAL_KEY} at api.openai.com]")
@click.option("--task", metavar="NAME", help="Only this task.  [default: all]")
@click.option("--decoding", metavar="NAME", help="Only answers sampled so.  [default: the suite's headline]")
@click.option("--limit", type=click.IntRange(1), metavar="N", help="Only the first N prompts of each task.")
@click.option("--seed", type=click.IntRange(0), metavar="N", help="Students of this seed.  [default: the lowest]")
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
def judge(
    folder: Path,
    against: str,
    endpoint: str,
    model: str,
    key_env: str | None,
    task: str | None,
    decoding: str | None,
    limit: int | None,
    seed: int | None,
    as_json: bool,
) -> None:
    """Win-rates of the algorithms in RESULTS_FOLDER, judged by a language model behind an OpenAI-compatible endpoint.

    Prompts and answers are sent to the endpoint. Each prompt is asked twice, with the answers in both orders; a tie is
    half a win. Replies are kept in RESULTS_FOLDER/judgements.jsonl, so nothing is asked twice.
    """
    # a key goes to nobody but whom it is for: another endpoint's is named
    usual = USUAL_KEY if urlsplit(endpoint).hostname == "api.openai.com" else ""
    key = os.environ.get(key_env or usual, "").strip() or None
    if key_env is not None and key is None:
        raise UserError(f"--key-env {key_env}: the environment has no such variable, or it is empty.")
    from distillzoo.core.cli.output import loading

    with loading():
        from distillzoo.benchmarks.harness.benchmark import benchmark_of
        from distillzoo.benchmarks.judge.contests import chosen_rows, contests
        from distillzoo.benchmarks.judge.endpoint import Endpoint
        from distillzoo.benchmarks.judge.ledger import ledger
        from distillzoo.benchmarks.judge.winrate import win_rates
        from distillzoo.core.cli.output import print_json
        from distillzoo.core.progress import Reporter
        from distillzoo.core.registry import installed

    referee = Endpoint(endpoint, model, key)
    rows = chosen_rows(folder, seed)
    if decoding is None:
        decoding = benchmark_of(installed(), rows[0].suite, rows[0].changes)[0].headline.decoding
    found = contests(folder, rows, against, task, decoding, limit)
    with ledger(folder) as kept:
        kept.fill(found, referee, Reporter(quiet=as_json))
        rates = win_rates(found, kept, model)
    if as_json:
        facts = {"judge": model, "against": against, "decoding": decoding, "seed": rows[0].seed}
        print_json({**facts, "win_rates": [_told(rate) for rate in rates]})
        return
    _print(rates, f"win-rate against {against}, %")
    unparsed = sum(rate.unparsed for rate in rates)
    click.echo(
        f"\nJudge {model}, answers of {decoding}, seed {rows[0].seed}. The two orders of a prompt count half each, a "
        f"tie is half a win; 95% bootstrap over prompts.\n{kept.asked} questions asked, the others were judged before. "
        f"{unparsed} replies held no verdict; their prompts are left out."
    )


def _told(rate: "WinRate") -> dict[str, Any]:
    found = asdict(rate)
    if rate.share is not None:  # one prompt alone has no interval, and JSON no NaN
        found["share"] = {name: None if math.isnan(value) else value for name, value in found["share"].items()}
    return found


def _print(rates: "list[WinRate]", column: str) -> None:
    from rich.console import Console
    from rich.table import Table

    from distillzoo.core.cli.output import number

    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("pair", "algorithm", "task"):
        table.add_column(title)
    for title in ("prompts", column, "interval", "same in both orders, %", "no verdict"):
        table.add_column(title, justify="right")
    for rate in rates:
        share = rate.share
        known = share is not None and not math.isnan(share.low)  # one prompt alone has none
        ends = f"{100 * share.low:.1f} to {100 * share.high:.1f}" if share and known else "–"
        table.add_row(
            rate.pair,
            rate.algo,
            rate.task,
            str(rate.prompts),
            number(None if share is None else 100 * share.value, 1),
            ends,
            number(None if rate.steady is None else 100 * rate.steady, 1),
            str(rate.unparsed),
        )
    Console().print(table)
