"""What the temporal-difference objectives converge to, on a token tree whose answers are all in the data.

A table of logits is the student; every answer of the tree is a sequence, weighted by its probability. The expected
solutions come from dynamic programming, or from conditions of the first order written in numpy.
"""

import itertools
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import Tensor

from distillzoo.benchmarks.theory.tabular import MDP, policy, soft_value, solve
from distillzoo.core.logits import DenseLogits
from distillzoo.core.objective import Objective, TDBatch
from distillzoo.core.subset import ActionSubset
from distillzoo.core.transitions import Transitions
from distillzoo.plugins.extractions.projected_softmax import ProjectedSoftmax
from distillzoo.plugins.objectives.iql import IQL
from distillzoo.plugins.objectives.ls_iq import LSIQ
from distillzoo.plugins.objectives.soft_q import SoftQ
from distillzoo.plugins.subsets.full import Full
from distillzoo.plugins.subsets.top_p import TopP
from tests.plugins.worlds import chain

TOKENS = 4
DEPTH = 3
END = 0


def answers() -> list[tuple[int, ...]]:
    """All answers: ``END`` ends one, and so does the last token at depth 3."""
    ended = [
        (*body, END) for n in range(DEPTH) for body in itertools.product(range(1, TOKENS), repeat=n)
    ]  # fmt: skip
    return ended + list(itertools.product(range(1, TOKENS), repeat=DEPTH))


ANSWERS = answers()
STATES = {prefix: i for i, prefix in enumerate(dict.fromkeys(a[:t] for a in ANSWERS for t in range(len(a))))}
NEXT = {(STATES[p], a): STATES[(*p, a)] for p in STATES for a in range(TOKENS) if (*p, a) in STATES}


