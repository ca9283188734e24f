"""The subset top-h against its definition: a slow reference in plain Python, and sets found by hand."""

import itertools
import math

import distillzoo_top_h
import pytest
import torch
from distillzoo_top_h import top_h
from distillzoo_top_h.top_h import TopH
from hypothesis import given, settings
from hypothesis import strategies as st

from distillzoo.core import logits as logits_module
from distillzoo.core.checks import parametrize_with_checks
from distillzoo.core.logits import DenseLogits
from distillzoo.core.registry import Registry
from distillzoo.core.subset import Subset

INF = float("inf")

rows = st.lists(
    st.one_of(st.floats(-12, 12).map(lambda x: round(x, 2)), st.sampled_from([0.0, 1.0, -INF])), min_size=1, max_size=40
).filter(lambda row: max(row) > -INF)
shares = st.floats(0.01, 1.0).map(lambda alpha: round(alpha, 3))


@parametrize_with_checks([*TopH.examples(), TopH(alpha=0.1), TopH(alpha=0.999), TopH(k_max=1)])
def test_conformance(check):
    check()


def entropy(weights: list[float]) -> float:
    """Entropy in nats of a distribution given up to a factor."""
    total = math.fsum(weights)
    return -math.fsum(w / total * math.log(w / total) for w in weights if w > 0)


def in_order(row: list[float]) -> list[int]:
    """Tokens that have a probability, the likeliest first, the lower id first among equals."""
    return [a for a in sorted(range(len(row)), key=lambda a: (-row[a], a)) if row[a] > -INF]


def reference(row: list[float], alpha: float) -> list[int]:
    """The paper's Algorithm 1: add token after token, take the one back that breaks the bound, and stop."""
    order = in_order(row)
    weights = {a: math.exp(row[a] - max(row)) for a in order}
    bound = alpha * entropy(list(weights.values()))
    chosen: list[int] = []
    for token in order:
        chosen.append(token)
        if alpha < 1 and len(chosen) > 1 and entropy([weights[a] for a in chosen]) > bound:
            return chosen[:-1]
    return chosen


def sets(subset: Subset) -> list[list[int]]:
    return [row[mask].tolist() for row, mask in zip(subset.actions, subset.mask, strict=True)]


def view(*table: list[float]) -> DenseLogits:
    return DenseLogits(torch.tensor(table, dtype=torch.float64))


@settings(deadline=None, max_examples=300)
@given(rows, shares)
def test_it_is_the_greedy_set_of_the_paper(row, alpha):
    (found,) = sets(TopH(alpha=alpha).select(view(row)))
    expected = reference(row, alpha)
    if found != expected:  # only tokens that meet the bound to the last bits may go either way
        short, long = sorted((found, expected), key=len)
        bound = alpha * entropy([math.exp(z - max(row)) for z in row])
        assert long[: len(short)] == short
        for size in range(len(short) + 1, len(long) + 1):
            assert math.isclose(entropy([math.exp(row[a] - max(row)) for a in long[:size]]), bound, rel_tol=1e-9)


@settings(deadline=None, max_examples=300)
@given(rows)
def test_the_entropy_of_the_prefixes_grows(row):
    """The j likeliest tokens have the share S_j / S_m of the first m, which falls with m: q_m majorises q_{m+1}.

    So the first token that breaks the bound ends the set: no longer prefix could keep it.
    """
    weights = [math.exp(row[a] - max(row)) for a in in_order(row)]
    steps = [entropy(weights[:m]) for m in range(1, len(weights) + 1)]
    for small, large in itertools.pairwise(steps):
        assert large >= small - 1e-12


@settings(deadline=None, max_examples=200)
@given(rows, shares)
def test_stopping_at_the_first_violation_gives_the_largest_prefix_within_the_bound(row, alpha):
    order = in_order(row)
    weights = [math.exp(row[a] - max(row)) for a in order]
    bound = alpha * entropy(weights)
    kept = reference(row, alpha)
    for size in range(len(kept) + 1, len(order) + 1):
        assert entropy(weights[:size]) > bound - 1e-12


@settings(deadline=None, max_examples=200)
@given(rows, shares)
def test_the_entropy_of_the_set_is_within_the_bound(row, alpha):
    (found,) = sets(TopH(alpha=alpha).select(view(row)))
    weights = [math.exp(z - max(row)) for z in row]
    assert entropy([weights[a] for a in found]) <= alpha * entropy(weights) + 1e-9


