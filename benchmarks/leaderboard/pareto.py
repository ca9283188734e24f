"""The algorithms that no other one beats in both cost and score."""

from collections.abc import Sequence


def front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the points (cost, score) on the Pareto front, from the cheapest on.

    Lower costs and higher scores are better; a point is on the front if none is at least as good in both and better
    in one.
    """
    order = sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1]))
    found: list[int] = []
    for i in order:
        if not found or points[i][1] > points[found[-1]][1] or points[i] == points[found[-1]]:
            found.append(i)
    return found