def logits(seed: int) -> Tensor:
    return torch.randn(len(STATES), TOKENS, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 1.5


@dataclass(frozen=True)
class Data:
    """Rows of all answers, of the expert and, where there is one, of a fixed student policy too."""

    teacher: Tensor
    state: Tensor
    table: Transitions

    @classmethod
    def of(cls, teacher: Tensor, student: Tensor | None = None) -> "Data":
        policies = [(teacher, True)] if student is None else [(teacher, True), (student, False)]
        sequences = [(answer, z, expert) for z, expert in policies for answer in ANSWERS]
        state = [STATES[answer[:t]] for answer, _, _ in sequences for t in range(len(answer))]
        actions = torch.tensor([token for answer, _, _ in sequences for token in answer])
        weight = []
        for answer, z, _ in sequences:
            chance = [z[STATES[answer[:t]]].log_softmax(0)[token] for t, token in enumerate(answer)]
            weight += [float(torch.stack(chance).sum().exp())] * len(answer)
        table = chain(
            tuple(len(answer) for answer, _, _ in sequences), (True,) * len(sequences), actions,
            tuple(expert for _, _, expert in sequences),
        )  # fmt: skip
        return cls(teacher, torch.tensor(state), replace(table, weight=torch.tensor(weight, dtype=torch.float64)))

    def loss(self, objective: Objective, table: Tensor, subset: ActionSubset, bar: Tensor | None = None) -> Tensor:
        teacher, student = (DenseLogits(z[self.state]) for z in (self.teacher, table))
        target = None if bar is None else DenseLogits(bar[self.state])
        td = TDBatch(self.table, student, subset.select(teacher), ProjectedSoftmax(), teacher, target)
        terms = objective.terms(td).losses()
        return (self.table.weight * torch.stack(list(terms.values())).sum(0)).sum()

    def visits(self, expert: bool) -> np.ndarray:
        """``[S, A]``, the weight of each pair in the rows of the expert, or of the student."""
        found = torch.zeros(len(STATES), TOKENS, dtype=torch.float64)
        rows = self.table.expert == expert
        pair = (self.state[rows], self.table.action[rows])
        return found.index_put(pair, self.table.weight[rows], accumulate=True).numpy()


def iterated(data: Data, objective: Objective, subset: ActionSubset, rounds: int = 40, rate: float = 1.0) -> np.ndarray:
    """Fitted Q iteration: every pair's Q becomes the mean of its targets. The bar follows the table at the rate."""
    table, bar = logits(99), logits(98)
    mass = torch.from_numpy(data.visits(True) + data.visits(False))
    for _ in range(rounds):
        leaf = table.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(data.loss(objective, leaf, subset, bar), leaf)
        table = table - gradient / mass
        bar = bar.lerp(table, rate)
    return table.numpy()


def minimised(data: Data, objective: Objective, subset: ActionSubset, seed: int = 97) -> Tensor:
    """L-BFGS on the whole of the data."""
    table = logits(seed).requires_grad_()
    optimiser = torch.optim.LBFGS(
        [table], max_iter=600, max_eval=1200, history_size=50, tolerance_grad=1e-9, tolerance_change=0.0,
        line_search_fn="strong_wolfe",
    )  # fmt: skip

    def closure() -> float:
        optimiser.zero_grad()
        value = data.loss(objective, table, subset)
        value.backward()
        return value.item()

    optimiser.step(closure)
    return table.detach()


def kept(data: Data, subset: ActionSubset) -> np.ndarray:
    """``[S, A]``, the actions in the subset."""
    chosen = subset.select(DenseLogits(data.teacher))
    found = torch.zeros(len(STATES), TOKENS, dtype=torch.long)
    return (found.scatter_add(1, chosen.actions, chosen.mask.long()) > 0).numpy()


def mdp(reward: np.ndarray, gamma: float) -> MDP:
    transition = np.zeros((len(STATES), TOKENS, len(STATES)))
    for (s, a), after in NEXT.items():
        transition[s, a, after] = 1.0
    return MDP(reward, transition, gamma)


PATHS = [{}, {"steps": 3}, {"trace": 0.9}]
SUBSETS = [TopP(p=0.8), TopP(p=1.0), Full()]


@pytest.mark.parametrize("subset", SUBSETS, ids=str)
@pytest.mark.parametrize("gamma", [0.5, 0.99])
@pytest.mark.parametrize("path", PATHS, ids=str)
@pytest.mark.parametrize("target", ["stop-gradient", "network"])
def test_soft_q_with_the_teachers_reward_finds_the_teachers_logits(subset, gamma, path, target):
    data = Data.of(logits(1))
    objective = SoftQ(gamma=gamma, target=target, **path)
    allowed = kept(data, subset)
    found = iterated(data, objective, subset, rate=0.7)
    np.testing.assert_allclose(found[allowed], data.teacher.numpy()[allowed], atol=1e-9)
    np.testing.assert_array_equal(found[~allowed], logits(99).numpy()[~allowed])


@pytest.mark.parametrize("gamma", [0.5, 0.99])
@pytest.mark.parametrize("path", PATHS, ids=str)
@pytest.mark.parametrize("subset", [TopP(p=0.8), Full()], ids=str)
def test_sqil_finds_the_soft_optimal_q_of_the_mean_reward(subset, gamma, path):
    data = Data.of(logits(1), logits(2))
    expert, student = data.visits(True), data.visits(False)
    allowed = kept(data, subset)
    exact = solve(mdp(3.0 * expert / (expert + student), gamma), allowed)
    found = iterated(data, SoftQ(reward="expert", scale=3.0, gamma=gamma, **path), subset)
    np.testing.assert_allclose(found[allowed], exact[allowed], atol=1e-9)


@pytest.mark.parametrize("target", ["stop-gradient", "network"])
@pytest.mark.parametrize("expert_target", ["fixed", "bootstrap"])
@pytest.mark.parametrize(("gamma", "c"), [(0.9, 0.5), (0.3, 2.0)])
def test_ls_iq_finds_the_mean_of_its_bounded_targets(gamma, c, expert_target, target):
    data = Data.of(logits(1), logits(2))
    expert, student = data.visits(True), data.visits(False)
    share, top = expert / (expert + student), 1 / (c * (1 - gamma))
    exact = np.zeros_like(share)
    for prefix in sorted(STATES, key=len, reverse=True):
        for a in range(TOKENS):
            s = STATES[prefix]
            if (s, a) in NEXT:
                later = exact[NEXT[s, a]]
                value = np.clip(np.log(np.exp(later - later.max()).sum()) + later.max(), -top, top)
                good, bad = 1 / c + gamma * value, -1 / c + gamma * value
            else:
                good, bad = top, -top
            good = top if expert_target == "fixed" else good
            exact[s, a] = share[s, a] * good + (1 - share[s, a]) * bad
    found = iterated(data, LSIQ(gamma=gamma, regulariser=c, expert_target=expert_target, target=target), Full())
    np.testing.assert_allclose(found, exact, atol=1e-9)


@pytest.mark.parametrize("subset", [TopP(p=0.8), Full()], ids=str)
@pytest.mark.parametrize(("divergence", "path"), [*(("chi2", path) for path in PATHS), ("kl", {})], ids=str)
def test_iql_centred_on_the_teacher_finds_its_logits(subset, path, divergence):
    data = Data.of(logits(1))
    objective = IQL(
        first_term="expected", centre="teacher", gauge="raw", gamma=0.9, alpha=1.0, divergence=divergence, **path
    )
    allowed = torch.from_numpy(kept(data, subset))
    found = minimised(data, objective, subset)
    torch.testing.assert_close(found[allowed], data.teacher[allowed], atol=2e-4, rtol=0)


def chi2_loss(q: np.ndarray, visits: np.ndarray, gamma: float, alpha: float) -> tuple[float, np.ndarray]:
    """The offline loss sum n(s,a) [ V(s) - Q(s,a) + r^2 / (4 alpha) ] over all pairs, and its gradient."""
    everything = np.ones_like(q, dtype=bool)
    v, pi = soft_value(q, everything), policy(q)
    later, pull = np.zeros_like(q), np.zeros(len(q))
    for (s, a), after in NEXT.items():
        later[s, a] = v[after]
    r = q - gamma * later
    slope = visits * r / (2 * alpha)
    for (s, a), after in NEXT.items():
        pull[after] += gamma * slope[s, a]
    loss = (visits * (v[:, None] - q + r**2 / (4 * alpha))).sum()
    return float(loss), pi * visits.sum(1, keepdims=True) - visits + slope - pi * pull[:, None]


@pytest.mark.parametrize(("gamma", "alpha"), [(0.9, 0.5), (0.99, 5.0)])
def test_iql_with_chi_squared_meets_its_conditions_of_the_first_order(gamma, alpha):
    data = Data.of(logits(1))
    visits = data.visits(True)
    found = minimised(data, IQL(gauge="raw", gamma=gamma, alpha=alpha), Full()).numpy()
    value, gradient = chi2_loss(found, visits, gamma, alpha)
    assert np.abs(gradient).max() < 1e-7
    shape = found.shape

    def flat(q: np.ndarray) -> tuple[float, np.ndarray]:
        loss, slope = chi2_loss(q.reshape(shape), visits, gamma, alpha)
        return loss, slope.ravel()

    best = minimize(flat, logits(3).numpy().ravel(), jac=True, method="BFGS", options={"gtol": 1e-10, "maxiter": 5000})
    assert value == pytest.approx(best.fun, abs=1e-9)
    np.testing.assert_allclose(found, best.x.reshape(shape), atol=1e-3)


def test_iql_tends_to_the_policy_of_the_data_as_chi_squared_weakens():
    data = Data.of(logits(1))
    empirical = data.visits(True) / data.visits(True).sum(1, keepdims=True)
    np.testing.assert_allclose(empirical, data.teacher.softmax(1).numpy(), atol=1e-12)
    far = []
    for alpha in (0.5, 5.0, 50.0):
        found = minimised(data, IQL(gauge="raw", alpha=alpha), Full()).numpy()
        far.append(np.abs(policy(found) - empirical).max())
    assert far == sorted(far, reverse=True)
    assert far[0] > 0.05
    assert far[-1] < 0.01


def test_on_one_answer_soft_q_has_other_solutions_than_the_teacher():
    """An action that nobody took keeps any Q; V counts it, and the taken actions' Q make up for it."""
    teacher, student = logits(3)[:3], logits(4)[:3].clone()
    gamma, actions = 0.9, [2, 1, END]
    table = chain((3,), (True,), torch.tensor(actions), (True,))
    q_teacher = teacher[range(3), actions]
    reward = q_teacher - gamma * torch.cat([teacher[1:].logsumexp(1), torch.zeros(1)])
    for t in (2, 1, 0):  # from the end: Q(s,a) = r + gamma V(s') with whatever the others are
        ahead = student[t + 1].logsumexp(0) if t < 2 else 0.0
        student[t, actions[t]] = reward[t] + gamma * ahead
    td = TDBatch(
        table, DenseLogits(student), Full().select(DenseLogits(teacher)), ProjectedSoftmax(), DenseLogits(teacher)
    )
    torch.testing.assert_close(SoftQ(gamma=gamma).terms(td).bellman, torch.zeros(3).double())
    assert (student[range(3), actions] - q_teacher).abs().max() > 0.1
