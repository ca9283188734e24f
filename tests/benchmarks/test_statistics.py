"""The statistics of the leaderboard against closed forms, published numbers and enumeration."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from distillzoo.benchmarks.statistics.aggregates import interquartile_mean, mean
from distillzoo.benchmarks.statistics.bootstrap import COVERAGE, Interval, label, stratified
from distillzoo.benchmarks.statistics.comparison import holm, permutation_test, probability_of_improvement
from distillzoo.benchmarks.statistics.profile import performance_profile, profile_band
from distillzoo.benchmarks.statistics.target import Claim, cost_to_reach, ratio_of_costs, share_reached

# rliable's own example, tests/rliable/metrics_test.py
RLIABLE_X = np.array([[1, 2], [2, 2], [1, 1], [2, 1]], dtype=float)
RLIABLE_Y = np.array([[1, 1], [2, 2], [3, 3]], dtype=float)

DARWIN = np.array([49, -67, 8, 16, 6, 23, 28, 41, 14, 29, 56, 24, 75, 60, -48], dtype=float)
"""Crossed less self-fertilised maize of 15 pairs, in eighths of an inch: Fisher's example of the test."""

INF = float("inf")


def seeded(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@st.composite
def matrices(draw, rows: int | None = None, tasks: int = 3) -> np.ndarray:
    """Scores with many ties."""
    runs = draw(st.integers(1, 6)) if rows is None else rows
    return np.array(draw(st.lists(st.integers(-4, 4), min_size=runs * tasks, max_size=runs * tasks)), float).reshape(
        runs, tasks
    )


# aggregates


def test_rliables_examples():
    assert mean(RLIABLE_X) == interquartile_mean(RLIABLE_X) == 1.5
    assert mean(RLIABLE_Y) == interquartile_mean(RLIABLE_Y) == 2.0
    assert probability_of_improvement(RLIABLE_X, RLIABLE_Y) == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("size", "kept"), [(1, [0]), (3, [0, 1, 2]), (4, [1, 2]), (5, [1, 2, 3]), (7, [1, 2, 3, 4, 5]), (8, [2, 3, 4, 5])]
)
def test_the_iqm_drops_a_quarter_rounded_down_at_each_end(size, kept):
    values = np.arange(size) ** 2.0
    shuffled = seeded().permutation(values)
    assert interquartile_mean(shuffled[:, None]) == interquartile_mean(shuffled[None]) == values[kept].mean()


def test_the_iqm_pools_the_tasks():
    """The middle four of 0, 1, 2, 3, 10, 20, 30, 100; the tasks' own IQMs would be 1.5 and 25."""
    assert interquartile_mean(np.array([[0, 10], [1, 20], [2, 30], [3, 100.0]])) == (2 + 3 + 10 + 20) / 4


@pytest.mark.parametrize("aggregate", [mean, interquartile_mean])
def test_leading_dimensions_are_kept(aggregate):
    many = seeded().normal(size=(7, 2, 5, 3))
    assert aggregate(many).shape == (7, 2)
    assert aggregate(many)[4, 1] == pytest.approx(float(aggregate(many[4, 1])))


@given(matrices(), st.randoms(use_true_random=False))
def test_the_order_of_runs_and_tasks_is_nothing(scores, draw):
    rows, columns = list(range(len(scores))), list(range(scores.shape[1]))
    draw.shuffle(rows)
    draw.shuffle(columns)
    other = scores[rows][:, columns]
    thresholds = np.arange(-5.0, 5.0)
    assert mean(other) == pytest.approx(float(mean(scores)))
    assert interquartile_mean(other) == pytest.approx(float(interquartile_mean(scores)))
    np.testing.assert_array_equal(performance_profile(other, thresholds), performance_profile(scores, thresholds))
    fixed = RLIABLE_Y[:, [0, 1, 0]]
    assert probability_of_improvement(scores[rows], fixed) == pytest.approx(
        float(probability_of_improvement(scores, fixed))
    )


@pytest.mark.parametrize("scores", [np.zeros(3), np.zeros((0, 2)), np.zeros((2, 0)), 1.0])
def test_scores_are_a_matrix(scores):
    with pytest.raises(ValueError, match=r"\[runs, tasks\]"):
        mean(scores)


