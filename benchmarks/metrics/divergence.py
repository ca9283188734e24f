"""Divergences between student and teacher, a token."""

from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from distillzoo.core.divergence import kl
from distillzoo.core.metric import Direction, Evaluated, Metric, PositionBin


class ForwardKL(Metric):
    """KL(teacher || student) over the whole vocabulary, a token of the first reference answer of each row:

    KL = mean over (s, .) ~ D of sum_a pi_T(a|s) (log pi_T(a|s) - log pi(a|s)), in nats a token

    Its curve is the same mean over the tokens at the positions 0, 1, 2-3, 4-7, 8-15 and so on of the answers.
    """

    direction: ClassVar[Direction] = "lower"
    label: ClassVar[str] = "forward KL, nats/token"
    digits: ClassVar[int] = 3

    def score(self, evaluated: Evaluated) -> float | None:
        return evaluated.mean_over_tokens(self._of, on="references")

    def by_position(self, evaluated: Evaluated) -> list[PositionBin] | None:
        found = evaluated.tokens(self._of, on="references")
        return None if found is None else found.by_position()

    def _of(self, student: Float[Tensor, "n V"], teacher: Float[Tensor, "n V"]) -> Float[Tensor, "n"]:
        return kl(teacher, student)


class ReverseKL(Metric):
    """KL(student || teacher) over the whole vocabulary, a token of the student's own sampled answers:

    KL = mean over s ~ pi of sum_a pi(a|s) (log pi(a|s) - log pi_T(a|s)), in nats a token

    Its curve is the same mean over the tokens at the positions 0, 1, 2-3, 4-7, 8-15 and so on of the answers.
    """

    direction: ClassVar[Direction] = "lower"
    label: ClassVar[str] = "reverse KL, nats/token"
    digits: ClassVar[int] = 3

    def score(self, evaluated: Evaluated) -> float | None:
        return evaluated.mean_over_tokens(self._of, on="samples")

    def by_position(self, evaluated: Evaluated) -> list[PositionBin] | None:
        found = evaluated.tokens(self._of, on="samples")
        return None if found is None else found.by_position()

    def _of(self, student: Float[Tensor, "n V"], teacher: Float[Tensor, "n V"]) -> Float[Tensor, "n"]:
        return kl(student, teacher)
