"""Draws kappa(p) against the measured gap: ``python -m distillzoo.benchmarks.theory.figure docs/kappa.svg``."""

import sys
from typing import Final

import altair as alt

from distillzoo.benchmarks.theory.tabular import MDP, gap, random_mdp, token_tree

MASSES: Final = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)
GAMMAS: Final = (0.5, 0.9, 0.99)
SEEDS: Final = range(10)


def worlds(gamma: float) -> dict[str, list[MDP]]:
    """Random MDPs and token trees."""
    return {
        "random MDPs (30 states, 8 actions)": [random_mdp(30, 8, gamma, seed) for seed in SEEDS],
        "token trees (depth 4, 6 tokens)": [token_tree(4, 6, gamma, seed) for seed in SEEDS],
    }


def rows() -> list[dict[str, float | str]]:
    """The largest gap over the seeds, for each world, gamma and p, and the bound."""
    found: list[dict[str, float | str]] = []
    for gamma in GAMMAS:
        for world, mdps in worlds(gamma).items():
            for p in MASSES:
                gaps = [gap(mdp, p) for mdp in mdps]
                for what, nats in (
                    ("bound", gaps[0].bound),
                    ("projected policy", max(g.projected for g in gaps)),
                    ("reduced optimum", max(g.reduced for g in gaps)),
                ):
                    found.append({"world": world, "gamma": f"gamma = {gamma}", "p": p, "what": what, "nats": nats})
    return found


def figure() -> alt.FacetChart:
    """Nats against p on a logarithmic scale, a panel for each gamma and world."""
    colours = alt.Scale(
        domain=["bound", "projected policy", "reduced optimum"], range=["#555555", "#d95f02", "#1b6ca8"]
    )
    line = (
        alt.Chart(alt.Data(values=rows()))
        .mark_line()
        .encode(
            x=alt.X("p:Q", title="p", scale=alt.Scale(domain=[0.25, 1.0])),
            y=alt.Y("nats:Q", title="largest loss, nats", scale=alt.Scale(type="log"), axis=alt.Axis(tickCount=5)),
            color=alt.Color("what:N", title=None, scale=colours),
            strokeDash=alt.condition("datum.what == 'bound'", alt.value([4, 3]), alt.value([1, 0])),
            # the two gaps nearly agree, so one is drawn wide beneath the other
            strokeWidth=alt.condition("datum.what == 'projected policy'", alt.value(6), alt.value(1.5)),
        )
        .properties(width=200, height=160)
    )
    return line.facet(column=alt.Column("gamma:N", title=None), row=alt.Row("world:N", title=None))


if __name__ == "__main__":
    figure().save(sys.argv[1])
