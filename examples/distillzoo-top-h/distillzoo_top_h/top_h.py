"""The subset top-h: the entropy-bounded set of top-H decoding."""

from collections.abc import Sequence
from typing import ClassVar, Final

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from distillzoo.core.logits import LogitView
from distillzoo.core.prefixes import entropy, prefixes
from distillzoo.core.subset import ActionSubset, Subset

ROUNDING: Final = 16
"""Units in the last place that an entropy may be off, so that 27 equal tokens of 3^10 fit 0.3 of the whole."""


class TopH(ActionSubset):
    """The largest set of tokens, in order of teacher probability, whose entropy stays within a share of the teacher's.

    With pi_T the teacher's distribution and H its entropy, a_1, a_2, ... the tokens in falling order of pi_T(. | s),
    the lower id first among equals, and q_m the teacher renormalised on the first m of them,

        A_alpha(s) = {a_1, ..., a_n},  n = max { m : H(q_m) <= alpha H(pi_T(. | s)) }.

    A state where the teacher is sure gets few tokens, a flat one many: floor(M^alpha) of M equal ones. H(q_1) = 0, so
    no set is empty. H(q_m) grows with m, for q_m majorises q_{m+1}; so the first token that breaks the bound ends the
    set, and no later one could join. At alpha = 1 it is the whole support of the teacher. ``k_max`` cuts the largest
    sets. Returns tables ``[N, K]`` with K the largest set.

    H over the vocabulary is one reduction in chunks; only the likeliest tokens are sorted. Both entropies are computed
    from the weights w_i = pi_T(a_i | s) / pi_T(a_1 | s),

        H(q_m) = log(1 + W) + U / (1 + W),  W = sum_{1 < i <= m} w_i,  U = -sum_{1 < i <= m} w_i log w_i,

    sums of positive numbers, so that float32 keeps its relative precision on the sharpest states too.

    Differs from the paper:
        1. alpha = 1 is allowed; the paper has 0 < alpha < 1.
        2. Weights that the data type rounds to 0 are left out below alpha = 1: they add nothing to either entropy.
        3. The authors' code, and ``TopHLogitsWarper`` in transformers, look at the 100 likeliest tokens and bound the
           partial sum -sum_{i <= m} p_i log p_i, which isn't the entropy of q_m. Here it is the paper's Algorithm 1.

    References:
        arXiv:2509.02510: Algorithm 1, theorem 3 (H(q_m) grows), alpha = 0.4 from section 4.2.
    """

    paper: ClassVar[str] = "arXiv:2509.02510"

    alpha: float = Field(0.4, gt=0, le=1, description="share of the teacher's entropy that a set may have")
    k_max: int | None = Field(None, ge=1, description="largest set; null for no limit")

    @classmethod
    def examples(cls) -> Sequence["TopH"]:
        return [cls(), cls(alpha=0.8), cls(alpha=1.0), cls(alpha=0.95, k_max=2), cls(include_action=True)]

    @classmethod
    def growing(cls) -> Sequence["TopH"]:
        return [cls(alpha=alpha) for alpha in (0.1, 0.4, 0.7, 0.9, 0.99, 1.0)]

    @torch.no_grad()
    def select(self, teacher: LogitView) -> Subset:
        reach = self.alpha * teacher.rowwise(entropy)
        reach *= 1 + ROUNDING * torch.finfo(reach.dtype).eps

        def keep(logprobs: Tensor, rows: Tensor) -> Tensor:
            if self.alpha == 1.0:  # an entropy of floats may be reached before the last token with a probability
                return torch.ones_like(logprobs, dtype=torch.bool)
            relative = logprobs - logprobs[:, :1]
            weight = relative.exp()
            weight[:, 0] = 0.0  # the likeliest token's 1 would cost the digits of the others
            grown = _entropies(weight, relative)
            return (grown.cummax(1).values <= reach[rows, None]) & (weight > 0)  # it grows but for rounding

        return prefixes(teacher, keep, self.k_max)


def _entropies(weight: Float[Tensor, "M k"], log_weight: Float[Tensor, "M k"]) -> Float[Tensor, "M k"]:
    """H(q_m) of every prefix from the weights w_i, the likeliest token's left out."""
    rest = weight.cumsum(1)
    terms = torch.where(weight > 0, -weight * log_weight, 0.0).cumsum(1)
    return rest.log1p() + terms / (1 + rest)
