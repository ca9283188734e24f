"""Whether the student's answers are as long as they should be."""

from typing import ClassVar

from distillzoo.core.metric import Direction, Evaluated, Metric


class LengthRatio(Metric):
    """Tokens of the sampled answers over tokens of the first reference answers of the same rows:

        ratio = sum_i |y_i| / sum_i |y*_i|

    the end token counted where there is one. Below 1 the student stops early, above 1 it runs on; so neither direction
    is the better, and a table shows no arrow. Answers are cut at the evaluation's length limit.
    """

    direction: ClassVar[Direction] = "none"
    label: ClassVar[str] = "length / reference"
    digits: ClassVar[int] = 2

    def score(self, evaluated: Evaluated) -> float | None:
        sampled = sum(len(completion.tokens) for completion in evaluated.completions)
        expected = sum(len(row.references[0].tokens) for row in evaluated.encoded)
        return sampled / expected if expected else None
