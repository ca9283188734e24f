"""KL(student || mixture of student and teacher)."""

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from distillzoo.core.divergence import Divergence, relative_entropy


class SkewReverseKL(Divergence):
    """Skew reverse KL divergence, in every visited state:

        SRKL_alpha(s) = KL(pi || (1 - alpha) pi_T + alpha pi)(s)

    At alpha = 0 it is the reverse KL. It never exceeds -log alpha. ``tail`` says what becomes of the mass outside a
    subset. ``[N]`` terms in nats a token.

    References:
        arXiv:2402.03898 (DistiLLM), alpha = 0.1.
    """

    paper: ClassVar[str] = "arXiv:2402.03898"

    alpha: float = Field(0.1, ge=0, lt=1, description="weight of the student in the mixture; 0 is the reverse KL")

    @classmethod
    def examples(cls) -> Sequence["SkewReverseKL"]:
        return [cls(), cls(tail="renormalise"), cls(alpha=0.0)]

    def contributions(self, log_p: Float[Tensor, "n K"], log_q: Float[Tensor, "n K"]) -> Float[Tensor, "n K"]:
        log_m = log_p
        if self.alpha > 0.0:
            log_m = torch.logaddexp(log_q + math.log(self.alpha), log_p + math.log1p(-self.alpha))
        return relative_entropy(log_q, log_m)
