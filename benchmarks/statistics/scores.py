"""The currency of this package: a matrix of scores, one row a run, one column a task."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

Values = NDArray[np.float64]


def checked(scores: ArrayLike) -> Values:
    """Scores ``[..., runs, tasks]`` as float64; higher is better, the caller negates what is better lower.

    Raises:
        ValueError: there is no run or no task, or a score is NaN. A trimmed mean would take NaN for the best score
            and a comparison for the worst, so a run that failed has to be left out or given a number by the caller.
    """
    found = np.asarray(scores, dtype=np.float64)
    if found.ndim < 2 or not found.size:
        raise ValueError(f"scores have the shape [runs, tasks] with at least one of each, not {list(found.shape)}")
    if np.isnan(found).any():
        raise ValueError("a score is NaN: leave the run out, or give it the score that a failure is worth")
    return found
