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


def levels(logits: list[list[float]], sets: list[list[int]], gauge: str) -> list[float]:
    """The constant of each state that the gauge subtracts from Q and V."""
    if gauge == "raw":
        return [0.0] * len(logits)
    return [max(row if gauge == "max" else [row[a] for a in chosen]) for row, chosen in zip(logits, sets, strict=True)]


def in_gauge(
    logits: list[list[float]], sets: list[list[int]], actions: list[int], gauge: str
) -> tuple[list[float], list[float]]:
    """Q of the taken actions and V of the states of one sequence."""
    level = levels(logits, sets, gauge)
    q = [row[a] - c for row, a, c in zip(logits, actions, level, strict=True)]
    v = [log_sum_exp([row[a] for a in chosen]) - c for row, chosen, c in zip(logits, sets, level, strict=True)]
    return q, v


def ahead(v: list[float], ends: list[str], t: int) -> float:
    """V(s_{t+1}), 0 after the end and where it isn't known."""
    return v[t + 1] if ends[t] == "next" else 0.0


def run_length(counted: list[bool], ends: list[str], t: int) -> int:
    """Number of rows from t on that count without a gap."""
    n = 0
    while counted[t + n]:
        n += 1
        if ends[t + n - 1] != "next":
            break
    return n


def phi(divergence: str, x: float, alpha: float) -> float:
    """The concave functions of IQ-Learn, with a slope of at most 4 except for chi-squared."""
    formula = {
        "chi2": lambda x: x - x * x / (4 * alpha),
        "hellinger": lambda x: x / (1 + x),
        "js": lambda x: math.log(2 - math.exp(-x)),
        "kl": lambda x: 1 - math.exp(-x),
        "tv": lambda x: min(x, 0.5) if x >= -0.5 else -0.5 + 4 * (x + 0.5),
        "none": lambda x: x,
    }[divergence]
    slope = {
        "hellinger": lambda x: (1 + x) ** -2,
        "js": lambda x: 1 / (2 * math.exp(x) - 1),
        "kl": lambda x: math.exp(-x),
    }
    if divergence not in slope:
        return formula(x)
    low, high = -0.69, 0.0  # where the slope is 4, by bisection; kl's lies lower
    low = -2.0 if divergence == "kl" else low
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if slope[divergence](middle) > 4 else (low, middle)
    return formula(x) if x >= high else formula(high) + 4 * (x - high)


def iql_in_all_modes(
    student: list[list[float]],
    teacher: list[list[float]],
    sets: list[list[int]],
    actions: list[int],
    ends: list[str],
    expert: bool,
    *,
    gamma: float = 0.99,
    alpha: float = 0.1,
    gauge: str = "max",
    q_min: float = -10.0,
    divergence: str = "chi2",
    samples: str = "expert",
    expert_share: float = 0.5,
    first_term: str = "sampled",
    centre: str = "zero",
    steps: int = 1,
    trace: float = 0.0,
) -> list[float]:
    """-phi of the implied rewards and the expected values, of one sequence, state by state."""
    q, v = in_gauge(student, sets, actions, gauge)
    q_teacher, v_teacher = in_gauge(teacher, sets, actions, gauge)
    inside = [a in chosen for a, chosen in zip(actions, sets, strict=True)]
    counted = [i and end != "truncated" for i, end in zip(inside, ends, strict=True)]
    level = levels(student, sets, gauge)
    rewards = []
    for t in range(len(actions)):
        here, there = q[t], q_teacher[t]
        if gauge != "raw":
            here, there = max(here, q_min), max(there, q_min)
        r = here - gamma * ahead(v, ends, t)
        if centre == "teacher":
            r -= there - gamma * ahead(v_teacher, ends, t)
        rewards.append(r)
    losses = []
    for t in range(len(actions)):
        n = run_length(counted, ends, t)
        if trace > 0:
            x = sum((gamma * trace) ** k * rewards[t + k] for k in range(n))
        else:
            x = sum(gamma**k * rewards[t + k] for k in range(min(n, steps)))
        psi = x - phi(divergence, x, alpha)
        if first_term == "expected":
            mass = [softmax(teacher[t])[a] for a in sets[t]]
            linear = sum(m / sum(mass) * (student[t][a] - level[t]) for m, a in zip(mass, sets[t], strict=True))
        else:
            linear = q[t] if inside[t] else v[t]  # an action outside is as good as the value
        minus_phi = -(linear - gamma * ahead(v, ends, t)) + psi
        if samples == "expert":
            losses.append(v[t] - linear + psi)
        elif samples == "initial":
            losses.append(gamma**t * minus_phi + (v[0] if t == 0 else 0.0))
        elif ends[t] == "truncated":
            losses.append(0.0)
        else:
            losses.append(v[t] - gamma * ahead(v, ends, t) + (minus_phi / expert_share if expert else 0.0))
    return losses


