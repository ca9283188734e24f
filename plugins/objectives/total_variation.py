"""Total variation distance."""

from typing import ClassVar, Final

import torch
from jaxtyping import Float
from torch import Tensor

from distillzoo.core.divergence import Divergence

ROUNDING: Final = 64
"""Units in the last place of 1 within which two probabilities count as equal."""


class TotalVariation(Divergence):
    """Total variation distance, in every visited state:

        TV(pi_T, pi)(s) = 1/2 sum_a | pi_T(a|s) - pi(a|s) |

    Between 0 and 1, the largest difference of any event's probability. Its gradient vanishes where the student is
    sure of a wrong token, and it has a kink where the two agree: differences within rounding count as none. ``tail``
    says what becomes of the mass outside a subset. ``[N]`` terms, without a unit.

    References:
        arXiv:2307.15190 (f-distillation).
    """

    paper: ClassVar[str] = "arXiv:2307.15190"

    def contributions(self, log_p: Float[Tensor, "n K"], log_q: Float[Tensor, "n K"]) -> Float[Tensor, "n K"]:
        difference = log_p.exp() - log_q.exp()
        noise = ROUNDING * torch.finfo(difference.dtype).eps
        return torch.where(difference.abs() <= noise, 0.0, difference).abs() / 2
