"""The objective csil against a loop written from its formulas, its fixed point, and what becomes of single rows."""

import itertools
import math
from dataclasses import replace

import distillzoo_csil
import pytest
import torch
from distillzoo_csil.csil import CSIL
from torch import Tensor

from distillzoo.core.checks import parametrize_with_checks
from distillzoo.core.extraction import PolicyExtraction
from distillzoo.core.logits import DenseLogits
from distillzoo.core.objective import TDBatch
from distillzoo.core.registry import Registry
from distillzoo.core.subset import ActionSubset, WholeVocabulary
from distillzoo.core.transitions import TERMINAL, UNKNOWN, Transitions
from distillzoo.plugins.extractions.greedy import Greedy
from distillzoo.plugins.extractions.projected_softmax import ProjectedSoftmax
from distillzoo.plugins.extractions.softmax import Softmax
from distillzoo.plugins.subsets.full import Full
from distillzoo.plugins.subsets.top_k import TopK

INF = float("inf")
V = 7
ACTIONS = torch.tensor([3, 0, 6, 2, 2, 5, 1, 4, 0])
SUCCESSOR = torch.tensor([1, 2, 3, TERMINAL, TERMINAL, 6, 7, 8, UNKNOWN])
"""Three answers: of four tokens, of one token, and of four tokens without an end."""

GAUGES = ["raw", "subset-max"]


@parametrize_with_checks([*CSIL.examples(), CSIL(alpha=2.0, gamma=1.0), CSIL(clone_weight=0.0, gauge="raw")])
def test_conformance(check):
    check()


def transitions(action: Tensor, successor: Tensor, sequence: Tensor) -> Transitions:
    """The expert's actions, each of weight 1, whose probabilities when they were sampled are not known."""
    row, one = torch.arange(len(action)), torch.ones(len(action)).double()
    return Transitions(action, successor, sequence, row, one, torch.ones_like(row, dtype=torch.bool), one * math.nan)


def batch(
    student: Tensor,
    teacher: Tensor,
    subset: ActionSubset,
    extraction: PolicyExtraction | None = None,
    actions: Tensor = ACTIONS,
    successor: Tensor = SUCCESSOR,
) -> TDBatch:
    table = transitions(actions, successor, torch.zeros_like(actions))
    view = DenseLogits(teacher)
    chosen = subset.with_action(subset.select(view), view, actions)
    return TDBatch(
        table,
        DenseLogits(student),
        chosen,
        extraction or ProjectedSoftmax(),
        view if CSIL().needs_teacher_view(subset) else None,
    )


def world(seed: int = 0) -> tuple[Tensor, Tensor]:
    """Logits of a student, as a leaf, and of a teacher."""
    generator = torch.Generator().manual_seed(seed)
    student, teacher = torch.randn(2, len(ACTIONS), V, generator=generator, dtype=torch.float64) * 2
    return student.requires_grad_(), teacher


def coherent(teacher: Tensor, subset: ActionSubset, alpha: float) -> Tensor:
    """The critic Q = r on the sets of a teacher, and -3 elsewhere."""
    critic = torch.full_like(teacher, -3.0)
    found = subset.select(DenseLogits(teacher))
    for row, (actions, mask) in enumerate(zip(found.actions, found.mask, strict=True)):
        inside = actions[mask]
        critic[row, inside] = alpha * (teacher[row, inside].log_softmax(0) + math.log(len(inside)))
    return critic


def log_sum_exp(values: list[float]) -> float:
    return max(values) + math.log(sum(math.exp(v - max(values)) for v in values))


def loop(student, teacher, sets, *, alpha, gamma, clone_weight, gauge) -> tuple[list[float], list[float]]:
    """Both terms of every row in plain Python, from the formulas of the docstring."""

    def reward(s: int, a: int) -> float:
        log_pi = teacher[s][a] - log_sum_exp([teacher[s][b] for b in sets[s]])
        return alpha * (log_pi - math.log(1 / len(sets[s])))

    def value(s: int) -> float:
        return alpha * (log_sum_exp([student[s][b] / alpha for b in sets[s]]) - math.log(len(sets[s])))

    def zero(s: int, critic) -> float:
        return 0.0 if gauge == "raw" else max(critic(s, b) for b in sets[s])

    def logit(s: int, a: int) -> float:
        return student[s][a]

    clone, bellman = [], []
    for s, (a, after) in enumerate(zip(ACTIONS.tolist(), SUCCESSOR.tolist(), strict=True)):
        if a not in sets[s]:
            clone.append(0.0)
            bellman.append(0.0)
            continue
        policy = [math.exp((student[s][b] - value(s)) / alpha) / len(sets[s]) for b in sets[s]]
        assert sum(policy) == pytest.approx(1.0)
        clone.append(-clone_weight * math.log(policy[sets[s].index(a)]))
        if after == UNKNOWN:
            bellman.append(0.0)
            continue
        shaped = reward(s, a) - zero(s, reward)
        future = 0.0
        if after != TERMINAL:
            shaped += gamma * zero(after, reward)
            future = value(after) - zero(after, logit)
        bellman.append((student[s][a] - zero(s, logit) - shaped - gamma * future) ** 2 / 2)
    return clone, bellman