def soft_q_loss(
    student: list[list[float]],
    bar: list[list[float]],
    teacher: list[list[float]],
    sets: list[list[int]],
    actions: list[int],
    ends: list[str],
    expert: bool,
    *,
    gamma: float = 0.99,
    gauge: str = "raw",
    reward: str = "teacher",
    scale: float = 1.0,
    steps: int = 1,
    trace: float = 0.0,
) -> list[float]:
    """Half the squared distance of Q to the n-step or lambda return, by their definitions; ``bar`` is held fixed."""
    q, _ = in_gauge(student, sets, actions, gauge)
    q_bar, v_bar = in_gauge(bar, sets, actions, gauge)
    q_teacher, v_teacher = in_gauge(teacher, sets, actions, gauge)
    counted = [a in chosen and end != "truncated" for a, chosen, end in zip(actions, sets, ends, strict=True)]

    def given(t: int) -> float:
        if reward == "expert":
            return scale if expert else 0.0
        return q_teacher[t] - gamma * ahead(v_teacher, ends, t)

    def target(t: int, n: int) -> float:
        """Rewards and entropies of n actions, the first one's entropy apart, and the value behind them."""
        total = 0.0
        for k in range(n):
            entropy = v_bar[t + k] - q_bar[t + k] if k else 0.0
            total += gamma**k * (given(t + k) + entropy)
        return total + gamma**n * ahead(v_bar, ends, t + n - 1)

    losses = []
    for t in range(len(actions)):
        n = run_length(counted, ends, t)
        if n == 0:
            losses.append(0.0)
            continue
        if trace > 0:
            y = sum((1 - trace) * trace ** (k - 1) * target(t, k) for k in range(1, n)) + trace ** (n - 1) * target(
                t, n
            )
        else:
            y = target(t, min(n, steps))
        losses.append((q[t] - y) ** 2 / 2)
    return losses


def ls_iq_loss(
    student: list[list[float]],
    bar: list[list[float]],
    sets: list[list[int]],
    actions: list[int],
    ends: list[str],
    expert: bool,
    *,
    gamma: float = 0.99,
    regulariser: float = 0.5,
    expert_target: str = "fixed",
    steps: int = 1,
) -> list[float]:
    """Half the squared distance of Q to the bounded n-step targets; ``bar`` is held fixed."""
    q, v = in_gauge(bar, sets, actions, "raw")
    top = 1 / (regulariser * (1 - gamma))
    reward = (1 if expert else -1) / regulariser

    def later(t: int) -> float:
        return reward / (1 - gamma) if ends[t] == "terminal" else min(max(ahead(v, ends, t), -top), top)

    def target(t: int) -> float:
        """What the row's action and the next ones add to Qbar, until one doesn't count."""
        y = q[t]
        for k in range(steps):
            if t + k == len(actions) or ends[t + k] == "truncated" or actions[t + k] not in sets[t + k]:
                break
            y += gamma**k * (reward + gamma * later(t + k) - q[t + k])
        return y

    losses = []
    for t, action in enumerate(actions):
        fixed = expert and expert_target == "fixed"
        known = fixed or ends[t] != "truncated"
        y = top if fixed else target(t)
        losses.append((student[t][action] - y) ** 2 / 2 if known and action in sets[t] else 0.0)
    return losses


def released_loss(
    student: list[list[float]],
    sets: list[list[int]],
    ends: list[str],
    *,
    gamma: float = 0.99,
    alpha: float = 0.1,
    epsilon: float = 1e-6,
    q_min: float = -10.0,
) -> list[float]:
    """The released program's loss of one sequence, over the whole vocabulary."""
    values, clipped = [], []
    for t, row in enumerate(student):
        q = [max(z - max(row), q_min) for z in row]
        pi = softmax([max(x - max(q), q_min) for x in q])
        hat = [pi[a] * (a in sets[t]) + epsilon for a in range(len(row))]
        hat = [h / sum(hat) for h in hat]
        real = ends[t] != "terminal"
        values.append(sum(h * (x - math.log(h)) for h, x in zip(hat, q, strict=True)) if real else 0.0)
        clipped.append(q)
    losses = []
    for t, row in enumerate(clipped):
        if ends[t] != "next":
            losses.append(0.0)
            continue
        future = gamma * values[t + 1]
        rewards = [x * (a in sets[t]) - future for a, x in enumerate(row)]
        mean, square = sum(rewards) / len(row), sum(r * r for r in rewards) / len(row)
        losses.append(-(mean - (values[t] - future)) + square / (4 * alpha))
    return losses
