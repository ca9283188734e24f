"""Entropy-regularised MDPs in tables, solved in float64 without the program's own losses."""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

Table = NDArray[np.float64]
Mask = NDArray[np.bool_]

CONVERGED: Final = 1e-13
"""Largest change of Q, relative to its size, at which an iteration stops."""


@dataclass(frozen=True)
class MDP:
    """A finite MDP with entropy-regularised (soft) values.

    Attributes:
        reward: ``[S, A]``, r(s,a) in nats.
        transition: ``[S, A, S]``, probabilities of s'; a row of zeros is an end, whose value is 0.
        gamma: discount.
    """

    reward: Table
    transition: Table
    gamma: float

    def backup(self, value: Table) -> Table:
        """r(s,a) + gamma E V(s'), ``[S, A]``."""
        return self.reward + self.gamma * self.transition @ value


def random_mdp(states: int, actions: int, gamma: float, seed: int) -> MDP:
    """Random rewards, and transitions to three random states from every pair."""
    draw = np.random.default_rng(seed)
    transition = np.zeros((states, actions, states))
    for s in range(states):
        for a in range(actions):
            transition[s, a, draw.choice(states, 3, replace=False)] = draw.dirichlet(np.ones(3))
    return MDP(draw.normal(scale=2.0, size=(states, actions)), transition, gamma)


def token_tree(depth: int, tokens: int, gamma: float, seed: int) -> MDP:
    """The token MDP of all answers of up to ``depth`` tokens: action 0 ends an answer, the others go on."""
    draw = np.random.default_rng(seed)
    prefixes: list[tuple[int, ...]] = [()]
    for prefix in prefixes:
        if len(prefix) < depth - 1:
            prefixes += [(*prefix, token) for token in range(1, tokens)]
    index = {prefix: i for i, prefix in enumerate(prefixes)}
    transition = np.zeros((len(prefixes), tokens, len(prefixes)))
    for prefix, s in index.items():
        for token in range(1, tokens):
            if (*prefix, token) in index:
                transition[s, token, index[(*prefix, token)]] = 1.0
    return MDP(draw.normal(scale=2.0, size=(len(prefixes), tokens)), transition, gamma)


def soft_value(q: Table, allowed: Mask) -> Table:
    """V(s) = log sum over A(s) of exp Q(s,a), ``[S]``."""
    inside = np.where(allowed, q, -np.inf)
    top = inside.max(1)
    value: Table = top + np.log(np.exp(inside - top[:, None]).sum(1))
    return value


def solve(mdp: MDP, allowed: Mask | None = None) -> Table:
    """The fixed point of Q = r + gamma E V(s') with V over the allowed actions, ``[S, A]``; all if none are given."""
    held = np.ones_like(mdp.reward, dtype=bool) if allowed is None else allowed
    q = np.zeros_like(mdp.reward)
    while True:
        after = mdp.backup(soft_value(q, held))
        if np.abs(after - q).max() <= CONVERGED * (1 + np.abs(after).max()):
            return after
        q = after


def policy(q: Table, allowed: Mask | None = None) -> Table:
    """exp(Q - V) on the allowed actions, ``[S, A]``."""
    held = np.ones_like(q, dtype=bool) if allowed is None else allowed
    return np.where(held, np.exp(q - soft_value(q, held)[:, None]), 0.0)


def nucleus(pi: Table, p: float) -> Mask:
    """The top-p set of each state, ``[S, A]``."""
    order = np.argsort(-pi, axis=1, kind="stable")
    ranked = np.take_along_axis(pi, order, 1)
    before = ranked.cumsum(1) - ranked
    kept = before < p * (1 - 1e-12)
    mask = np.zeros_like(kept)
    np.put_along_axis(mask, order, kept, 1)
    return mask


def projected(pi: Table, allowed: Mask) -> Table:
    """The policy renormalised on the allowed actions."""
    inside = np.where(allowed, pi, 0.0)
    result: Table = inside / inside.sum(1, keepdims=True)
    return result


def evaluate(mdp: MDP, pi: Table) -> Table:
    """Q of a fixed policy, entropy included: V = E_pi[Q - log pi], by one linear system, ``[S, A]``."""
    surprise = np.where(pi > 0, -np.log(np.where(pi > 0, pi, 1.0)), 0.0)
    reward = (pi * (mdp.reward + surprise)).sum(1)
    moves = np.einsum("sa,sat->st", pi, mdp.transition)
    value = np.linalg.solve(np.eye(len(reward)) - mdp.gamma * moves, reward)
    return mdp.backup(value)


def kappa(p: float, gamma: float) -> float:
    """The paper's bound on the loss by a top-p subset: -gamma / (1 - gamma) log p."""
    return -gamma / (1 - gamma) * float(np.log(p))


@dataclass(frozen=True)
class Gap:
    """Distances from the optimal Q on the top-p sets, in nats."""

    reduced: float
    """max over A_p of Q* - Q_p*, the optimum of the reduced problem."""
    projected: float
    """max over A_p of Q* - Q of the projected optimal policy."""
    bound: float
    """kappa(p)."""


def gap(mdp: MDP, p: float) -> Gap:
    """How much a top-p subset of the optimal policy costs, and the bound on it."""
    best = solve(mdp)
    allowed = nucleus(policy(best), p)
    reduced = solve(mdp, allowed)
    fixed = evaluate(mdp, projected(policy(best), allowed))
    return Gap(float((best - reduced)[allowed].max()), float((best - fixed)[allowed].max()), kappa(p, mdp.gamma))