@pytest.mark.parametrize("subset", [Full(), TopK(k=3), TopK(k=2, include_action=True)], ids=repr)
@pytest.mark.parametrize("gauge", GAUGES)
@pytest.mark.parametrize(("alpha", "gamma", "clone_weight"), [(1.0, 0.99, 1.0), (0.4, 0.5, 0.3), (2.5, 1.0, 0.0)])
def test_it_equals_a_loop_over_tokens(subset, gauge, alpha, gamma, clone_weight):
    student, teacher = world()
    params = {"alpha": alpha, "gamma": gamma, "clone_weight": clone_weight, "gauge": gauge}
    td = batch(student, teacher, subset)
    sets = [row[mask].tolist() for row, mask in zip(td.subset.actions, td.subset.mask, strict=True)]
    terms = CSIL(**params).terms(td)
    clone, bellman = loop(student.tolist(), teacher.tolist(), sets, **params)
    assert terms.clone.tolist() == pytest.approx(clone, abs=1e-12)
    assert terms.bellman.tolist() == pytest.approx(bellman, abs=1e-12)
    assert any(bellman)


@pytest.mark.parametrize("gauge", GAUGES)
def test_by_hand(gauge):
    """Teacher (3/4, 1/4), Q = (ln 6, ln 2), and the first of the two tokens ends the answer. With alpha = 1:

    -log pi = -ln(6/8);  r = ln(3/4) + ln 2 = ln(3/2);  V = ln((6 + 2) / 2) = ln 4
    raw:         delta = ln 6 - ln(3/2) = ln 4
    subset-max:  the token is both critics' best, so delta = 0 - 0
    """
    student, teacher = torch.tensor([[6.0, 2.0]]).double().log(), torch.tensor([[0.75, 0.25]]).double().log()
    td = batch(student, teacher, Full(), actions=torch.tensor([0]), successor=torch.tensor([TERMINAL]))
    terms = CSIL(gauge=gauge).terms(td)
    assert terms.clone.item() == pytest.approx(math.log(4 / 3))
    assert terms.coherent_reward.item() == pytest.approx(math.log(3 / 2))
    assert terms.soft_value.item() == pytest.approx(math.log(4))
    assert terms.bellman.item() == pytest.approx(math.log(4) ** 2 / 2 if gauge == "raw" else 0.0)


def test_by_hand_with_a_successor():
    """As above, the second token taken, then the state (ln 2, ln 2) of a teacher (1/2, 1/2); alpha = 1/2, gamma = 1/2.

    In the first state r = (ln(1/4) + ln 2) / 2 = -ln(2) / 2, and m_T = ln(3/2) / 2, m = ln 6.
    In the second one V = ln(2^2 + 2^2 over 2) / 2 = ln 2, r = 0 for both tokens, m_T = 0, m = ln 2.
    raw:         delta = ln 2 + ln(2) / 2 - ln(2) / 2 = ln 2
    subset-max:  delta = (ln 2 - ln 6) - (-ln(2) / 2 - ln(3/2) / 2) - (ln 2 - ln 2) / 2 = -ln 3 + ln(3) / 2 = -ln(3) / 2
    """
    student = torch.tensor([[6.0, 2.0], [2.0, 2.0]]).double().log()
    teacher = torch.tensor([[0.75, 0.25], [0.5, 0.5]]).double().log()
    td = batch(student, teacher, Full(), actions=torch.tensor([1, 0]), successor=torch.tensor([1, TERMINAL]))
    raw = CSIL(gauge="raw", alpha=0.5, gamma=0.5).terms(td)
    fixed = CSIL(alpha=0.5, gamma=0.5).terms(td)
    assert raw.bellman[0].item() == pytest.approx(math.log(2) ** 2 / 2)
    assert fixed.bellman[0].item() == pytest.approx((math.log(3) / 2) ** 2 / 2)


