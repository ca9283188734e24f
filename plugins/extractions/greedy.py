"""The likeliest action."""

from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from distillzoo.core.extraction import Decoding, PolicyExtraction
from distillzoo.core.subset import SubsetQ


class Greedy(PolicyExtraction):
    """The limit of zero temperature:

        pi(a|s) = 1 for a = argmax_{b in A(s)} Q(s,b),    V(s) = max_{b in A(s)} Q(s,b)

    so a TD objective becomes hard Q-learning. ``[N]`` values in nats, ``[N, M]`` log-probabilities 0 or -inf, which
    give no gradient: objectives that train through log-probabilities refuse it. Decoding takes the likeliest token.

    References:
        Watkins and Dayan 1992, Q-learning.
    """

    has_logprobs: ClassVar[bool] = False
    value_is_potential: ClassVar[bool] = True

    def value(self, q: SubsetQ) -> Float[Tensor, "N"]:
        return q.max()

    def log_policy(self, q: SubsetQ, actions: Int[Tensor, "N M"]) -> Float[Tensor, "N M"]:
        values = q.view.gather(actions).detach()
        return torch.zeros_like(values).masked_fill(values < q.max().detach()[:, None], float("-inf"))

    def decoding(self) -> Decoding:
        return Decoding(temperature=0.0)
