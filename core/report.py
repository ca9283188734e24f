"""``report.html``: one self-contained page on a run."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import altair as alt
import jinja2
import vl_convert

from distillzoo.core.data import Row
from distillzoo.core.evaluation import Scores
from distillzoo.core.metric import ARROWS
from distillzoo.core.rundir import RunDirectory

SAMPLES: Final = 12
"""Answers shown side by side."""

MODEL_NAMES: Final = {"teacher": "teacher", "before": "student before", "after": "student after"}

NOT_TERMS: Final = {
    *("step", "loss", "epoch", "grad_norm", "learning_rate", "value", "implied_reward"),
    *("subset_size", "subset_size_p95", "teacher_mass", "student_mass", "action_inside"),
}

CHARTS: Final = (
    ("Loss, a token", ("loss",), True),
    ("Soft value V(s) and implied reward, nats", ("value", "implied_reward"), False),
    ("Tokens in the subset", ("subset_size", "subset_size_p95"), False),
    ("Mass in the subset: teacher, student, taken actions", ("teacher_mass", "student_mass", "action_inside"), False),
    ("Gradient norm before clipping", ("grad_norm",), False),
)
"""Title, columns of ``metrics.jsonl``, and whether the objective's own terms are drawn too."""


def write_report(
    directory: RunDirectory,
    result: dict[str, Any],
    scores: dict[str, Scores],
    rows: Sequence[Row],
    right: Callable[[Row, str], bool] | None,
    digits: dict[str, int],
) -> None:
    """Draw curves, table and sample answers of a finished run into ``report.html``.

    ``right`` is the suite's checker, whose marks are shown beside the answers; ``digits`` the decimals of each metric.
    """
    history = list(directory.read(directory.metrics))
    terms = tuple(sorted({name for row in history for name in row} - NOT_TERMS))
    charts = []
    for title, columns, with_terms in CHARTS:
        svg = _chart(history, (*columns, *terms) if with_terms else columns)
        if svg is not None:
            charts.append({"title": title, "svg": svg})
    samples = [
        {
            "instruction": row["instruction"],
            "input": row.get("input", ""),
            "reference": row["output"][0],
            "answers": [
                {
                    "model": MODEL_NAMES[name],
                    "text": found.answers[i],
                    "mark": "" if right is None else "✓" if right(row, found.answers[i]) else "✗",
                }
                for name, found in scores.items()
            ],
        }
        for i, row in enumerate(rows[:SAMPLES])
    ]
    environment = jinja2.Environment(loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True)
    page = environment.get_template("report.html.j2").render(
        name=directory.path.name,
        result=result,
        digits=digits,
        arrows=ARROWS,
        table=score_table(result),
        charts=charts,
        samples=samples,
        config=directory.config.read_text(encoding="utf-8"),
    )
    directory.write_text(directory.report, page)


def score_table(result: dict[str, Any]) -> list[tuple[str, dict[str, float | None]]]:
    """The evaluated models in order, with their metrics."""
    return [(MODEL_NAMES[name], metrics) for name, metrics in result["scores"].items()]


def _chart(history: list[dict[str, Any]], columns: tuple[str, ...]) -> str | None:
    """A line chart of some columns as SVG, None where the history has none of them."""
    points = [
        {"step": row["step"], "what": name.replace("_", " "), "y": row[name]}
        for row in history
        for name in columns
        if name in row
    ]
    if not points:
        return None
    chart = (
        alt.Chart(alt.Data(values=points), width=420, height=200, background="transparent")
        .mark_line(strokeWidth=1.8)
        .encode(
            x=alt.X("step:Q", title="optimiser step"),
            y=alt.Y("y:Q", title=None, scale=alt.Scale(zero=False)),
            color=alt.Color(
                "what:N",
                title=None,
                sort=[name.replace("_", " ") for name in columns],
                legend=alt.Legend(orient="top", symbolType="stroke"),
            ),
        )
        .configure(font="system-ui, sans-serif")
        .configure_view(stroke=None)
        .configure_axis(gridColor="#8884", domainColor="#888", tickColor="#888", labelColor="#888", titleColor="#888")
        .configure_legend(labelColor="#888")
    )
    return vl_convert.vegalite_to_svg(chart.to_dict())
