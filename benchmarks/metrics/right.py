"""Share of right answers."""

from typing import ClassVar

from distillzoo.core.metric import Direction, Evaluated, Metric


class Right(Metric):
    """Percentage of sampled answers that the suite's exact checker finds right:

        100 / N * sum_i right(x_i, y_i),  y_i ~ pi(. | x_i)

    None for data without a checker.
    """

    direction: ClassVar[Direction] = "higher"
    label: ClassVar[str] = "right, %"
    digits: ClassVar[int] = 1

    def score(self, evaluated: Evaluated) -> float | None:
        if evaluated.right is None:
            return None
        marks = [evaluated.right(row, answer) for row, answer in zip(evaluated.rows, evaluated.answers, strict=True)]
        return 100 * sum(marks) / len(marks)
