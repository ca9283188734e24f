"""The sparse policy of Tsallis entropy at q = 2."""

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor

from distillzoo.core.extraction import Decoding, PolicyExtraction
from distillzoo.core.subset import SubsetQ


class Sparsemax(PolicyExtraction):
    """The Euclidean projection of Q / t onto the simplex, a policy that gives most tokens no probability:

        pi(a|s) = [ Q(s,a) / t - tau(s) ]_+,  tau such that pi sums to 1 on A(s)
        V(s) = max_pi sum_a pi(a|s) Q(s,a) + t/2 ( 1 - sum_a pi(a|s)^2 )

    ``[N]`` values; ``[N, M]`` log-probabilities, -inf outside the support, which give no gradient. No sampler takes
    this policy: decoding is a softmax at the temperature t.

    References:
        arXiv:1602.02068 (sparsemax); arXiv:1709.06293 (its Bellman operator).
    """

    paper: ClassVar[str] = "arXiv:1709.06293"
    has_logprobs: ClassVar[bool] = False
    value_is_potential: ClassVar[bool] = True

    temperature: float = Field(1.0, gt=0, description="t; the policy is sharper below 1")

    @classmethod
    def examples(cls) -> Sequence["Sparsemax"]:
        return [cls(), cls(temperature=0.5)]

    def value(self, q: SubsetQ) -> Float[Tensor, "N"]:
        return q.view.rowwise(self._value) if q.subset.full else self._value(_inside(q))

    def _value(self, logits: Float[Tensor, "n K"]) -> Float[Tensor, "n"]:
        scaled = logits / self.temperature
        pi = (scaled - threshold(scaled)[:, None]).clamp(min=0.0).detach()
        # the policy is optimal, so the value's gradient is the policy itself
        inner = torch.where(pi > 0, pi * logits, 0.0).sum(1)
        return inner + self.temperature / 2 * (1 - pi.square().sum(1))

    def log_policy(self, q: SubsetQ, actions: Int[Tensor, "N M"]) -> Float[Tensor, "N M"]:
        with torch.no_grad():
            if q.subset.full:
                tau = q.view.rowwise(lambda logits: threshold(logits / self.temperature))
            else:
                tau = threshold(_inside(q) / self.temperature)
            return (q.view.gather(actions) / self.temperature - tau[:, None]).clamp(min=0.0).log()

    def decoding(self) -> Decoding:
        return Decoding(temperature=self.temperature)


def _inside(q: SubsetQ) -> Float[Tensor, "N K"]:
    return q.values.masked_fill(~q.subset.mask, -math.inf)


def threshold(scaled: Float[Tensor, "n K"]) -> Float[Tensor, "n"]:
    """tau such that [ z - tau ]_+ sums to 1: (sum of the k largest z, less 1) / k for the k in the support."""
    if not scaled.shape[0]:
        return scaled.sum(1)
    top = scaled.amax(1, keepdim=True)
    z = (scaled - top).sort(dim=1, descending=True).values.clamp(min=-2.0)  # what lies 1 below the top is out
    k = torch.arange(1, z.shape[1] + 1, device=z.device)
    total = z.cumsum(1)
    held = (1 + k * z > total).sum(1, keepdim=True).clamp(min=1)
    return ((total.gather(1, held - 1) - 1) / held + top)[:, 0]
