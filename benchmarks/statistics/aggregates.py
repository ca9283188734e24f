"""One number for the scores of several runs on several tasks.

Both take leading dimensions as well, [..., runs, tasks] -> [...], which is how the bootstrap calls them.
"""

from scipy import stats

from distillzoo.benchmarks.statistics.scores import Values, checked


def mean(scores: Values) -> Values:
    """Mean of the run-task values; every task counts the same.

    Args:
        scores: ``[runs, tasks]``.
    """
    found: Values = checked(scores).mean((-2, -1))
    return found


def interquartile_mean(scores: Values) -> Values:
    """IQM: the mean of the middle half of all N = runs x tasks values, pooled over tasks.

    floor(N / 4) values are dropped at each end, so where 4 doesn't divide N a little more than half is left: 3 of 5,
    4 of 6, 5 of 7; up to 3 values it is the mean.

    Args:
        scores: ``[runs, tasks]``, on scales that can be pooled.

    References:
        arXiv:2108.13264 (Agarwal et al. 2021), section 4, which takes the 25% trimmed mean as here.
    """
    found = checked(scores)
    middle: Values = stats.trim_mean(found.reshape(*found.shape[:-2], -1), 0.25, axis=-1)
    return middle