@pytest.mark.parametrize("statistic", [mean, interquartile_mean, lambda s: performance_profile(s, np.zeros(1))])
def test_a_nan_is_refused(statistic):
    """Else the IQM would trim it as the best score."""
    with pytest.raises(ValueError, match="NaN"):
        statistic(np.array([[1.0], [np.nan]]))


# bootstrap


def test_the_interval_of_a_normal_mean_is_students():
    scores = seeded(1).normal(3.0, 2.0, size=(100, 1))
    found = stratified(mean, scores, generator=seeded(), resamples=20000)
    student = stats.t.interval(0.95, 99, scores.mean(), scores.std(ddof=1) / 10)
    np.testing.assert_allclose([found.low, found.high], student, atol=0.03)
    assert found.value == pytest.approx(scores.mean())


def test_the_interval_over_tasks_has_their_independent_variance():
    """Standard deviations of 1 and 3 give sqrt(1 + 9) / 2 / sqrt(n); the 50 between the tasks doesn't count."""
    scores = seeded(1).normal([0.0, 50.0], [1.0, 3.0], size=(100, 2))
    found = stratified(mean, scores, generator=seeded(), resamples=20000)
    half = 1.96 * math.sqrt(scores.var(0).sum()) / 2 / 10
    np.testing.assert_allclose([found.low, found.high], [scores.mean() - half, scores.mean() + half], atol=0.02)


@pytest.mark.parametrize("paired", [False, True])
def test_two_runs_by_hand(paired):
    """The mean of two draws from {0, 1} is 0, 1/2, 1 with 1/4, 1/2, 1/4: 20% beyond each end leaves 0 to 1, 30% 1/2."""
    scores = np.array([[0.0], [1.0]])
    wide = stratified(mean, scores, generator=seeded(), confidence=0.6, paired=paired)
    narrow = stratified(mean, scores, generator=seeded(), confidence=0.4, paired=paired)
    assert (wide, narrow) == (Interval(0.5, 0.0, 1.0), Interval(0.5, 0.5, 0.5))


def test_each_task_is_resampled_on_its_own_and_paired_rows_stay_whole():
    """Two tasks that cancel within a run: whole rows always sum to 0, tasks on their own don't."""
    scores = np.array([[1.0, -1.0], [-1.0, 1.0], [3.0, -3.0]])
    assert stratified(mean, scores, generator=seeded(), paired=True) == Interval(0.0, 0.0, 0.0)
    found = stratified(mean, scores, generator=seeded())
    assert found.low < 0 < found.high


def test_paired_matrices_share_their_rows():
    scores = seeded(1).normal(size=(6, 2))

    def difference(x, y):
        return mean(x) - mean(y)

    found = stratified(difference, scores, scores - 1, generator=seeded(), paired=True)
    np.testing.assert_allclose([found.value, found.low, found.high], 1.0)
    apart = stratified(difference, scores, scores - 1, generator=seeded())
    assert apart.low < 0.9
    assert apart.high > 1.1


def test_matrices_of_different_numbers_of_runs():
    found = stratified(probability_of_improvement, RLIABLE_X, RLIABLE_Y, generator=seeded())
    assert found.value == pytest.approx(1 / 3)
    assert found.low < 1 / 3 < found.high
    with pytest.raises(ValueError, match="equal in number"):
        stratified(probability_of_improvement, RLIABLE_X, RLIABLE_Y, generator=seeded(), paired=True)


@pytest.mark.parametrize("paired", [False, True])
def test_the_seed_decides_the_interval(paired):
    scores = seeded(1).normal(size=(5, 3))
    np.random.seed(0)
    one = stratified(interquartile_mean, scores, generator=seeded(7), paired=paired)
    np.random.seed(1)
    assert stratified(interquartile_mean, scores, generator=seeded(7), paired=paired) == one
    assert stratified(interquartile_mean, scores, generator=seeded(8), paired=paired) != one


def test_the_inputs_are_left_as_they_were():
    scores = seeded(1).normal(size=(5, 3))
    before = scores.copy()
    stratified(interquartile_mean, scores, generator=seeded())
    np.testing.assert_array_equal(scores, before)


