"""The token MDP: one flat table of the states, actions and successors of a batch."""

import math
from dataclasses import dataclass
from typing import Final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

TERMINAL: Final = -1
"""Successor of the end-of-sequence action: an absorbing state whose value is 0."""

UNKNOWN: Final = -2
"""Successor of the last action of a truncated sequence: some state, but the batch does not hold it."""

IGNORED: Final = -100
"""Label of prompt and padding positions."""


@dataclass(frozen=True)
class Transitions:
    """The N response positions of a batch; prompt and padding never enter.

    State s is the prompt and the response so far, action a the next token. Rows of one sequence are consecutive and in
    order of time.
    """

    action: Int[Tensor, "N"]
    """Token id of the action taken."""
    successor: Int[Tensor, "N"]
    """Row of the successor state s', or ``TERMINAL``, or ``UNKNOWN``."""
    sequence: Int[Tensor, "N"]
    """Index of the sequence in the batch."""
    position: Int[Tensor, "N"]
    """Column of the state in the batch: the token that ends the state's prefix."""
    weight: Float[Tensor, "N"]
    """Weight of the row in the loss."""
    expert: Bool[Tensor, "N"]
    """Whether the action was taken by the expert (the data or the teacher) and not by the student."""
    behaviour: Float[Tensor, "N"]
    """log-probability of the action under the policy that sampled it, in nats; NaN where it isn't known."""

    def __len__(self) -> int:
        return self.action.shape[0]

    @property
    def terminal(self) -> Bool[Tensor, "N"]:
        """Rows whose action ends the sequence."""
        return self.successor == TERMINAL

    @property
    def known(self) -> Bool[Tensor, "N"]:
        """Rows whose successor's value is known: a row of this table, or 0 after the end."""
        return self.successor != UNKNOWN

    def next_value(self, value: Float[Tensor, "N"]) -> Float[Tensor, "N"]:
        """V(s') for each row: ``value[successor]``, 0 where the successor is terminal or unknown."""
        inside = self.successor >= 0
        return torch.where(inside, value[self.successor.clamp(min=0)], value.new_zeros(()))

    @property
    def first(self) -> Bool[Tensor, "N"]:
        """Rows that begin a sequence's response."""
        begins = torch.ones_like(self.terminal)
        begins[1:] = self.sequence[1:] != self.sequence[:-1]
        return begins

    @property
    def time(self) -> Int[Tensor, "N"]:
        """Number of actions that came before each row's, in its sequence."""
        row = torch.arange(len(self), device=self.action.device)
        return row - torch.where(self.first, row, 0).cummax(0).values if len(self) else row


def transitions(
    labels: Int[Tensor, "B T"],
    input_ids: Int[Tensor, "B T"],
    ended: Bool[Tensor, "B"],
    expert: Bool[Tensor, "B"] | None = None,
    behaviour: Float[Tensor, "B T"] | None = None,
) -> Transitions:
    """Build the table from a padded batch.

    Args:
        labels: ``IGNORED`` outside the response; any other value marks a response token. The mask comes from here and
            never from comparing ids with the pad token, which may be the end token too.
        input_ids: the tokens; a response token at column t is the action in the state at column t - 1.
        ended: whether the sequence's last response token is the end-of-sequence action; if not, it was truncated.
        expert: whether the sequence's actions are the expert's; all are if not given.
        behaviour: log-probability of each token under the policy that sampled it; unknown if not given.

    Raises:
        ValueError: a response begins at column 0, so its first action has no state, or has a hole.
    """
    response = labels != IGNORED
    if bool(response[:, 0].any()):
        raise ValueError("A response begins at column 0: its first token has no state. Every prompt needs a token.")
    sequence, column = response.nonzero(as_tuple=True)
    n = sequence.shape[0]
    row = torch.arange(n, device=labels.device)
    last = torch.ones(n, dtype=torch.bool, device=labels.device)
    if n > 1:
        last[:-1] = sequence[1:] != sequence[:-1]
        if bool((~last[:-1] & (column[1:] != column[:-1] + 1)).any()):
            raise ValueError("A response has a hole: its tokens must be consecutive.")
    unknown = torch.full((n,), math.nan, device=labels.device)
    end = torch.where(ended[sequence], TERMINAL, UNKNOWN)
    return Transitions(
        action=input_ids[sequence, column],
        successor=torch.where(last, end, row + 1),
        sequence=sequence,
        position=column - 1,
        weight=torch.ones(n, device=labels.device),
        expert=torch.ones_like(last) if expert is None else expert[sequence],
        behaviour=unknown if behaviour is None else behaviour[sequence, column],
    )
