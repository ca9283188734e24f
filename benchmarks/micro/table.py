"""Means with intervals over seeds, as Markdown."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from scipy import stats

COLUMNS: Final[dict[str, tuple[str, int]]] = {
    "right": ("right, top-p 1.0", 1),
    "right at 0.8": ("right, top-p 0.8", 1),
    "rouge-l": ("Rouge-L, 1.0", 1),
    "rouge-l at 0.8": ("Rouge-L, 0.8", 1),
    "forward-kl": ("forward KL", 3),
    "reverse-kl": ("reverse KL", 3),
    "entropy": ("entropy", 3),
    "nucleus-mass": ("mass in nucleus", 3),
}


def interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float]:
    """Mean and half width of Student's t interval over seeds; the half width of one value is NaN."""
    found = np.asarray(values, dtype=float)
    if len(found) < 2:
        return float(found.mean()), float("nan")
    spread = found.std(ddof=1) / np.sqrt(len(found))
    return float(found.mean()), float(stats.t.ppf((1 + confidence) / 2, len(found) - 1) * spread)


def markdown(rows: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """One line a name, mean and half width of the 95% interval over its seeds; failed cells are counted."""
    heads = ["", *(head for head, _ in COLUMNS.values()), "training, s", "seeds"]
    lines = [" | ".join(heads), "|".join(["---"] * len(heads))]
    for name, several in rows.items():
        done = [row for row in several if "scores" in row]
        failed = len(several) - len(done)
        if not done:
            lines.append(f"{name} | failed: {several[0]['error']}")
            continue
        cells = [_cell([row["scores"][key] for row in done], digits) for key, (_, digits) in COLUMNS.items()]
        seconds = _cell([row["training"]["seconds"] for row in done], 0)
        lines.append(" | ".join([name, *cells, seconds, f"{len(done)}{f', {failed} failed' if failed else ''}"]))
    return "\n".join(f"| {line} |" for line in lines)


def _cell(values: Sequence[float], digits: int) -> str:
    mean, half = interval(values)
    return f"{mean:.{digits}f}" if np.isnan(half) else f"{mean:.{digits}f} ± {half:.{digits}f}"
