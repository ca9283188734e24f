"""Divergences between student and teacher, a token."""

from typing import ClassVar, Literal

import torch
from torch import Tensor

from distillzoo.core.metric import Evaluated, Metric


def kl(p: Tensor, q: Tensor) -> Tensor:
    """KL of softmax(p) to softmax(q) a row, ``[n, V], [n, V] -> [n]``, in nats; columns that are -inf in p count 0."""
    log_p, log_q = p.log_softmax(1), q.log_softmax(1)
    return (log_p.exp() * torch.where(log_p == float("-inf"), 0.0, log_p - log_q)).sum(1)


class ForwardKL(Metric):
    """KL(teacher || student) over the whole vocabulary, a token of the first reference answer of each row:

    mean over (s, .) in D of sum_a pi_T(a|s) (log pi_T(a|s) - log pi(a|s)), in nats a token
    """

    direction: ClassVar[Literal["higher", "lower"]] = "lower"
    label: ClassVar[str] = "forward KL, nats/token"
    digits: ClassVar[int] = 3

    def score(self, evaluated: Evaluated) -> float | None:
        return evaluated.mean_over_tokens(lambda student, teacher: kl(teacher, student), on="references")


class ReverseKL(Metric):
    """KL(student || teacher) over the whole vocabulary, a token of the student's own sampled answers:

    mean over s ~ pi of sum_a pi(a|s) (log pi(a|s) - log pi_T(a|s)), in nats a token
    """

    direction: ClassVar[Literal["higher", "lower"]] = "lower"
    label: ClassVar[str] = "reverse KL, nats/token"
    digits: ClassVar[int] = 3

    def score(self, evaluated: Evaluated) -> float | None:
        return evaluated.mean_over_tokens(lambda student, teacher: kl(student, teacher), on="samples")
