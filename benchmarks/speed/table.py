"""Figures of the speed bench for people and for programs."""

from collections.abc import Mapping
from typing import Any

import altair as alt
import vl_convert
from rich.console import Console
from rich.table import Table

from distillzoo.benchmarks.speed.measure import Timing
from distillzoo.benchmarks.speed.workload import K_MAX, P, Workload
from distillzoo.core.distill import device_name, git_revision, versions

BODY = "student body"

PARTS = ("teacher body", "reading", "loss: ")
"""Beginnings of the names of what is no whole step."""


def facts(work: Workload, rounds: int, peak: float) -> dict[str, Any]:
    """What was timed, where and with which versions."""
    tokens = sum(len(row.response.tokens) for row in work.trajectories)
    stored = work.batch(work.cached).stored
    assert stored is not None, "they come from a cache"
    return {
        "shape": work.shape.name,
        "device": device_name(work.device),
        "dtype": str(work.dtype).removeprefix("torch."),
        "peak_operations_per_second": peak,
        "rounds": rounds,
        "sequences": work.shape.sequences,
        "tokens": work.shape.sequences * work.shape.tokens,
        "response_tokens": tokens,
        "subset": {"p": P, "k_max": K_MAX, "mean_size": float(stored.size.float().mean())},
        "student_parameters": work.student.model.num_parameters(),
        "teacher_parameters": work.teacher.model.num_parameters(),
        "versions": versions(),
        "git": git_revision(),
    }


def print_table(result: Mapping[str, Any], timings: Mapping[str, Timing]) -> None:
    """One line a step."""
    table = Table(box=None, pad_edge=False, collapse_padding=True, header_style="bold")
    table.add_column("step", no_wrap=True)
    for head in ("s", "to\nsft", "quartiles", "to\nbody", "head,\n%", "peak,\n%", "tokens\n/s", "MiB"):
        table.add_column(head, justify="right", no_wrap=True)
    body = timings[BODY].seconds if BODY in timings else None
    for name, timing in timings.items():
        whole = not name.startswith(PARTS)
        table.add_row(
            name,
            f"{timing.seconds:.3f}",
            f"{timing.ratio:.2f}",
            f"{timing.low:.2f}–{timing.high:.2f}",
            "–" if body is None else f"{timing.seconds / body:.2f}",
            f"{100 * max(0.0, 1 - body / timing.seconds):.0f}" if whole and body is not None else "–",
            f"{100 * timing.operations / timing.seconds / result['peak_operations_per_second']:.0f}",
            f"{result['response_tokens'] / timing.seconds:,.0f}" if whole else "–",
            f"{timing.memory / 2**20:,.0f}",
        )
    console = Console(highlight=False)
    console.print(table)
    console.print(
        f"{result['shape']} on {result['device']}, {result['dtype']}: {result['sequences']} sequences, "
        f"{result['tokens']:,} tokens, {result['response_tokens']:,} of them responses; sets of "
        f"{result['subset']['mean_size']:.1f} tokens; medians of {result['rounds']} rounds. head: the share of head "
        f"and loss; peak: operations, of those of a large matrix product in the time; MiB: the most beyond weights and "
        f"gradients."
    )


def chart(timings: Mapping[str, Timing]) -> str:
    """Bars of the ratio to plain fine-tuning, with quartiles, as SVG."""
    points = [{"step": name, "ratio": t.ratio, "low": t.low, "high": t.high} for name, t in timings.items()]
    base = alt.Chart(alt.Data(values=points), width=420).encode(
        y=alt.Y("step:N", title=None, sort=[point["step"] for point in points])
    )
    bars = base.mark_bar(height=12, color="#4c78a8").encode(x=alt.X("ratio:Q", title="seconds, to plain fine-tuning"))
    spread = base.mark_rule(color="#888").encode(x="low:Q", x2="high:Q")
    styled = (
        alt.layer(bars, spread, background="transparent")
        .configure(font="system-ui, sans-serif")
        .configure_view(stroke=None)
        .configure_axis(gridColor="#8884", domainColor="#888", tickColor="#888", labelColor="#888", titleColor="#888")
    )
    return vl_convert.vegalite_to_svg(styled.to_dict())
