"""Amari's alpha-divergence."""

from collections.abc import Sequence
from typing import ClassVar

from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from distillzoo.core.divergence import Divergence, relative_entropy


class AlphaDivergence(Divergence):
    """Alpha-divergence, a path from the reverse KL to the forward KL, in every visited state:

        D_alpha(s) = ( 1 - sum_a pi_T(a|s)^alpha pi(a|s)^(1 - alpha) ) / ( alpha (1 - alpha) )

    alpha -> 1 is the forward KL, alpha -> 0 the reverse KL (both are taken there), alpha = 1/2 four times the squared
    Hellinger distance 1/2 sum (sqrt pi_T - sqrt pi)^2. At most 1 / (alpha (1 - alpha)). It is summed as
    alpha pi_T + (1 - alpha) pi - pi_T^alpha pi^(1 - alpha), which no token makes negative. ``tail`` says what becomes
    of the mass outside a subset. ``[N]`` terms in nats a token.

    References:
        Amari 1985; Cichocki and Amari 2010, eq. 3.
    """

    paper: ClassVar[str] = "Amari 1985"

    alpha: float = Field(0.5, ge=0, le=1, description="0 is the reverse KL, 1 the forward KL")

    @classmethod
    def examples(cls) -> Sequence["AlphaDivergence"]:
        return [cls(), cls(tail="renormalise"), cls(alpha=0.9), cls(alpha=0.0), cls(alpha=1.0)]

    def contributions(self, log_p: Float[Tensor, "n K"], log_q: Float[Tensor, "n K"]) -> Float[Tensor, "n K"]:
        if self.alpha == 1.0:
            return relative_entropy(log_p, log_q)
        if self.alpha == 0.0:
            return relative_entropy(log_q, log_p)
        mean = self.alpha * log_p.exp() + (1 - self.alpha) * log_q.exp()
        overlap = (self.alpha * log_p + (1 - self.alpha) * log_q).exp()
        return (mean - overlap) / (self.alpha * (1 - self.alpha))
