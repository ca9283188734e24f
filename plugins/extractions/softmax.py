"""The policy over the whole vocabulary."""

from collections.abc import Sequence
from typing import ClassVar

from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor

from distillzoo.core.extraction import Decoding, PolicyExtraction
from distillzoo.core.subset import SubsetQ


class Softmax(PolicyExtraction):
    """The soft-optimal policy over all tokens, whatever the subset:

        pi(a|s) = exp(Q(s,a) / t) / sum_{b in V} exp(Q(s,b) / t),    V(s) = t log sum_{b in V} exp(Q(s,b) / t)

    with t the temperature. ``[N]`` values and ``[N, M]`` log-probabilities, in nats. One reduction over the vocabulary.

    References:
        arXiv:1702.08165, eq. 2 and 3.
    """

    on_subset: ClassVar[bool] = False
    value_is_potential: ClassVar[bool] = True

    temperature: float = Field(1.0, gt=0, description="t; the policy is sharper below 1")

    @classmethod
    def examples(cls) -> Sequence["Softmax"]:
        return [cls(), cls(temperature=0.5)]

    def value(self, q: SubsetQ) -> Float[Tensor, "N"]:
        return self.temperature * q.view.tempered_logsumexp(self.temperature)

    def log_policy(self, q: SubsetQ, actions: Int[Tensor, "N M"]) -> Float[Tensor, "N M"]:
        return q.view.gather(actions) / self.temperature - q.view.tempered_logsumexp(self.temperature)[:, None]

    def decoding(self) -> Decoding:
        return Decoding(temperature=self.temperature)