def test_one_run_has_a_value_and_no_interval():
    for several in ([RLIABLE_X[:1]], [RLIABLE_X[:1], RLIABLE_Y]):
        found = stratified(lambda x, *_: mean(x), *several, generator=seeded())
        assert found.value == 1.5
        assert math.isnan(found.low)
        assert math.isnan(found.high)
    assert label(1) == "1 seed, not a benchmark"
    assert label(5) == "5 seeds"


def test_a_statistic_of_all_resamples_at_once_is_asked_for():
    with pytest.raises(ValueError, match="leading dimensions"):
        stratified(np.mean, RLIABLE_X, generator=seeded())
    with pytest.raises(ValueError, match="between 0 and 1"):
        stratified(mean, RLIABLE_X, generator=seeded(), confidence=95)


@given(st.lists(st.integers(-9, 9), min_size=1, max_size=5), st.booleans(), st.integers(0, 99))
@settings(max_examples=50, deadline=None)
def test_the_interval_of_symmetric_scores_holds_their_mean(half, paired, seed):
    scores = np.array([[2.0 + x, 5.0 - x] for x in (*half, *(-x for x in half))])
    found = stratified(mean, scores, generator=seeded(seed), resamples=500, paired=paired)
    assert found.low - 1e-9 <= found.value <= found.high + 1e-9


def coverage(scores_of, sets: int = 300, paired: bool = False) -> float:
    """Share of simulated sets of mean 0 whose interval holds 0."""
    draw = seeded()
    found = [stratified(mean, scores_of(draw), generator=draw, resamples=1000, paired=paired) for _ in range(sets)]
    return float(np.mean([one.low <= 0 <= one.high for one in found]))


def test_the_interval_covers_the_mean_of_normal_scores():
    assert 0.85 <= coverage(lambda draw: draw.normal(size=(10, 4))) <= 0.98


@pytest.mark.parametrize("runs", sorted(COVERAGE))
def test_what_is_said_of_few_runs_is_so(runs):
    found = coverage(lambda draw: draw.normal(size=(runs, 1)), sets=1500)
    assert 100 * found == pytest.approx(COVERAGE[runs], abs=4), "three standard errors are 3.9"


def test_tasks_that_share_a_training_need_whole_rows():
    """A seed that is good for one task is good for all: on their own they look like four times the evidence."""

    def shared(draw):
        return draw.normal(size=(10, 4)) + draw.normal(size=(10, 1))

    assert coverage(shared) < 0.82
    assert coverage(shared, paired=True) >= 0.85


# comparison


def test_the_probability_of_improvement_by_hand():
    """Task 0: 3 beats 1 and 2, 1 ties 1: 2.5 of 4. Task 1: 0 loses to both, 5 ties 5 and beats 4: 1.5 of 4."""
    x, y = np.array([[3.0, 0.0], [1.0, 5.0]]), np.array([[1.0, 5.0], [2.0, 4.0]])
    assert probability_of_improvement(x, y) == pytest.approx((2.5 + 1.5) / 8)


def test_the_probability_of_improvement_is_mann_and_whitneys():
    x, y = seeded(1).integers(0, 6, size=(7, 3)).astype(float), seeded(2).integers(0, 6, size=(5, 3)).astype(float)
    u = [stats.mannwhitneyu(x[:, k], y[:, k]).statistic / 35 for k in range(3)]
    assert probability_of_improvement(x, y) == pytest.approx(np.mean(u))


@given(matrices(), matrices())
def test_the_probabilities_of_improvement_add_up_to_one(x, y):
    assert probability_of_improvement(x, y) + probability_of_improvement(y, x) == pytest.approx(1.0)


def test_the_tasks_of_both_are_the_same():
    with pytest.raises(ValueError, match="tasks"):
        probability_of_improvement(RLIABLE_X, RLIABLE_X[:, :1])


def test_fishers_test_of_darwins_maize():
    """863 of the 2^15 signings sum to at least the observed 314: 5.267%, both sides."""
    assert DARWIN.sum() == 314
    p = permutation_test(DARWIN[:, None], np.zeros((15, 1)), seeded(), resamples=2**15)
    assert p == 2 * 863 / 2**15
    assert permutation_test(DARWIN[:, None], np.zeros((15, 1)), seeded()) == pytest.approx(p, abs=0.01)


