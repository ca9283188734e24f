"""KL(student || teacher)."""

from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from distillzoo.core.divergence import Divergence, relative_entropy


class ReverseKL(Divergence):
    """Reverse KL divergence, in every visited state:

        KL(pi || pi_T)(s) = sum_a pi(a|s) (log pi(a|s) - log pi_T(a|s))

    It seeks the teacher's modes. A token that the teacher never gives counts as one with log-probability -10,000.
    ``tail`` says what becomes of the mass outside a subset; with ``renormalise`` a student can lower the divergence
    by moving its mass outside. ``[N]`` terms in nats a token.

    References:
        arXiv:2306.08543, the single-step term; arXiv:2306.13649.
    """

    paper: ClassVar[str] = "arXiv:2306.08543"

    def contributions(self, log_p: Float[Tensor, "n K"], log_q: Float[Tensor, "n K"]) -> Float[Tensor, "n K"]:
        return relative_entropy(log_q, log_p)
