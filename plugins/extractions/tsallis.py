"""Policies of Tsallis entropy, from the softmax to the sparsemax."""

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
"""Steps of the bisection for the threshold; each gives one more binary digit."""


class Tsallis(PolicyExtraction):
    """The policy that maximises expected Q and t times the Tsallis entropy S_q:

        V(s) = max_pi sum_a pi(a|s) Q(s,a) + t S_q(pi),    S_q(pi) = ( 1 - sum_a pi(a|s)^q ) / ( q (q - 1) )
        pi(a|s) = [ (q - 1) Q(s,a) / t - tau(s) ]_+ ^ (1 / (q - 1)),  tau such that pi sums to 1 on A(s)

    q -> 1 is the softmax and q = 2 the sparsemax; in between the support shrinks as q grows. ``[N]`` values; ``[N, M]``
    log-probabilities, -inf outside the support, which give no gradient. No sampler takes this policy: decoding is a
    softmax at the temperature t.

    References:
        arXiv:1905.05702 (entmax, with alpha for q); arXiv:1802.03501 (Tsallis MDPs).
    """

    paper: ClassVar[str] = "arXiv:1802.03501"
    has_logprobs: ClassVar[bool] = False
    value_is_potential: ClassVar[bool] = True

    q: float = Field(1.5, gt=1, le=2, description="entropic index; 2 is the sparsemax")
    temperature: float = Field(1.0, gt=0, description="t; the policy is sharper below 1")

    @classmethod
    def examples(cls) -> Sequence["Tsallis"]:
        return [cls(), cls(q=1.2, temperature=0.5), cls(q=2.0)]

    def value(self, q: SubsetQ) -> Float[Tensor, "N"]:
        return q.view.rowwise(self._value) if q.subset.full else self._value(_inside(q))

    def _value(self, logits: Float[Tensor, "n K"]) -> Float[Tensor, "n"]:
        pi = self._policy(logits, self._threshold(logits)).detach()
        # the policy is optimal, so the value's gradient is the policy itself
        inner = torch.where(pi > 0, pi * logits, 0.0).sum(1)
        return inner + self.temperature * (1 - pi.pow(self.q).sum(1)) / (self.q * (self.q - 1))

    def log_policy(self, q: SubsetQ, actions: Int[Tensor, "N M"]) -> Float[Tensor, "N M"]:
        with torch.no_grad():
            tau = q.view.rowwise(self._threshold) if q.subset.full else self._threshold(_inside(q))
            return self._policy(q.view.gather(actions), tau).log()

    def decoding(self) -> Decoding:
        return Decoding(temperature=self.temperature)

    def _policy(self, logits: Float[Tensor, "n K"], tau: Float[Tensor, "n"]) -> Float[Tensor, "n K"]:
        scaled = (self.q - 1) * logits / self.temperature - tau[:, None]
        return scaled.clamp(min=0.0).pow(1 / (self.q - 1))

    @torch.no_grad()
    def _threshold(self, logits: Float[Tensor, "n K"]) -> Float[Tensor, "n"]:
        """tau, by bisection between 1 below the largest scaled Q, where pi sums to 1 or more, and the largest."""
        if not logits.shape[0]:
            return logits.sum(1)
        high = ((self.q - 1) / self.temperature * logits).amax(1)
        low = high - 1
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            enough = self._policy(logits, middle).sum(1) >= 1
            low, high = torch.where(enough, middle, low), torch.where(enough, high, middle)
        return low


def _inside(q: SubsetQ) -> Float[Tensor, "N K"]:
    return q.values.masked_fill(~q.subset.mask, -math.inf)
