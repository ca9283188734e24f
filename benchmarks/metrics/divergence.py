"""Divergences between student and teacher, a token."""

from typing import ClassVar, Literal

from distillzoo.core.divergence import kl
from distillzoo.core.metric import Evaluated, Metric


class ForwardKL(Metric):
    """KL(teacher || student) over the whole vocabulary, a token of the first reference answer of each row:

    KL = mean over (s, .) ~ D of sum_a pi_T(a|s) (log pi_T(a|s) - log pi(a|s)), in nats a token
    """

    direction: ClassVar[Literal["higher", "lower"]] = "lower"
    label: ClassVar[str] = "forward KL, nats/token"
    digits: ClassVar[int] = 3

    def score(self, evaluated: Evaluated) -> float | None:
        return evaluated.mean_over_tokens(lambda student, teacher: kl(teacher, student), on="references")


class ReverseKL(Metric):
    """KL(student || teacher) over the whole vocabulary, a token of the student's own sampled answers:

    KL = mean over s ~ pi of sum_a pi(a|s) (log pi(a|s) - log pi_T(a|s)), in nats a token
    """

    direction: ClassVar[Literal["higher", "lower"]] = "lower"
    label: ClassVar[str] = "reverse KL, nats/token"
    digits: ClassVar[int] = 3

    def score(self, evaluated: Evaluated) -> float | None:
        return evaluated.mean_over_tokens(lambda student, teacher: kl(student, teacher), on="samples")
