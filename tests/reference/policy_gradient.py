"""Slow references of the policy gradients: one answer, token by token, in plain Python.

``student`` are the logits whose gradient is asked; ``frozen`` are those at which everything is taken that a step holds
fixed. Their values are equal, and a difference quotient moves the first only.
"""

import math

from tests.reference.losses import log_sum_exp, softmax

Logits = list[list[float]]


def log_probability(logits: list[float], action: int) -> float:
    return logits[action] - log_sum_exp(logits)


def minillm_returns(
    frozen: Logits, teacher: Logits, actions: list[int], *, gamma: float, scale: float, clip: float, normalise: bool,
    first: str,
) -> list[float]:  # fmt: skip
    rewards = []
    for t, action in enumerate(actions):
        reward = (log_probability(teacher[t], action) - log_probability(frozen[t], action)) / scale
        rewards.append(max(-clip, min(clip, reward)))
    found = []
    for t in range(len(actions)):
        begin = t if first == "current" else t + 1
        later = range(begin, len(actions))
        total = sum((gamma ** (u - begin) * rewards[u] for u in later), 0.0)
        found.append(total / len(later) if normalise and later else total)
    return found


def minillm_loss(
    student: Logits, frozen: Logits, teacher: Logits, actions: list[int], behaviour: list[float], returns: list[float],
    *, mean: float, deviation: float, ratio_clip: float,
) -> list[float]:  # fmt: skip
    losses = []
    for t, action in enumerate(actions):
        drawn = log_probability(frozen[t], action) if math.isnan(behaviour[t]) else behaviour[t]
        rho = math.exp(log_probability(student[t], action) - drawn)
        advantage = (returns[t] - mean) / deviation
        surrogate = min(advantage * rho, advantage * max(1 - ratio_clip, min(1 + ratio_clip, rho)))
        pi, pi_t = softmax(student[t]), softmax(teacher[t])
        losses.append(-surrogate + sum(p * math.log(p / q) for p, q in zip(pi, pi_t, strict=True)))
    return losses


def llmr_loss(
    student: Logits, frozen: Logits, teacher: Logits, actions: list[int], behaviour: list[float], ended: bool,
    *, next_value: str, scale: float, clip: float | None,
) -> list[float]:  # fmt: skip
    if not ended:
        return [0.0] * len(actions)
    centred = [[z - sum(row) / len(row) for z in row] for row in teacher]
    rewards = []
    for t, action in enumerate(actions):
        value = 0.0
        if t + 1 < len(actions):
            after = centred[t + 1]
            mean = sum(p * f for p, f in zip(softmax(after), after, strict=True))
            value = max(after) if next_value == "max" else mean
        rewards.append(centred[t][action] - value)
    losses = []
    for t, action in enumerate(actions):
        now = log_probability(frozen[t], action)
        rho = 1.0 if math.isnan(behaviour[t]) else math.exp(now - behaviour[t])
        weight = rho * sum(rewards[t:]) / scale
        if clip is not None:
            weight = max(-clip, min(clip, weight))
        losses.append(-log_probability(student[t], action) * weight)
    return losses
