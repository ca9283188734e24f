"""Abstract actions: the tokens a state that an objective works on."""

from abc import abstractmethod
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor

from distillzoo.core.errors import UserError
from distillzoo.core.logits import LogitView
from distillzoo.core.part import Part


class Subset:
    """A set of tokens A(s) for each of N states, as tables padded to the largest set.

    Attributes:
        actions: ``[N, K]`` token ids, sorted by falling teacher probability, the lower id first among equals.
        mask: ``[N, K]``, true where ``actions`` holds a token of the set; never empty in a row.
        logprobs: ``[N, K]`` teacher's log-probabilities over the whole vocabulary, in nats; 0 where masked.
        mass: ``[N]`` teacher probability of the set.
        added: ``[N]``, where the taken action was added because the set missed it; none if nothing was.
        full: whether every set is the whole vocabulary, so that a reduction over the set is one over the vocabulary.
        weights: ``[N, K]`` importance weights of a set that is drawn at random, 0 where masked; none for other sets.

    With weights w, the sum over the listed tokens a of w(a) f(a) has the sum of f over the vocabulary as its mean over
    the draws, for every f that is 0 where the teacher gives no probability. A token that is listed in every draw has
    the weight 1. Only an objective that ``counts_weights`` works on such a subset. ``mass``, ``size`` and all of
    ``SubsetQ`` are about the listed tokens as they are.
    """

    full: bool = False
    added: Bool[Tensor, "N"] | None = None
    weights: Float[Tensor, "N K"] | None = None

    def __init__(
        self,
        actions: Int[Tensor, "N K"],
        mask: Bool[Tensor, "N K"],
        logprobs: Float[Tensor, "N K"],
        mass: Float[Tensor, "N"],
        added: Bool[Tensor, "N"] | None = None,
        weights: Float[Tensor, "N K"] | None = None,
    ) -> None:
        self._actions, self._mask, self._logprobs, self._mass = actions, mask, logprobs, mass
        self.added, self.weights = added, weights

    @property
    def actions(self) -> Int[Tensor, "N K"]:
        return self._actions

    @property
    def mask(self) -> Bool[Tensor, "N K"]:
        return self._mask

    @property
    def logprobs(self) -> Float[Tensor, "N K"]:
        return self._logprobs

    @property
    def mass(self) -> Float[Tensor, "N"]:
        return self._mass

    @property
    def size(self) -> Int[Tensor, "N"]:
        """Number of tokens in each set."""
        return self.mask.sum(1)

    def contains(self, action: Int[Tensor, "N"]) -> Bool[Tensor, "N"]:
        """Whether each state's set holds the given action."""
        return ((self.actions == action[:, None]) & self.mask).any(1)


def listed(
    actions: Int[Tensor, "N L"],
    mask: Bool[Tensor, "N L"],
    logprobs: Float[Tensor, "N L"],
    weights: Float[Tensor, "N L"] | None = None,
) -> Subset:
    """The subset of tokens that are listed in any order, some of them more than once.

    Args:
        actions: ``[N, L]`` token ids.
        mask: ``[N, L]``, true where ``actions`` lists a token.
        logprobs: ``[N, L]`` teacher's log-probabilities over the whole vocabulary.
        weights: ``[N, L]`` importance weights, if any.

    Returns:
        Tables ``[N, K]``, sorted and padded to the largest set. Of a token that is listed twice the first entry counts,
        also with its weight.
    """
    by_id = actions.masked_fill(~mask, torch.iinfo(actions.dtype).max).sort(dim=1, stable=True)
    first = torch.ones_like(mask)
    first[:, 1:] = by_id.values[:, 1:] != by_id.values[:, :-1]
    held = mask.gather(1, by_id.indices) & first
    order = logprobs.gather(1, by_id.indices).sort(dim=1, descending=True, stable=True).indices
    order = order.gather(1, (~held.gather(1, order)).to(torch.int8).sort(dim=1, stable=True).indices)
    order = order[:, : int(held.sum(1).max()) if len(held) else 0]
    mask, order = held.gather(1, order), by_id.indices.gather(1, order)
    actions, logprobs = actions.gather(1, order).where(mask, 0), logprobs.gather(1, order).where(mask, 0.0)
    if weights is not None:
        weights = weights.gather(1, order).where(mask, 0.0)
    mass = torch.where(mask, logprobs.exp(), 0.0).sum(1).clamp(max=1.0)
    return Subset(actions, mask, logprobs, mass, weights=weights)