@pytest.mark.parametrize("subset", [Full(), TopK(k=3)], ids=repr)
@pytest.mark.parametrize("gamma", [0.0, 0.7, 0.99, 1.0])
@pytest.mark.parametrize("alpha", [0.3, 1.0, 4.0])
def test_coherence_at_the_teacher_s_policy_value_and_residual_are_zero(subset, gamma, alpha):
    _, teacher = world()
    student = coherent(teacher, subset, alpha)
    terms = CSIL(alpha=alpha, gamma=gamma, gauge="raw").terms(batch(student, teacher, subset))
    zeros = torch.zeros(len(ACTIONS)).double()
    torch.testing.assert_close(terms.soft_value, zeros)
    torch.testing.assert_close(terms.bellman, zeros)
    assert bool((terms.coherent_reward != 0).any())


@pytest.mark.parametrize("gamma", [0.0, 0.99, 1.0])
def test_coherence_of_the_gauge_holds_at_any_level(gamma):
    _, teacher = world()
    level = torch.linspace(-30, 30, len(ACTIONS))[:, None].double()
    student = coherent(teacher, TopK(k=3), 0.5) + level
    terms = CSIL(alpha=0.5, gamma=gamma).terms(batch(student, teacher, TopK(k=3)))
    torch.testing.assert_close(terms.bellman, torch.zeros(len(ACTIONS)).double())
    torch.testing.assert_close(terms.soft_value, level[:, 0])


DEPTH, WIDTH, END = 3, 4, 0


def tree(subset: ActionSubset) -> tuple[Tensor, Tensor, Transitions, Tensor]:
    """All states of a token tree and all actions of their sets: teacher, state and transitions, and pi_T on the set.

    Token ``END`` ends an answer; at the last depth every token does.
    """
    others = [token for token in range(WIDTH) if token != END]
    states = [prefix for depth in range(DEPTH) for prefix in itertools.product(others, repeat=depth)]
    teacher = torch.randn(len(states), WIDTH, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    found = subset.select(DenseLogits(teacher))
    visits = [(s, a) for s in range(len(states)) for a in found.actions[s][found.mask[s]].tolist()]
    first = {states[s]: row for row, (s, _) in reversed(list(enumerate(visits)))}
    after = [first.get((*states[s], a), TERMINAL) if a != END else TERMINAL for s, a in visits]
    state, action = torch.tensor(visits).T
    table = transitions(action, torch.tensor(after), state)
    outside = torch.ones_like(teacher, dtype=torch.bool).scatter(1, found.actions, ~found.mask)
    return teacher, state, table, teacher.masked_fill(outside, -INF).softmax(1)


@pytest.mark.parametrize("subset", [Full(), TopK(k=2)], ids=repr)
@pytest.mark.parametrize("gauge", GAUGES)
@pytest.mark.parametrize("clone_weight", [0.0, 1.0])
def test_minimised_on_a_tree_it_finds_the_teacher_s_policy(subset, gauge, clone_weight):
    teacher, state, table, policy = tree(subset)
    logits = torch.randn(
        teacher.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64
    ).requires_grad_()
    objective = CSIL(alpha=0.7, clone_weight=clone_weight, gauge=gauge)
    optimiser = torch.optim.Adam([logits], lr=0.1)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimiser, 0.996)
    view = DenseLogits(teacher[state])
    chosen = subset.select(view)
    share = policy[state, table.action]
    for _ in range(1500):
        terms = objective.terms(TDBatch(table, DenseLogits(logits[state]), chosen, ProjectedSoftmax(), view))
        loss = (share * (terms.clone + terms.bellman)).sum()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    found = (logits.detach() / objective.alpha).masked_fill(policy == 0, -INF).softmax(1)
    torch.testing.assert_close(found, policy, atol=2e-3, rtol=0)
    if gauge == "raw":
        torch.testing.assert_close(terms.soft_value, torch.zeros(len(state)).double(), atol=5e-3, rtol=0)


