"""Slow references: loops over tokens in plain Python, written from the formulas, sharing no code with the program."""

import math


def softmax(logits: list[float]) -> list[float]:
    top = max(logits)
    weights = [math.exp(z - top) for z in logits]
    total = sum(weights)
    return [w / total for w in weights]


def log_sum_exp(values: list[float]) -> float:
    top = max(values)
    return top + math.log(sum(math.exp(v - top) for v in values))


def nucleus(teacher_logits: list[float], p: float) -> list[int]:
    """Tokens in falling order of probability, the lower id first among equals, until their mass reaches p."""
    probs = softmax(teacher_logits)
    order = sorted(range(len(probs)), key=lambda a: (-teacher_logits[a], a))
    chosen: list[int] = []
    mass = 0.0
    for token in order:
        if probs[token] == 0.0:
            break
        if chosen and (mass >= p and p < 1.0):
            break
        chosen.append(token)
        mass += probs[token]
    return chosen


def iql_loss(
    student: list[list[float]],
    sets: list[list[int]],
    actions: list[int],
    ends: list[str],
    *,
    gamma: float,
    alpha: float,
    gauge: str,
    q_min: float,
    whole: bool = False,
) -> list[float]:
    """The paper's loss for one sequence, state by state.

    ``ends[t]`` is "next" if state t + 1 follows, "terminal" after the end token, "truncated" if the sequence was cut.
    """
    n = len(actions)
    values, levels = [], []
    for t in range(n):
        tokens = range(len(student[t])) if whole else sets[t]
        values.append(log_sum_exp([student[t][a] for a in tokens]))
        level = {"raw": 0.0, "max": max(student[t]), "subset-max": max(student[t][a] for a in tokens)}[gauge]
        levels.append(level)
    losses = []
    for t in range(n):
        if not whole and actions[t] not in sets[t]:
            losses.append(0.0)
            continue
        q = student[t][actions[t]]
        loss = values[t] - q
        if ends[t] != "truncated":
            clipped = q - levels[t] if gauge == "raw" else max(q - levels[t], q_min)
            future = values[t + 1] - levels[t + 1] if ends[t] == "next" else 0.0
            loss += (clipped - gamma * future) ** 2 / (4 * alpha)
        losses.append(loss)
    return losses


def kl(p: list[float], q: list[float]) -> float:
    return sum(a * (math.log(a) - math.log(b)) for a, b in zip(p, q, strict=True) if a > 0)


def divergence(name: str, p: list[float], q: list[float], weight: float = 0.0) -> float:
    """The divergences of the zoo between two lists of probabilities, by their definitions."""

    def against(a: list[float], share: float) -> float:
        """KL(a || share p + (1 - share) q)."""
        return kl(a, [share * x + (1 - share) * y for x, y in zip(p, q, strict=True)])

    pairs = list(zip(p, q, strict=True))
    if name == "forward-kl":
        return kl(p, q)
    if name == "reverse-kl":
        return kl(q, p)
    if name == "jsd":
        return weight * against(p, weight) + (1 - weight) * against(q, weight)
    if name == "skew-kl":
        return against(p, weight)
    if name == "skew-reverse-kl":
        return against(q, 1 - weight)
    if name == "total-variation":
        return sum(abs(x - y) for x, y in pairs) / 2
    if name == "alpha-divergence":
        return (1 - sum(x**weight * y ** (1 - weight) for x, y in pairs)) / (weight * (1 - weight))
    raise ValueError(name)