@given(matrices(rows=4), matrices(rows=4))
@settings(deadline=None)
def test_the_paired_test_is_the_enumeration_of_exchanged_rows(x, y):
    found = []
    for exchanged in itertools.product([False, True], repeat=4):
        pairs = [(b, a) if swap else (a, b) for a, b, swap in zip(x, y, exchanged, strict=True)]
        found.append(round(sum(a.sum() - b.sum() for a, b in pairs)))
    extreme = [abs(difference) >= abs(round(x.sum() - y.sum())) for difference in found]
    assert permutation_test(x, y, seeded()) == np.mean(extreme)


@given(matrices(rows=3), matrices(rows=4))
@settings(deadline=None)
def test_the_unpaired_test_is_the_enumeration_of_splits(x, y):
    """In whole numbers: 4 sum(x) - 3 sum(y) is 12 times the difference of means, times the tasks."""
    rows = [*x, *y]
    found = []
    for first in itertools.combinations(range(7), 3):
        ours = sum(rows[i].sum() for i in first)
        theirs = sum(rows[i].sum() for i in range(7) if i not in first)
        found.append(abs(4 * ours - 3 * theirs))
    extreme = [difference >= abs(4 * x.sum() - 3 * y.sum()) for difference in found]
    assert permutation_test(x, y, seeded(), paired=False) == pytest.approx(np.mean(extreme))


@pytest.mark.parametrize(("paired", "kind"), [(True, "samples"), (False, "independent")])
def test_the_test_is_scipys(paired, kind):
    x, y = seeded(1).normal(size=(6, 1)), seeded(2).normal(0.8, size=(6, 1))
    theirs = stats.permutation_test(
        (x[:, 0], y[:, 0]), lambda a, b: a.mean() - b.mean(), permutation_type=kind, n_resamples=np.inf
    )
    assert permutation_test(x, y, seeded(), paired=paired) == pytest.approx(theirs.pvalue)


def test_the_smallest_p_of_five_seeds():
    x, y = 10.0 + np.arange(5)[:, None], np.arange(5)[:, None]
    assert permutation_test(x, y, seeded()) == 2 / 2**5 == 0.0625
    assert permutation_test(x, y, seeded(), paired=False) == 2 / math.comb(10, 5)
    assert permutation_test(x, y[:4], seeded(), paired=False) == 1 / math.comb(9, 4)


@pytest.mark.parametrize("paired", [True, False])
def test_random_exchanges_never_give_zero_and_are_near_the_enumeration(paired):
    x, y = seeded(1).normal(1.0, size=(7, 2)), seeded(2).normal(size=(7, 2))
    exact = permutation_test(x, y, seeded(), paired=paired)
    assert permutation_test(x, y, seeded(), resamples=100, paired=paired) == pytest.approx(exact, abs=0.1)
    far = permutation_test(x + 100, y, seeded(3), resamples=19, paired=paired)
    assert far == 1 / 20
    assert permutation_test(x, y, seeded(5), 100, paired) == permutation_test(x, y, seeded(5), 100, paired)


@pytest.mark.parametrize("paired", [True, False])
def test_the_tests_keep_their_level_where_tasks_share_a_training(paired):
    """Task by task, as many exchanges would make 4 scores of a run 4 pieces of evidence."""
    draw = seeded()
    below = 0
    for _ in range(400):
        x, y = draw.normal(size=(2, 6, 1)) + 0.1 * draw.normal(size=(2, 6, 4))
        below += permutation_test(x, y, draw, paired=paired) <= 0.05
    assert below / 400 <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / 400)


def test_rounding_does_not_break_a_tie():
    """0.1 + 0.2 isn't 0.3: the means are equal but for rounding, so that every exchange differs as much."""
    x, y = np.array([[0.1], [0.2], [0.3]]), np.array([[0.2], [0.3], [0.1]])
    assert permutation_test(x, y, seeded()) == permutation_test(x, y, seeded(), paired=False) == 1.0


def test_what_the_test_refuses():
    with pytest.raises(ValueError, match="equal in number"):
        permutation_test(RLIABLE_X, RLIABLE_Y, seeded())
    with pytest.raises(ValueError, match="finite"):
        permutation_test(np.array([[INF]]), np.array([[1.0]]), seeded())


