"""Subsets against the definition of the nucleus, and what every subset promises."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distillzoo.core.logits import DenseLogits
from distillzoo.core.subset import Subset
from distillzoo.plugins.subsets.full import Full
from distillzoo.plugins.subsets.top_k import TopK
from distillzoo.plugins.subsets.top_p import TopP
from tests.reference.losses import nucleus, softmax

INF = float("inf")

logits = st.lists(
    st.one_of(st.floats(-8, 8).map(lambda x: round(x, 2)), st.sampled_from([0.0, 1.0, -INF])), min_size=2, max_size=30
).filter(lambda row: max(row) > -INF)


def sets(subset: Subset) -> list[list[int]]:
    return [row[mask].tolist() for row, mask in zip(subset.actions, subset.mask, strict=True)]


def view(*rows: list[float]) -> DenseLogits:
    return DenseLogits(torch.tensor(rows, dtype=torch.float64))


@settings(deadline=None, max_examples=200)
@given(logits, st.floats(0.01, 1.0).map(lambda p: round(p, 3)))
def test_top_p_is_the_nucleus(row, p):
    (found,) = sets(TopP(p=p).select(view(row)))
    expected = nucleus(row, p)
    if found != expected:  # only a mass that meets p to the last bit may go either way
        short, long = sorted((found, expected), key=len)
        probs = softmax(row)
        assert long[: len(short)] == short
        assert len(long) == len(short) + 1
        assert math.isclose(sum(probs[a] for a in short), p, rel_tol=1e-9)


@settings(deadline=None, max_examples=100)
@given(logits, st.integers(1, 40))
def test_top_k_takes_the_k_most_probable(row, k):
    (found,) = sets(TopK(k=k).select(view(row)))
    order = sorted(range(len(row)), key=lambda a: (-row[a], a))
    assert found == [a for a in order[:k] if row[a] > -INF]


@settings(deadline=None, max_examples=100)
@given(logits, st.floats(0.05, 0.9), st.floats(0.0, 0.1))
def test_top_p_grows_with_p(row, p, more):
    (small,), (large,) = sets(TopP(p=p).select(view(row))), sets(TopP(p=p + more).select(view(row)))
    assert large[: len(small)] == small


@pytest.mark.parametrize("part", [TopP(p=0.3), TopP(p=1.0), TopP(p=0.9, k_max=2), TopK(k=3), TopK(k=100)])
def test_sets_are_sorted_unique_and_carry_their_mass(part):
    rows = torch.randn(20, 12).double()
    subset = part.select(DenseLogits(rows))
    probs = rows.softmax(1)
    for i, tokens in enumerate(sets(subset)):
        assert tokens
        assert len(set(tokens)) == len(tokens)
        found = subset.logprobs[i][subset.mask[i]]
        torch.testing.assert_close(found, probs[i, tokens].log())
        assert found.tolist() == sorted(found.tolist(), reverse=True)
        torch.testing.assert_close(subset.mass[i], probs[i, tokens].sum())


def test_ties_go_to_the_lower_id():
    (found,) = sets(TopP(p=0.5).select(view([1.0] * 4)))
    assert found == [0, 1]


def test_a_one_hot_teacher_gives_one_token_at_any_p():
    for p in (0.1, 0.8, 1.0):
        assert sets(TopP(p=p).select(view([-INF, 5.0, -INF]))) == [[1]]


def test_p_one_is_the_whole_support_however_small_its_tail():
    row = [0.0] + [-40.0] * 9  # in float32 a running sum reaches 1 at once
    assert sets(TopP(p=1.0).select(DenseLogits(torch.tensor([row])))) == [list(range(10))]


def test_a_wide_nucleus_grows_beyond_the_first_look():
    rows = torch.cat([torch.zeros(1, 1000), torch.linspace(0, -50, 1000)[None]])
    subset = TopP(p=0.9).select(DenseLogits(rows))
    assert subset.size.tolist()[0] in {899, 900, 901}, "900 equal tokens of 1000, up to rounding of the sum"
    assert sets(subset)[1] == nucleus(rows[1].tolist(), 0.9)


def test_k_max_cuts_and_the_mass_says_so():
    subset = TopP(p=0.9, k_max=3).select(view([0.0] * 10))
    assert subset.size.tolist() == [3]
    assert subset.mass.item() == pytest.approx(0.3)


def test_include_action_appends_only_what_is_missing():
    part = TopP(p=0.5, include_action=True)
    teacher = view([3.0, 0.0, 0.0, 1.0], [3.0, 0.0, 0.0, 1.0])
    grown = part.with_action(part.select(teacher), teacher, torch.tensor([3, 0]))
    assert sets(grown) == [[0, 3], [0]]
    probs = torch.tensor([3.0, 0.0, 0.0, 1.0]).double().softmax(0)
    torch.testing.assert_close(grown.mass, torch.stack([probs[0] + probs[3], probs[0]]))
    torch.testing.assert_close(grown.logprobs[0], probs[[0, 3]].log())


def test_without_include_action_nothing_is_added():
    part, teacher = TopP(p=0.5), view([3.0, 0.0, 0.0, 1.0])
    subset = part.select(teacher)
    assert part.with_action(subset, teacher, torch.tensor([3])) is subset


def test_full_holds_every_token_without_a_teacher_run():
    assert not Full.needs_teacher
    subset = Full().select(view([1.0, 2.0, 3.0]))
    assert subset.full
    assert sets(subset) == [[0, 1, 2]]
    torch.testing.assert_close(subset.logprobs, torch.tensor([[1.0, 2.0, 3.0]]).double().log_softmax(1))


@pytest.mark.parametrize("part", [TopP(), TopK(), Full()])
def test_no_rows(part):
    subset = part.select(DenseLogits(torch.zeros(0, 5)))
    assert subset.mass.shape == (0,)
    assert subset.mask.shape[0] == 0
