"""Is one algorithm better than another?

Higher scores are better; where lower ones are, the caller negates both matrices.
"""

from collections.abc import Mapping
from itertools import combinations
from math import comb
from typing import Final

import numpy as np

from distillzoo.benchmarks.statistics.scores import Values, checked

ROUNDING: Final = 1e-12
"""Differences this small, relative to the largest score, are ties: sums in another order are not exactly equal."""


def probability_of_improvement(x: Values, y: Values) -> Values:
    """P(X > Y) of a random run of each on the same task, averaged over tasks; a tie counts one half.

    P = 1/K sum_k 1/(nm) sum_ij (1[x_ik > y_jk] + 1/2 1[x_ik = y_jk]), which is Mann and Whitney's U / (nm) of a task.
    ``stratified(probability_of_improvement, x, y, generator=...)`` gives its interval.

    Args:
        x: ``[runs n, tasks K]``, or with leading dimensions.
        y: ``[runs m, tasks K]``.

    References:
        arXiv:2108.13264, section 4.
    """
    one, other = _same_tasks(x, y)
    ours, theirs = one[..., :, None, :], other[..., None, :, :]
    won: Values = ((ours > theirs) + 0.5 * (ours == theirs)).mean((-3, -2, -1))
    return won


def permutation_test(
    x: Values, y: Values, generator: np.random.Generator, resamples: int = 10000, paired: bool = True
) -> float:
    """Two-sided p-value of the difference of means, ``mean(x) - mean(y)``, by exchanging the algorithms.

    p is the share of exchanges whose difference is at least as large, in absolute value. All of them are looked at
    if there are no more than ``resamples``; otherwise as many random ones, and p = (1 + found) / (1 + resamples), as
    the scores as they are count as one of the exchanges.

    Whole rows are exchanged: the tasks of a run share its training, so their scores aren't independent evidence, and
    exchanging them one by one would make too many differences look significant.

    Paired: row i of both comes from the same seed, and x_i and y_i are exchanged or not, 2^n ways. Valid if, were the
    algorithms equal, the difference within a seed would be as likely as its negative. The smallest p is 2 / 2^n:
    0.0625 with 5 seeds, so that 5 pairs can never show p < 0.05; 6 can, with 0.03125.

    Not paired: all splits of the n + m rows, C(n + m, n) ways. Valid if, were the algorithms equal, all rows would
    have one distribution and be independent; rows that share a seed make it conservative where a seed that is good
    for one is good for the other. The smallest p is 2 / C(2n, n) for n = m, 2 / 252 = 0.0079 with 5 and 5, and
    1 / C(n + m, n) otherwise.

    Choose between the two before looking at the p-values.

    Args:
        x: ``[runs n, tasks]``, on scales that can be averaged.
        y: ``[runs m, tasks]``, m = n if paired.
        generator: draws the exchanges where there are too many to look at all.
        resamples: largest number of exchanges.
        paired: rows with the same index have the same seed.

    References:
        Fisher, The Design of Experiments (1935), section 21; Phipson and Smyth, arXiv:1603.05766, on the 1 + found.
    """
    one, other = _same_tasks(x, y)
    if one.ndim > 2 or other.ndim > 2 or not (np.isfinite(one).all() and np.isfinite(other).all()):
        raise ValueError("a difference of means needs two matrices [runs, tasks] of finite scores")
    if paired and len(one) != len(other):
        raise ValueError(f"paired runs are equal in number, not {len(one)} and {len(other)}")
    exchange = _signs_flipped if paired else _split_anew
    differences, complete = exchange(one.mean(1), other.mean(1), generator, resamples)
    largest = max(np.abs(one).max(), np.abs(other).max())
    found = int((np.abs(differences) >= abs(one.mean() - other.mean()) - ROUNDING * largest).sum())
    return found / len(differences) if complete else (1 + found) / (1 + len(differences))


def _signs_flipped(x: Values, y: Values, generator: np.random.Generator, resamples: int) -> tuple[Values, bool]:
    """Differences of means with the algorithms exchanged within some pairs, and whether these are all."""
    runs = len(x)
    complete = 2**runs <= resamples
    if complete:
        flipped = np.arange(2**runs)[:, None] >> np.arange(runs) & 1
    else:
        flipped = generator.integers(2, size=(resamples, runs))
    differences: Values = (1 - 2 * flipped) @ (x - y) / runs
    return differences, complete


def _split_anew(x: Values, y: Values, generator: np.random.Generator, resamples: int) -> tuple[Values, bool]:
    """Differences of means of other splits of all rows, and whether these are all."""
    pool = np.concatenate([x, y])
    complete = comb(len(pool), len(x)) <= resamples
    if complete:
        first = np.array(list(combinations(range(len(pool)), len(x))))
    else:
        first = generator.permuted(np.tile(np.arange(len(pool)), (resamples, 1)), axis=1)[:, : len(x)]
    total = pool[first].sum(1)
    differences: Values = total / len(x) - (pool.sum() - total) / len(y)
    return differences, complete


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Adjusted p-values of several tests, in the order given: those below alpha are significant together.

    With p_(1) <= ... <= p_(m), the adjusted p_(i) is max over j <= i of min(1, (m - j + 1) p_(j)). The chance of
    any false rejection is at most alpha, whatever the dependence of the tests.

    References:
        Holm, A simple sequentially rejective multiple test procedure, Scand. J. Statist. 6 (1979).
    """
    wrong = {name: p for name, p in p_values.items() if not 0 <= p <= 1}
    if wrong:
        raise ValueError(f"not p-values: {wrong}")
    adjusted, reached = {}, 0.0
    for rank, name in enumerate(sorted(p_values, key=p_values.__getitem__)):
        reached = max(reached, min(1.0, (len(p_values) - rank) * p_values[name]))
        adjusted[name] = reached
    return {name: adjusted[name] for name in p_values}


def _same_tasks(x: Values, y: Values) -> tuple[Values, Values]:
    one, other = checked(x), checked(y)
    if one.shape[-1] != other.shape[-1]:
        raise ValueError(f"the tasks of both are the same, not {one.shape[-1]} and {other.shape[-1]}")
    return one, other