def test_holm_by_hand():
    """4 x 0.005, 3 x 0.01, 2 x 0.03, and 0.04, which can't be below the one before it."""
    found = holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005})
    assert found == pytest.approx({"a": 0.03, "b": 0.06, "c": 0.06, "d": 0.02})
    assert list(found) == ["a", "b", "c", "d"]
    assert holm({}) == {}
    assert holm({"a": 0.6, "b": 0.7}) == {"a": 1.0, "b": 1.0}
    with pytest.raises(ValueError, match="not p-values"):
        holm({"a": float("nan")})


@given(st.lists(st.floats(0, 1), max_size=8))
def test_holm_adjusts_upwards_in_order_and_no_more_than_bonferroni(values):
    raw = {str(i): p for i, p in enumerate(values)}
    found = holm(raw)
    order = sorted(raw, key=raw.__getitem__)
    assert all(raw[name] <= found[name] <= min(1.0, len(raw) * raw[name]) for name in raw)
    assert [found[name] for name in order] == sorted(found.values())


# profile


def test_the_profile_counts_strictly_above():
    np.testing.assert_array_equal(
        performance_profile(RLIABLE_Y, np.array([0.9, 1.0, 1.5, 2.0, 3.0])), np.array([6, 4, 4, 2, 0]) / 6
    )


@given(matrices())
def test_the_profile_falls_from_one_to_zero_and_holds_the_mean(scores):
    """Its area above the lowest threshold is the mean, for whole scores and thresholds one apart."""
    found = performance_profile(scores, np.arange(-5.0, 5.0))
    assert (np.diff(found) <= 0).all()
    assert (found[0], found[-1]) == (1.0, 0.0)
    assert found.sum() - 5 == pytest.approx(float(mean(scores)))


def test_the_band_is_the_interval_of_each_threshold():
    scores = seeded(1).normal(size=(8, 3))
    thresholds = np.linspace(-2, 2, 9)
    band = profile_band(scores, thresholds, seeded(3))
    np.testing.assert_array_equal(band.value, performance_profile(scores, thresholds))
    assert ((band.low <= band.value) & (band.value <= band.high)).all()
    for i, threshold in enumerate(thresholds):
        one = stratified(lambda s, tau=threshold: (s > tau).mean((-2, -1)), scores, generator=seeded(3))
        assert (band.low[i], band.high[i]) == (one.low, one.high)
    alone = profile_band(scores[:1], thresholds, seeded())
    assert alone.low.shape == (9,)
    assert np.isnan(alone.low).all()
    assert np.isnan(alone.high).all()


# target


def test_the_cost_to_reach_by_hand():
    cost, score = np.array([10.0, 20.0, 40.0, 80.0]), np.array([1.0, 3.0, 2.0, 6.0])
    assert cost_to_reach(cost, score, 0.5) == cost_to_reach(cost, score, 1.0) == 10.0
    assert cost_to_reach(cost, score, 2.0) == 15.0
    assert cost_to_reach(cost, score, 3.0) == 20.0
    assert cost_to_reach(cost, score, 4.0) == 60.0
    assert cost_to_reach(cost, score, 6.1) == INF
    assert cost_to_reach(cost, -score, -2.5) == 10.0, "a lower score is reached from above by negating"


@given(st.lists(st.integers(-9, 9), min_size=1, max_size=9), st.integers(-9, 9), st.integers(-9, 9))
def test_a_higher_target_never_costs_less(scores, one, other):
    score = np.array(scores, float)
    cost = 1.0 + np.arange(len(score))
    low, high = (cost_to_reach(cost, score, target) for target in sorted((one, other)))
    assert 1 <= low <= high
    assert (high == INF) == (score.max() < max(one, other))


@pytest.mark.parametrize(
    ("cost", "score", "match"),
    [
        ([], [], "a curve is"),
        ([1.0, 2.0], [1.0], "a curve is"),
        ([2.0, 1.0], [0.0, 1.0], "increasing"),
        ([1.0, 1.0], [0.0, 1.0], "increasing"),
        ([1.0, 2.0], [0.0, float("nan")], "finite"),
    ],
)
def test_what_is_no_curve(cost, score, match):
    with pytest.raises(ValueError, match=match):
        cost_to_reach(np.array(cost), np.array(score), 1.0)


