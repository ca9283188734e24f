"""What is done to the logits while sampling: a teacher mixed in, the nucleus, and the record of what was picked."""

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor

from distillzoo.core.logits import DenseLogits
from distillzoo.core.models import Backbone
from distillzoo.core.prefixes import prefixes, reaching


@dataclass(frozen=True)
class Mixture:
    """A teacher, and its share in each token's probability: share * pi_T + (1 - share) * pi."""

    teacher: Backbone
    share: float


@dataclass(eq=False)  # generate() compares its processors
class Mixing(LogitsProcessor):
    """Mixes the teacher's distribution into the sampled model's, token by token; the teacher has a cache of its own.

    Attributes:
        mixture: the teacher and its share.
        mask: attention mask of the left-padded prompts.
    """

    mixture: Mixture
    mask: Tensor
    _cache: Any = field(default=None, init=False)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """``[B, V']`` scores to the log of the mixture."""
        share, own = self.mixture.share, scores.float().log_softmax(1)
        if share == 0.0:
            return own
        teacher = self._teacher(input_ids)
        width = min(teacher.shape[1], own.shape[1], self.mixture.teacher.vocabulary.size)
        theirs = torch.full_like(own, -math.inf)
        theirs[:, :width] = teacher[:, :width].float().log_softmax(1)
        if share == 1.0:
            return theirs
        return torch.logaddexp(theirs + math.log(share), own + math.log1p(-share))

    def _teacher(self, input_ids: Tensor) -> Tensor:
        backbone = self.mixture.teacher
        grown = input_ids.shape[1] - self.mask.shape[1]
        mask = torch.cat([self.mask, self.mask.new_ones(len(self.mask), grown)], 1)
        new = input_ids if self._cache is None else input_ids[:, -1:]
        inputs = {**backbone.inputs(new, mask), "use_cache": True}
        if "logits_to_keep" in backbone.arguments:
            inputs["logits_to_keep"] = 1
        out = backbone.model(**inputs, past_key_values=self._cache)
        self._cache = out.past_key_values
        logits: Tensor = out.logits[:, -1]
        if backbone.vocabulary.holes is not None:
            logits = logits.index_fill(1, backbone.vocabulary.holes.to(logits.device), -math.inf)
        return logits


@dataclass(eq=False)
class Nucleus(LogitsProcessor):
    """Keeps each row's likeliest tokens up to the mass ``p``, found without sorting the vocabulary."""

    p: float

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """``[B, V']`` scores to the same with -inf at the tokens after the nucleus."""
        nucleus = prefixes(DenseLogits(scores), lambda logprobs, _: reaching(logprobs, self.p))
        rows, columns = nucleus.mask.nonzero(as_tuple=True)
        actions = nucleus.actions[rows, columns]
        cut = torch.full_like(scores, -math.inf)
        cut[rows, actions] = scores[rows, actions]
        return cut


@dataclass(eq=False)
class Recording(LogitsProcessor):
    """Notes the log-probability of each picked token, ``[B]`` a step, without keeping the scores of all steps."""

    picked: list[Tensor] = field(default_factory=list)
    _last: Tensor | None = field(default=None, init=False)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Leave the scores as they are."""
        if self._last is not None:
            self.note(input_ids[:, -1])
        self._last = scores
        return scores

    def note(self, tokens: Tensor) -> None:
        """The tokens picked in the last step, ``[B]``."""
        assert self._last is not None, "nothing was sampled yet"
        self.picked.append(self._last.gather(1, tokens[:, None])[:, 0] - self._last.logsumexp(1))
