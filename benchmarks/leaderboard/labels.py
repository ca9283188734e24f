"""Names beside the points of a chart, such that none covers another."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

WIDTH, HEIGHT, GAP = 6.2, 13.0, 7.0
"""Pixels of a letter and of a line, and between a point and its name."""

SIDES: Final = (
    *(("left", GAP, 0.0), ("right", -GAP, 0.0), ("center", 0.0, -11.0), ("center", 0.0, 11.0)),
    *((align, x, y) for y in (-9.0, 9.0, -16.0, 16.0) for align, x in (("left", GAP), ("right", -GAP))),
)
"""Where a name may stand: its alignment and its offset from the point, the best place first."""


class Spot(NamedTuple):
    """Where a name stands beside its point."""

    align: str
    dx: float
    dy: float


@dataclass(frozen=True)
class _Box:
    left: float
    top: float
    right: float
    bottom: float

    def meets(self, other: "_Box") -> bool:
        return (
            self.left < other.right and other.left < self.right and self.top < other.bottom and other.top < self.bottom
        )


def place(
    points: Sequence[tuple[float, float]], names: Sequence[str], width: float, height: float
) -> list[Spot | None]:
    """A spot for each name, those named first choose first; None where no place is free.

    Args:
        points: x and y in pixels, y downwards.
        names: as many.
        width: of the chart, which no name leaves.
        height: the same.
    """
    taken = [_Box(x - 4, y - 4, x + 4, y + 4) for x, y in points]
    spots: list[Spot | None] = []
    for (x, y), name in zip(points, names, strict=True):
        for spot, box in _candidates(x, y, name):
            inside = box.left >= 0 and box.right <= width and box.top >= -HEIGHT and box.bottom <= height
            if inside and not any(box.meets(other) for other in taken):
                taken.append(box)
                spots.append(spot)
                break
        else:
            spots.append(None)
    return spots


def _candidates(x: float, y: float, name: str) -> Iterator[tuple[Spot, _Box]]:
    long = WIDTH * len(name)
    for align, dx, dy in SIDES:
        left = x + dx - {"left": 0.0, "center": long / 2, "right": long}[align]
        yield Spot(align, dx, dy), _Box(left, y + dy - HEIGHT / 2, left + long, y + dy + HEIGHT / 2)
