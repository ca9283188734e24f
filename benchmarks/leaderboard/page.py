"""``index.html``: one page that needs no network and runs no script but its own."""

import base64
import hashlib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import jinja2
import yaml
from markupsafe import Markup

from distillzoo.benchmarks.harness.row import PartUsed
from distillzoo.benchmarks.leaderboard import words
from distillzoo.benchmarks.leaderboard.answers import side_by_side
from distillzoo.benchmarks.leaderboard.charts import Dot, panels, scatter
from distillzoo.benchmarks.leaderboard.claims import races
from distillzoo.benchmarks.leaderboard.curves import (
    AXES,
    Series,
    curve_metrics,
    places,
    position_curves,
    profiles,
    training_curves,
)
from distillzoo.benchmarks.leaderboard.settings import command_of
from distillzoo.benchmarks.leaderboard.standings import (
    COSTS,
    MEMORY,
    SAMPLING,
    SPEED,
    TRAINING,
    CostColumn,
    Standing,
    decidable,
    standings,
)
from distillzoo.benchmarks.leaderboard.table import Line, Table, wording
from distillzoo.benchmarks.statistics.bootstrap import ONE_SEED
from distillzoo.core.metric import ARROWS
from distillzoo.core.registry import Registry

SCATTERED: Final[Mapping[str, Sequence[CostColumn]]] = {
    "training and the teacher's samples, s": (TRAINING, SAMPLING),
    "peak memory, GiB": (MEMORY,),
}
"""Costs, or sums of them, against which the headline is drawn."""

OURS: Final = "distillzoo"
"""The distribution whose parts need no mention."""


def page(tables: Sequence[Table], baseline: str, registry: Registry, targets: Sequence[str]) -> str:
    """The whole page."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"figure": words.figure, "ends": words.ends, "short": words.short, "yaml": _yaml}
    environment.globals |= {"arrows": ARROWS, "sentence": words.sentence, "one_seed": ONE_SEED}
    script = environment.get_template("page.js.j2").render()
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return environment.get_template("page.html.j2").render(
        boards=[_board(f"t{number}", table, baseline, registry, targets) for number, table in enumerate(tables, 1)],
        script=Markup(script),
        # whatever a row might smuggle past the escaping, a browser runs no script but this one
        policy=f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'",
    )


def _board(id: str, table: Table, baseline: str, registry: Registry, targets: Sequence[str]) -> dict[str, Any]:
    """What the template draws of a table."""
    ranked = standings(table, baseline)
    lines = [standing.line for standing in ranked]
    compared_with = table.line(baseline)
    marked = None if compared_with is None else compared_with.label
    order = [line.label for line in lines]
    return {
        "id": id,
        "table": table,
        "standings": ranked,
        "ids": {line.label: f"{id}-a{place}" for place, line in enumerate(lines, 1)},
        "costs": list(COSTS),
        "dearer_is_better": SPEED,
        "baseline": marked,
        "distributions": sorted({name for line in lines for name in line.distributions}),
        "guests": {line.label: _guests(line) for line in lines},
        "strips": _strips(ranked),
        "decidable": decidable(ranked),
        "wanted": baseline,
        "compared": sum(standing.against is not None for standing in ranked),
        "most": max((s.against.seeds for s in ranked if s.against), default=0),
        "scatters": _scatters(table, ranked, marked),
        "curves": _curves(table, lines, marked, registry),
        "positions": _positions(table, lines, marked, registry),
        "profile": _profile(table, order, marked),
        "races": races(table, order, targets),
        "command": lambda row: command_of(row, table.suite),
        "wording": lambda metric: wording(registry, metric)[0],
        "prompts": side_by_side(table, ranked),
        "chosen": [label for place, label in enumerate(order) if place < 3 or label == marked],
    }


def _guests(line: Line) -> list[PartUsed]:
    """Where the recipe came from, and the parts that are from elsewhere than distillzoo."""
    return [line.first.recipe, *(part for part in line.parts.values() if part.distribution != OURS)]


def _strips(ranked: Sequence[Standing]) -> dict[str, str]:
    """The headline's interval as a mark in its cell: left end, width and value in percent of the column's range."""
    shown = {s.line.label: s.headline for s in ranked if s.headline is not None}
    ends = [end for h in shown.values() for end in (h.value, h.low, h.high) if math.isfinite(end)]
    if not ends or max(ends) == min(ends):
        return {}
    low, span = min(ends), max(ends) - min(ends)
    return {
        label: "--a:{:.1f}%;--b:{:.1f}%;--v:{:.1f}%".format(
            *(100 * ((end if math.isfinite(end) else h.value) - low) / span for end in (h.low, h.high, h.value))
        )
        for label, h in shown.items()
    }


def _scatters(table: Table, ranked: Sequence[Standing], baseline: str | None) -> list[dict[str, Any]]:
    if not table.headline:
        return []
    column = table.headline[0]
    title = column.label if len(table.headline) == 1 else f"{column.label}, mean over tasks"
    found = []
    for cost, parts in SCATTERED.items():
        dots = [
            Dot(s.line.label, spent, s.headline)
            for s in ranked
            if s.headline is not None and (spent := _spent(s, parts)) is not None
        ]
        if len(dots) > 1:
            svg = scatter(dots, cost, f"{title}{ARROWS.get(column.direction, '')}", column.sign, baseline)
            found.append({"cost": cost, "svg": Markup(svg)})
    return found


def _spent(standing: Standing, parts: Sequence[CostColumn]) -> float | None:
    found = [value for part in parts if (value := standing.costs[part]) is not None]
    return sum(found) if len(found) == len(parts) else None


def _curves(table: Table, lines: Sequence[Line], baseline: str | None, registry: Registry) -> list[dict[str, Any]]:
    """Each metric that is measured during the training, drawn once for each axis."""
    found = []
    for metric in curve_metrics(table):
        label, _ = wording(registry, metric)
        charts = {}
        for axis in AXES:
            series = training_curves(lines, metric, axis)
            if series:
                last = [one.x[-1] for one in series.values()]
                log = min(last) > 0 and max(last) > 10 * min(last)
                charts[axis] = Markup(panels(series, baseline, log))
        if charts:
            found.append({"metric": metric, "label": label, "charts": charts})
    return found


def _positions(table: Table, lines: Sequence[Line], baseline: str | None, registry: Registry) -> list[dict[str, Any]]:
    found = []
    for place in places(table):
        label, _ = wording(registry, place.metric)
        series = position_curves(lines, place)
        if series:
            svg = panels(series, baseline, log=True)
            found.append({"place": place, "label": label, "svg": Markup(svg)})
    return found


def _profile(table: Table, order: Sequence[str], baseline: str | None) -> Markup | None:
    if len(table.headline) < 2:
        return None
    found: Mapping[str, Series] = profiles(table)
    series = {label: found[label] for label in order if label in found}
    return Markup(panels(series, baseline)) if series else None


def _yaml(tree: Mapping[str, Any]) -> str:
    return yaml.safe_dump(dict(tree), sort_keys=False, allow_unicode=True, width=120)
