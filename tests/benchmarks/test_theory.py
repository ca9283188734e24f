"""Propositions 1 to 4 of arXiv:2505.20335 on MDPs solved exactly."""

import numpy as np
import pytest

from distillzoo.benchmarks.theory.tabular import (
    MDP,
    evaluate,
    gap,
    kappa,
    nucleus,
    policy,
    projected,
    random_mdp,
    soft_value,
    solve,
    token_tree,
)

MASSES = (0.3, 0.5, 0.8, 0.9, 0.99)
GAMMAS = (0.5, 0.9, 0.99)
TINY = 1e-7


def worlds(gamma: float) -> list[MDP]:
    return [random_mdp(20, 6, gamma, seed) for seed in range(4)] + [token_tree(4, 5, gamma, seed) for seed in range(2)]


def test_the_solver_by_hand():
    """One state with two actions that end it: Q = r, V = log(e^1 + e^2); with action 0 alone V = 1."""
    mdp = MDP(np.array([[1.0, 2.0]]), np.zeros((1, 2, 1)), 0.9)
    assert solve(mdp).tolist() == [[1.0, 2.0]]
    assert soft_value(solve(mdp), np.array([[True, True]]))[0] == pytest.approx(np.log(np.e + np.e**2))
    assert soft_value(solve(mdp), np.array([[True, False]]))[0] == 1.0


def test_a_loop_by_hand():
    """One state, one action back to itself, reward 1, no entropy: Q = 1 / (1 - gamma)."""
    mdp = MDP(np.array([[1.0]]), np.ones((1, 1, 1)), 0.9)
    assert solve(mdp)[0, 0] == pytest.approx(10.0)
    assert evaluate(mdp, np.ones((1, 1)))[0, 0] == pytest.approx(10.0)


def test_the_soft_optimal_policy_evaluates_to_its_own_q():
    for mdp in worlds(0.9):
        best = solve(mdp)
        np.testing.assert_allclose(evaluate(mdp, policy(best)), best, rtol=1e-9)


def test_the_nucleus_is_the_smallest_set_that_reaches_p():
    pi = np.array([[0.5, 0.3, 0.2], [0.1, 0.1, 0.8]])
    assert nucleus(pi, 0.8).tolist() == [[True, True, False], [False, False, True]]
    assert nucleus(pi, 0.81).tolist() == [[True, True, True], [True, False, True]]
    np.testing.assert_allclose(projected(pi, nucleus(pi, 0.8))[0], [0.625, 0.375, 0.0])


@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("p", MASSES)
def test_proposition_1_the_operator_contracts_on_the_sets(p, gamma):
    draw = np.random.default_rng(0)
    for mdp in worlds(gamma):
        allowed = nucleus(policy(solve(mdp)), p)
        worst = 0.0
        for _ in range(20):
            one, other = draw.normal(scale=5, size=(2, *mdp.reward.shape))
            before = np.abs(one - other)[allowed].max()
            after = mdp.backup(soft_value(one, allowed)) - mdp.backup(soft_value(other, allowed))
            worst = max(worst, np.abs(after)[allowed].max() / before)
        assert worst <= gamma + TINY


def test_the_contraction_factor_is_attained():
    """Two tables a constant apart stay gamma times that apart, so no smaller factor would do."""
    mdp = random_mdp(20, 6, 0.9, 0)
    allowed = nucleus(policy(solve(mdp)), 0.8)
    one = np.random.default_rng(1).normal(size=mdp.reward.shape)
    difference = mdp.backup(soft_value(one + 2.0, allowed)) - mdp.backup(soft_value(one, allowed))
    np.testing.assert_allclose(difference, 1.8)


@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("p", MASSES)
def test_propositions_2_to_4_the_bound_and_the_sandwich(p, gamma):
    for mdp in worlds(gamma):
        best = solve(mdp)
        allowed = nucleus(policy(best), p)
        reduced = solve(mdp, allowed)
        fixed = evaluate(mdp, projected(policy(best), allowed))
        assert (fixed[allowed] <= reduced[allowed] + TINY).all(), "the reduced optimum is at least the projected policy"
        assert (reduced[allowed] <= best[allowed] + TINY).all(), "fewer actions are never worth more"
        assert (best - fixed)[allowed].max() <= kappa(p, gamma) + TINY
        assert (best - reduced)[allowed].max() <= kappa(p, gamma) + TINY


def test_the_whole_vocabulary_costs_nothing():
    for mdp in worlds(0.99):
        found = gap(mdp, 1.0)
        assert found.reduced == pytest.approx(0.0, abs=TINY)
        assert found.projected == pytest.approx(0.0, abs=TINY)
        assert found.bound == 0.0


def test_the_bound_is_nearly_attained_where_every_set_just_reaches_p():
    """Two actions of probability p and 1 - p in a state that leads back to itself: the loss is kappa(p) to rounding."""
    p, gamma = 0.8, 0.9
    # V = log(e^a + e^b) with Q(a) - V = log p; equal successors, so only the rewards matter
    reward = np.log(np.array([[p, 1 - p]]))
    mdp = MDP(reward, np.ones((1, 2, 1)), gamma)
    found = gap(mdp, p)
    assert found.bound == pytest.approx(kappa(p, gamma))
    assert found.reduced == pytest.approx(found.bound, rel=1e-9)
