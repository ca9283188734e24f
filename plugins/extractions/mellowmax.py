"""The mellowmax operator and its maximum-entropy policy."""

import math
from collections.abc import Sequence
from typing import ClassVar, Final

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor

from distillzoo.core.extraction import Decoding, PolicyExtraction
from distillzoo.core.subset import SubsetQ

HALVINGS: Final = 60
"""Steps of the bisection for beta; each gives one more binary digit."""


class Mellowmax(PolicyExtraction):
    """The mellowmax, a soft maximum that stays between the mean and the maximum and is a non-expansion:

        V(s) = 1/omega log( 1/|A(s)| sum_{a in A(s)} exp(omega Q(s,a)) )
        pi(a|s) = exp(beta Q(s,a)) / sum_{b in A(s)} exp(beta Q(s,b)),  beta(s) such that E_pi[Q(s,.)] = V(s)

    pi is the policy of largest entropy whose expected Q is the value; beta lies between 0 and omega. ``[N]`` values;
    ``[N, M]`` log-probabilities without gradient, for beta is the root of an equation. Decoding is a softmax at the
    temperature 1 / omega.

    References:
        arXiv:1612.05628.
    """

    paper: ClassVar[str] = "arXiv:1612.05628"
    has_logprobs: ClassVar[bool] = False

    omega: float = Field(5.0, gt=0, description="sharpness; the mean at 0, the maximum for ever larger values")

    @classmethod
    def examples(cls) -> Sequence["Mellowmax"]:
        return [cls(), cls(omega=0.5)]

    def value(self, q: SubsetQ) -> Float[Tensor, "N"]:
        count = q.subset.size.clamp(min=1).to(torch.float64).log()
        soft = q.logsumexp(1 / self.omega)
        return (soft - count.to(soft.dtype)) / self.omega

    def log_policy(self, q: SubsetQ, actions: Int[Tensor, "N M"]) -> Float[Tensor, "N M"]:
        with torch.no_grad():
            if q.subset.full:
                beta = q.view.rowwise(self._beta)
                total = q.view.rowwise(lambda logits: (self._beta(logits)[:, None] * _finite(logits)).logsumexp(1))
            else:
                inside = q.values.masked_fill(~q.subset.mask, -math.inf)
                beta = self._beta(inside)
                total = (beta[:, None] * _finite(inside)).logsumexp(1)
            return beta[:, None] * q.view.gather(actions) - total[:, None]

    def decoding(self) -> Decoding:
        return Decoding(temperature=1 / self.omega)

    def _beta(self, logits: Float[Tensor, "n K"]) -> Float[Tensor, "n"]:
        held = logits > -math.inf
        value = ((self.omega * logits).logsumexp(1) - held.sum(1).clamp(min=1).to(logits.dtype).log()) / self.omega
        advantage = torch.where(held, logits - value[:, None], 0.0)
        low, high = torch.zeros_like(value), torch.full_like(value, self.omega)
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            weight = (middle[:, None] * advantage).masked_fill(~held, -math.inf).softmax(1)
            above = (weight * advantage).sum(1) >= 0
            low, high = torch.where(above, low, middle), torch.where(above, middle, high)
        return high


def _finite(logits: Float[Tensor, "n K"]) -> Float[Tensor, "n K"]:
    """-inf replaced by a number that a product with beta = 0 leaves a number, and whose exponential is 0 otherwise."""
    return logits.masked_fill(logits == -math.inf, -1e9)
