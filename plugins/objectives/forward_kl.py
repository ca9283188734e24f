"""KL(teacher || student)."""

from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from distillzoo.core.divergence import Divergence, relative_entropy


class ForwardKL(Divergence):
    """Forward KL divergence from the student to the teacher, in every visited state:

        KL(pi_T || pi)(s) = sum_a pi_T(a|s) (log pi_T(a|s) - log pi(a|s))

    It covers the teacher's modes. ``tail`` says what becomes of the mass outside a subset. ``[N]`` terms in nats a
    token.

    References:
        arXiv:1503.02531 (knowledge distillation) without the temperature.
    """

    paper: ClassVar[str] = "arXiv:1503.02531"

    def contributions(self, log_p: Float[Tensor, "n K"], log_q: Float[Tensor, "n K"]) -> Float[Tensor, "n K"]:
        return relative_entropy(log_p, log_q)
