"""The projected policy with a floor under every probability."""

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor

from distillzoo.core.extraction import Decoding, PolicyExtraction
from distillzoo.core.subset import SubsetQ


class EpsilonSmoothed(PolicyExtraction):
    """The softmax on the subset with epsilon added to every probability, and the value of that policy:

        pi(a|s) = ( exp Q(s,a) / sum_{b in A(s)} exp Q(s,b) + epsilon ) / ( 1 + epsilon |A(s)| )
        V(s) = sum_{a in A(s)} pi(a|s) ( Q(s,a) - log pi(a|s) )

    The floor keeps log pi finite. V is at most the soft value, which it reaches at epsilon = 0. ``[N]`` values and
    ``[N, M]`` log-probabilities, in nats. Decoding is a softmax over all tokens.

    Differs from the released program, which clips Q first, normalises the softmax over all tokens cut to A(s) and
    gives epsilon to every token of the vocabulary: the objective ``iql-released`` does exactly that.

    References:
        The program released with arXiv:2505.20335, whose value of epsilon is not in the release.
    """

    paper: ClassVar[str] = "arXiv:2505.20335, released program"

    epsilon: float = Field(1e-6, ge=0, description="added to every probability before normalising")

    @classmethod
    def examples(cls) -> Sequence["EpsilonSmoothed"]:
        return [cls(), cls(epsilon=0.1), cls(epsilon=0.0)]

    def value(self, q: SubsetQ) -> Float[Tensor, "N"]:
        if q.subset.full:
            return q.view.rowwise(self._value)
        return self._value(q.values.masked_fill(~q.subset.mask, -math.inf))

    def _value(self, logits: Float[Tensor, "n K"]) -> Float[Tensor, "n"]:
        held = logits > -math.inf
        pi = self._policy(logits - logits.logsumexp(1, keepdim=True), held.sum(1))
        surprise = torch.where(held & (pi > 0), -torch.where(pi > 0, pi, 1.0).log(), 0.0)
        return torch.where(held, pi * (logits.masked_fill(~held, 0.0) + surprise), 0.0).sum(1)

    def log_policy(self, q: SubsetQ, actions: Int[Tensor, "N M"]) -> Float[Tensor, "N M"]:
        log_soft = q.view.gather(actions) - q.logsumexp()[:, None]
        if self.epsilon == 0.0:
            return log_soft
        return self._policy(log_soft, q.subset.size).log()

    def _policy(self, log_soft: Float[Tensor, "n K"], size: Int[Tensor, "n"]) -> Float[Tensor, "n K"]:
        return (log_soft.exp() + self.epsilon) / (1 + self.epsilon * size[:, None].to(log_soft.dtype))

    def decoding(self) -> Decoding:
        return Decoding()
