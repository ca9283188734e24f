"""Win-rates of algorithms, from the judge's verdicts."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Final

import numpy as np

from distillzoo.benchmarks.judge.contests import Contest
from distillzoo.benchmarks.judge.ledger import Ledger
from distillzoo.benchmarks.judge.verdict import points
from distillzoo.benchmarks.statistics.bootstrap import Interval, stratified

STEADY: Final = {("A", "B"), ("B", "A"), ("tie", "tie")}
"""Verdicts in the two orders that name the same winner."""


@dataclass(frozen=True)
class WinRate:
    """How an algorithm fares on one task.

    Attributes:
        pair: the suite's name for teacher and student.
        algo: the algorithm.
        task: where its answers were judged.
        prompts: those with a verdict in both orders.
        share: mean over these prompts of the share of a win, a tie being half of one, with the 95% interval of the
            bootstrap over prompts; none without a prompt.
        steady: share of these prompts on which both orders have the same verdict; none without a prompt.
        unparsed: replies that held no verdict; their prompts are left out.
    """

    pair: str
    algo: str
    task: str
    prompts: int
    share: Interval | None
    steady: float | None
    unparsed: int


def win_rates(contests: Sequence[Contest], ledger: Ledger, model: str) -> list[WinRate]:
    """One for each pair, algorithm and task."""

    def place(contest: Contest) -> tuple[str, str, str]:
        return contest.pair, contest.algo, contest.task

    return [
        _win_rate(*key, contests=list(group), ledger=ledger, model=model)
        for key, group in groupby(sorted(contests, key=place), key=place)
    ]


def _win_rate(pair: str, algo: str, task: str, contests: list[Contest], ledger: Ledger, model: str) -> WinRate:
    verdicts = [ledger.verdicts(contest, model) for contest in contests]
    unparsed = sum(verdict is None for both in verdicts for verdict in both)
    judged = [(given, swapped) for given, swapped in verdicts if given is not None and swapped is not None]
    if not judged:
        return WinRate(pair, algo, task, 0, None, None, unparsed)
    scores = np.array([[points(*both)] for both in judged])
    share = stratified(lambda matrix: matrix.mean((-2, -1)), scores, generator=np.random.default_rng(0))
    steady = sum(both in STEADY for both in judged) / len(judged)
    return WinRate(pair, algo, task, len(judged), share, steady, unparsed)