def test_the_ratio_of_medians():
    ours, theirs = np.array([1.0, 2.0, 3.0, 4.0, 90.0]), np.array([10.0, 12.0, 14.0])
    found = ratio_of_costs(ours, theirs, seeded())
    assert found.value == 3 / 12
    assert 1 / 14 <= found.low < found.value < found.high <= 90 / 10
    assert ratio_of_costs(ours, theirs, seeded()) == found
    assert ratio_of_costs(ours, 4 * ours, seeded(), paired=True) == Interval(0.25, 0.25, 0.25)


def test_runs_that_never_reach_the_target():
    some, none, all_of_them = np.array([1.0, 2.0, INF]), np.full(3, INF), np.array([4.0, 4.0, 4.0])
    assert share_reached(some) == pytest.approx(2 / 3)
    assert (share_reached(none), share_reached(all_of_them)) == (0.0, 1.0)
    found = ratio_of_costs(some, all_of_them, seeded())
    assert (found.value, found.low, found.high) == (0.5, 0.25, INF)
    assert ratio_of_costs(none, all_of_them, seeded()) == Interval(INF, INF, INF)
    assert ratio_of_costs(all_of_them, none, seeded()) == Interval(0.0, 0.0, 0.0)
    open_ended = ratio_of_costs(none, none, seeded())
    assert math.isnan(open_ended.value)
    assert (open_ended.low, open_ended.high) == (0.0, INF)
    assert (ratio_of_costs(none, some, seeded()).low, ratio_of_costs(none, some, seeded()).high) == (0.0, INF)
    assert math.isnan(ratio_of_costs(some[:1], all_of_them, seeded()).low)
    assert math.isnan(ratio_of_costs(none[:1], none, seeded()).high)


@pytest.mark.parametrize("costs", [[0.0, 1.0], [-1.0, 1.0], [float("nan"), 1.0], [[1.0]]])
def test_what_is_no_cost(costs):
    with pytest.raises(ValueError, match="costs are positive"):
        ratio_of_costs(np.array(costs), np.ones(2), seeded())


@pytest.mark.parametrize(
    ("claim", "low", "high", "verdict"),
    [
        (Claim(at_most=1 / 3), 0.2, 1 / 3, "confirmed"),
        (Claim(at_most=1 / 3), 0.2, 0.34, "undecided"),
        (Claim(at_most=1 / 3), 0.34, 0.5, "refuted"),
        (Claim(at_most=1 / 3), INF, INF, "refuted"),
        (Claim(at_most=1 / 3), 0.0, INF, "undecided"),
        (Claim(at_least=2), 2.0, INF, "confirmed"),
        (Claim(at_least=2), 0.5, 1.9, "refuted"),
        (Claim(2, 4), 2.5, 3.5, "confirmed"),
        (Claim(2, 4), 1.0, 5.0, "undecided"),
        (Claim(2, 4), 1.0, 1.5, "refuted"),
        (Claim(2, 4), 4.5, 5.0, "refuted"),
        (Claim(2, 4), float("nan"), float("nan"), "undecided"),
    ],
)
def test_the_verdict_on_a_claim(claim, low, high, verdict):
    assert claim.verdict(Interval(1.0, low, high)) == verdict


@pytest.mark.parametrize(("low", "high"), [(-INF, INF), (2.0, 1.0), (float("nan"), 1.0)])
def test_a_claim_claims_something(low, high):
    with pytest.raises(ValueError, match="nothing is claimed"):
        Claim(low, high)


def test_three_times_cheaper_is_confirmed_refuted_or_open():
    draw = seeded()
    claim = Claim(at_most=1 / 3)
    theirs = draw.lognormal(math.log(100), 0.1, size=10)
    verdicts = [
        claim.verdict(ratio_of_costs(draw.lognormal(math.log(cost), 0.1, size=10), theirs, draw))
        for cost in (20, 100 / 3, 60)
    ]
    assert verdicts == ["confirmed", "undecided", "refuted"]
