"""The generalised Jensen-Shannon divergence."""

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from distillzoo.core.divergence import Divergence, relative_entropy


class JSD(Divergence):
    """Generalised Jensen-Shannon divergence, beta the teacher's weight, in every visited state:

        JSD_beta(s) = beta KL(pi_T || m)(s) + (1 - beta) KL(pi || m)(s),    m = beta pi_T + (1 - beta) pi

    At beta = 0 it is the forward KL and at beta = 1 the reverse KL, as in the paper's code: the limits of JSD / beta
    and JSD / (1 - beta). The formula itself goes to 0 there, so near its ends beta is a factor on the learning rate,
    and the ends are jumps. ``tail`` says what becomes of the mass outside a subset. ``[N]`` terms in nats a token, at
    most -beta log beta - (1 - beta) log(1 - beta).

    References:
        arXiv:2306.13649, eq. 1 (GKD). Others put beta on the student.
    """

    paper: ClassVar[str] = "arXiv:2306.13649"

    beta: float = Field(0.5, ge=0, le=1, description="weight of the teacher; 0 is the forward KL, 1 the reverse KL")

    @classmethod
    def examples(cls) -> Sequence["JSD"]:
        return [cls(), cls(beta=0.1, tail="renormalise"), cls(beta=0.0), cls(beta=1.0)]

    def contributions(self, log_p: Float[Tensor, "n K"], log_q: Float[Tensor, "n K"]) -> Float[Tensor, "n K"]:
        if self.beta == 0.0:
            return relative_entropy(log_p, log_q)
        if self.beta == 1.0:
            return relative_entropy(log_q, log_p)
        log_m = torch.logaddexp(log_p + math.log(self.beta), log_q + math.log1p(-self.beta))
        return self.beta * relative_entropy(log_p, log_m) + (1 - self.beta) * relative_entropy(log_q, log_m)