class WholeVocabulary(Subset):
    """The set of all tokens. Its tables exist only when asked for, its log-probabilities only with a teacher."""

    full = True

    def __init__(self, view: LogitView, teacher: LogitView | None = None) -> None:
        self._view, self.teacher = view, teacher

    @property
    def actions(self) -> Int[Tensor, "N V"]:
        return torch.arange(self._view.size, device=self._view.device).expand(self._view.rows, -1)

    @property
    def mask(self) -> Bool[Tensor, "N V"]:
        held = torch.ones(self._view.size, dtype=torch.bool, device=self._view.device)
        if self._view.holes is not None:
            held[self._view.holes] = False
        return held.expand(self._view.rows, -1)

    @property
    def logprobs(self) -> Float[Tensor, "N V"]:
        if self.teacher is None:
            raise UserError(
                "The objective reads the teacher's log-probabilities of the whole vocabulary but does not declare it: "
                "return True from needs_teacher_view for a subset whose needs_teacher is false."
            )
        logprobs = self.teacher.block(torch.arange(self._view.rows, device=self._view.device)).log_softmax(1)
        return logprobs.where(self.mask, 0.0)

    @property
    def mass(self) -> Float[Tensor, "N"]:
        return torch.ones(self._view.rows, device=self._view.device)

    @property
    def size(self) -> Int[Tensor, "N"]:
        return torch.full((self._view.rows,), self._view.tokens, device=self._view.device)

    def contains(self, action: Int[Tensor, "N"]) -> Bool[Tensor, "N"]:
        return self.mask[0, action] if self._view.rows else action < 0


class SubsetQ:
    """Q on a subset: the student's logits restricted to A(s), computed when asked and kept.

    On a whole vocabulary the reductions go through the view's own and no table is built.
    """

    def __init__(self, view: LogitView, subset: Subset) -> None:
        self.view, self.subset = view, subset
        self._values: Tensor | None = None

    @property
    def values(self) -> Float[Tensor, "N K"]:
        """z(s, a) for the actions of the set; 0 where masked."""
        if self._values is None:
            self._values = self.view.gather(self.subset.actions, self.subset.mask)
        return self._values

    def logsumexp(self, temperature: float = 1.0) -> Float[Tensor, "N"]:
        """log of the sum over A(s) of exp(z(s, a) / temperature)."""
        if self.subset.full:
            return self.view.tempered_logsumexp(temperature)
        return (self.values / temperature).masked_fill(~self.subset.mask, float("-inf")).logsumexp(1)

    def max(self) -> Float[Tensor, "N"]:
        """max over A(s) of z(s, a)."""
        if self.subset.full:
            return self.view.max()
        if not self.view.rows:  # a table without rows may have no columns either
            return self.values.sum(1)
        return self.values.masked_fill(~self.subset.mask, float("-inf")).amax(1)


class ActionSubset(Part):
    """Base of the subsets: which tokens of a state are actions.

    A subset implements ``select``, which sees the teacher's logits only and works row by row. One that looks at the
    student's too says so by ``needs_student`` and implements ``choose``; it must not depend on their gradient. One
    that draws tokens at random, with torch's generator, says so by ``draws``. Where its sums are to stand for those
    over the vocabulary it is ``weighted`` and gives ``Subset.weights``.
    """

    @property
    def needs_teacher(self) -> bool:
        """Whether ``select`` reads the teacher. One that doesn't is the whole vocabulary: an objective that needs no
        teacher either trains without one."""
        return True

    @property
    def needs_student(self) -> bool:
        """Whether the student's logits count too, so that ``choose`` is to be asked instead of ``select``."""
        return False

    @property
    def draws(self) -> bool:
        """Whether the sets are drawn at random, so that the same states may get others in the next call."""
        return False

    @property
    def weighted(self) -> bool:
        """Whether the sets come with importance weights."""
        return False

    include_action: bool = Field(False, description="add the taken action where the set misses it")

    @classmethod
    def growing(cls) -> Sequence["ActionSubset"]:
        """Instances from small to large: every set lies in the next one's, and the last one's is all that the teacher
        gives a probability. Empty where no parameter grows the sets like that."""
        return []

    @abstractmethod
    def select(self, teacher: LogitView) -> Subset:
        """The set of each state.

        Returns:
            Sets that are never empty, sorted by teacher probability, without repeats and with their mass. ``prefixes``
            and ``listed`` make such tables.
        """

    def choose(self, teacher: LogitView, student: LogitView) -> Subset:
        """The set of each state where the student's logits count too; a subset that ``needs_student`` overrides it."""
        return self.select(teacher)

    def with_action(self, subset: Subset, teacher: LogitView, action: Int[Tensor, "N"]) -> Subset:
        """The subset with the taken action where it is missing, if ``include_action`` asks for it.

        With it, the taken action is listed whatever was drawn, so in a set with weights its weight is 1, also where it
        was among the draws: sums over the set stay unbiased.
        """
        if not self.include_action or subset.full:
            return subset
        missing = ~subset.contains(action)
        logprob = (teacher.select(action) - teacher.logsumexp()).detach()
        weights = subset.weights
        if weights is not None:
            weights = torch.where(subset.actions == action[:, None], subset.mask.to(weights.dtype), weights)
            weights = torch.cat([weights, torch.ones_like(weights[:, :1])], 1)
        grown = listed(
            torch.cat([subset.actions, action[:, None]], 1),
            torch.cat([subset.mask, missing[:, None]], 1),
            torch.cat([subset.logprobs, logprob[:, None]], 1),
            weights,
        )
        grown.added = missing
        return grown