@pytest.mark.parametrize("gauge", GAUGES)
def test_no_gradient_flows_through_the_successor_s_value(gauge):
    student, teacher = world()
    td = batch(student, teacher, Full())
    bellman = CSIL(gauge=gauge).terms(td).bellman
    for row in range(len(ACTIONS)):
        (found,) = torch.autograd.grad(bellman[row], student, retain_graph=True)
        assert not bool(found[torch.arange(len(ACTIONS)) != row].any())
    moved = student.detach().clone()
    moved[1, 0] += 1.0
    other = CSIL(gauge=gauge).terms(replace(td, student=DenseLogits(moved))).bellman
    assert other[0].item() != pytest.approx(bellman[0].item()), "the value of state 1 is in the residual of state 0"


@pytest.mark.parametrize("gauge", GAUGES)
def test_the_gradient_is_that_of_the_loss_with_the_targets_held_fixed(gauge):
    """The successors become rows of a second copy of the states, which stays as it is."""
    student, teacher = world()
    copy, n = student.detach().clone(), len(ACTIONS)
    successor = torch.cat([torch.where(SUCCESSOR >= 0, SUCCESSOR + n, SUCCESSOR), torch.full_like(SUCCESSOR, UNKNOWN)])

    def loss(logits: Tensor) -> Tensor:
        both = torch.cat([logits, copy])
        td = batch(both, teacher.repeat(2, 1), Full(), actions=ACTIONS.repeat(2), successor=successor)
        terms = CSIL(gauge=gauge, alpha=0.7).terms(td)
        return (terms.clone + terms.bellman)[:n]

    assert torch.autograd.gradcheck(loss, (student,))
    usual = CSIL(gauge=gauge, alpha=0.7).terms(batch(student, teacher, Full()))
    slopes = [torch.autograd.grad(f.sum(), student)[0] for f in (usual.clone + usual.bellman, loss(student))]
    torch.testing.assert_close(*slopes)


def test_a_row_without_a_known_successor_keeps_its_cloning_term():
    terms = CSIL().terms(batch(*world(), Full()))
    assert terms.bellman[-1].item() == 0.0
    assert terms.coherent_reward[-1].item() == 0.0
    assert terms.clone[-1].item() > 0.0


@pytest.mark.parametrize("extraction", [ProjectedSoftmax(), Softmax(), Greedy(), Softmax(temperature=0.5)], ids=repr)
def test_a_row_whose_action_the_subset_misses_does_not_count_with_any_extraction(extraction):
    student, teacher = world()
    td = batch(student, teacher, TopK(k=3), extraction)
    missed = td.inside == 0
    assert 0 < int(missed.sum()) < len(ACTIONS)
    terms, usual = CSIL().terms(td), CSIL().terms(batch(student, teacher, TopK(k=3)))
    assert not bool((terms.clone + terms.bellman)[missed].any())
    torch.testing.assert_close(terms.losses(), usual.losses())


@pytest.mark.parametrize("subset", [Full(), TopK(k=3, include_action=True)], ids=repr)
@pytest.mark.parametrize("gauge", GAUGES)
def test_an_action_that_the_teacher_never_takes_has_no_reward(subset, gauge):
    student, teacher = world()
    teacher[0, ACTIONS[0]] = -INF
    terms = CSIL(gauge=gauge).terms(batch(student, teacher, subset))
    (slope,) = torch.autograd.grad((terms.clone + terms.bellman).sum(), student)
    assert terms.bellman[0].item() == 0.0
    assert terms.clone[0].item() > 0.0
    assert bool(torch.isfinite(terms.bellman).all())
    assert bool(torch.isfinite(slope).all())


@pytest.mark.parametrize("gauge", GAUGES)
def test_on_the_whole_vocabulary_no_table_is_built(gauge):
    class Tableless(WholeVocabulary):
        actions = logprobs = property(lambda self: pytest.fail("a table of the whole vocabulary is built"))

    td = batch(*world(), Full())
    usual = CSIL(gauge=gauge).terms(td)
    found = CSIL(gauge=gauge).terms(replace(td, subset=Tableless(td.student, td.teacher)))
    torch.testing.assert_close(found.bellman, usual.bellman)


def test_it_asks_for_the_teacher_s_view_on_the_whole_vocabulary_only():
    assert CSIL().needs_teacher_view(Full())
    assert not CSIL().needs_teacher_view(TopK())


def test_it_registers():
    registry = Registry()
    registry.add(distillzoo_csil, "distillzoo-csil", "0.1.0")
    assert registry.get("objective", "csil") is CSIL