@pytest.mark.parametrize(("alpha", "size"), [(0.4, 1), (0.52, 1), (0.53, 2), (0.78, 2), (0.79, 3), (0.99, 3), (1.0, 4)])
def test_by_hand(alpha, size):
    """Probabilities 1/2, 1/4, 1/8, 1/8. In bits:

    H(p) = 1/2 + 2/4 + 3/8 + 3/8 = 7/4;  H(q_2) of (2/3, 1/3) = log2 3 - 2/3 = 0.918;
    H(q_3) of (4/7, 2/7, 1/7) = log2 7 - (4 * 2 + 2 * 1) / 7 = 1.379.
    As shares of H(p): 0.5247 and 0.7879.
    """
    subset = TopH(alpha=alpha).select(view([math.log(p) for p in (1 / 8, 1 / 2, 1 / 8, 1 / 4)]))
    assert sets(subset) == [[1, 3, 0, 2][:size]]
    assert subset.mass.item() == pytest.approx([1 / 2, 3 / 4, 7 / 8, 1][size - 1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("tenths", range(1, 11))
def test_of_equal_tokens_a_power_is_kept(tenths, dtype):
    """H(q_k) = log k <= alpha log M, so k = floor(M^alpha), also where M^alpha is whole; the lower ids go first."""
    for root in (1, 2, 3):
        (found,) = sets(TopH(alpha=tenths / 10).select(DenseLogits(torch.full((1, root**10), -3.0, dtype=dtype))))
        assert found == list(range(root**tenths))


@pytest.mark.parametrize(("tokens", "kept"), [(1, 1), (2, 1), (3, 1), (4, 2), (15, 3), (16, 4), (17, 4)])
def test_of_few_equal_tokens_the_root_is_kept(tokens, kept):
    assert sets(TopH(alpha=0.5).select(view([1.0] * tokens))) == [list(range(kept))]


@pytest.mark.parametrize("alpha", [0.1, 0.4, 0.9, 1.0])
def test_a_one_hot_teacher_gives_one_token(alpha):
    assert sets(TopH(alpha=alpha).select(view([-INF, 5.0, -INF]))) == [[1]]


def test_weights_that_round_to_nothing_are_left_out_below_one():
    teacher = DenseLogits(torch.tensor([[0.0] + [-200.0] * 9]))  # exp(-200) is 0 in float32
    assert sets(TopH(alpha=0.9).select(teacher)) == [[0]]
    assert sets(TopH(alpha=1.0).select(teacher)) == [list(range(10))]


@pytest.mark.parametrize("gap", [10.0, 15.0, 24.0, 60.0])
def test_float32_finds_the_sets_of_sharp_states(gap):
    """All tokens but one have less mass together than float32 can take from 1, and the set depends on it."""
    row = torch.tensor([0.0, *(-gap - 0.001 * i for i in range(500))])
    (found,) = sets(TopH().select(DenseLogits(row[None])))
    assert found == reference(row.tolist(), 0.4)
    assert 100 < len(found) < 300


def test_an_entropy_that_falls_by_rounding_leaves_no_gap(monkeypatch):
    exact = top_h._entropies

    def rough(weight: torch.Tensor, log_weight: torch.Tensor) -> torch.Tensor:
        return exact(weight, log_weight) + 0.1 * (torch.arange(weight.shape[1]) % 2)

    monkeypatch.setattr(top_h, "_entropies", rough)
    mask = TopH(alpha=0.8).select(view(*([float(i), 0.0, 0.0, 0.0, 0.0, 0.0] for i in range(9)))).mask
    assert not bool((mask[:, 1:] & ~mask[:, :-1]).any())


@pytest.mark.parametrize("alpha", [0.4, 0.7, 0.95])
def test_a_wide_set_grows_beyond_the_first_look(alpha):
    table = [
        [-3.0 * i for i in range(3000)],
        [-0.002 * i for i in range(3000)],
        [-1.1 * math.log(1 + i) for i in range(3000)],
    ]
    subset = TopH(alpha=alpha).select(view(*table))
    assert sets(subset) == [reference(row, alpha) for row in table]
    assert subset.actions.shape[1] == int(subset.size.max())
    assert not bool(subset.actions[~subset.mask].any())
    assert int(subset.size.max()) > (64 if alpha > 0.5 else 8)


def test_k_max_cuts_and_the_mass_says_so():
    subset = TopH(alpha=1.0, k_max=3).select(view([0.0] * 10))
    assert sets(subset) == [[0, 1, 2]]
    assert subset.mass.item() == pytest.approx(0.3)


def test_a_row_s_set_does_not_depend_on_the_chunks(monkeypatch):
    table = torch.randn(30, 50, generator=torch.Generator().manual_seed(0)).double() * 3
    before = TopH().select(DenseLogits(table))
    monkeypatch.setattr(logits_module, "BLOCK_ELEMENTS", 200)
    assert sets(TopH().select(DenseLogits(table))) == sets(before)


@pytest.mark.parametrize("alpha", [0.4, 1.0])
def test_a_teacher_s_nan_shows(alpha):
    subset = TopH(alpha=alpha).select(DenseLogits(torch.full((1, 5), math.nan)))
    assert subset.size.tolist() == [1]
    assert math.isnan(subset.mass.item())


def test_no_mass_is_above_one():
    table = torch.randn(500, 40, generator=torch.Generator().manual_seed(0))
    assert float(TopH(alpha=1.0).select(DenseLogits(table)).mass.max()) == 1.0


def test_no_rows():
    subset = TopH().select(DenseLogits(torch.zeros(0, 5)))
    assert subset.mass.shape == (0,)


@pytest.mark.parametrize("alpha", [0.0, -1.0, 1.1])
def test_a_share_outside_its_range_is_refused(alpha):
    with pytest.raises(ValueError, match="alpha"):
        TopH(alpha=alpha)


def test_it_registers():
    registry = Registry()
    registry.add(distillzoo_top_h, "distillzoo-top-h", "0.1.0")
    assert registry.get("subset", "top-h") is TopH
