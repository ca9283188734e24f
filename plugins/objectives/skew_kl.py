"""KL(teacher || mixture of teacher and student)."""

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from distillzoo.core.divergence import Divergence, relative_entropy


class SkewKL(Divergence):
    """Skew KL divergence, in every visited state:

        SKL_alpha(s) = KL(pi_T || alpha pi_T + (1 - alpha) pi)(s)

    At alpha = 0 it is the forward KL. It never exceeds -log alpha, so a token that the student gives no probability
    pulls with a bounded gradient. ``tail`` says what becomes of the mass outside a subset. ``[N]`` terms in nats a
    token.

    References:
        arXiv:2402.03898, eq. 3 (DistiLLM), alpha = 0.1.
    """

    paper: ClassVar[str] = "arXiv:2402.03898"

    alpha: float = Field(0.1, ge=0, lt=1, description="weight of the teacher in the mixture; 0 is the forward KL")

    @classmethod
    def examples(cls) -> Sequence["SkewKL"]:
        return [cls(), cls(tail="renormalise"), cls(alpha=0.0)]

    def contributions(self, log_p: Float[Tensor, "n K"], log_q: Float[Tensor, "n K"]) -> Float[Tensor, "n K"]:
        log_m = log_q
        if self.alpha > 0.0:
            log_m = torch.logaddexp(log_p + math.log(self.alpha), log_q + math.log1p(-self.alpha))
        return relative_entropy(log_p, log_m)
