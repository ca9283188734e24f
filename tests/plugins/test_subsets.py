"""Subsets against the definition of the nucleus, and what every subset promises."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distillzoo.core import logits as views
from distillzoo.core.extraction import PolicyExtraction
from distillzoo.core.logits import DenseLogits
from distillzoo.core.subset import ActionSubset, Subset, SubsetQ, listed
from distillzoo.plugins.extractions.epsilon_smoothed import EpsilonSmoothed
from distillzoo.plugins.extractions.greedy import Greedy
from distillzoo.plugins.extractions.mellowmax import Mellowmax
from distillzoo.plugins.extractions.sparsemax import Sparsemax
from distillzoo.plugins.extractions.tsallis import Tsallis
from distillzoo.plugins.subsets.full import Full
from distillzoo.plugins.subsets.sampled import Sampled
from distillzoo.plugins.subsets.student_top_k import StudentTopK
from distillzoo.plugins.subsets.top_k import TopK
from distillzoo.plugins.subsets.top_p import TopP
from distillzoo.plugins.subsets.union import Union
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


@pytest.mark.parametrize("part", [TopP(), TopK(), Full(), StudentTopK(), Sampled(), Union(first=TopP(), second=TopK())])
def test_no_rows(part):
    subset = part.select(DenseLogits(torch.zeros(0, 5)))
    assert subset.mass.shape == (0,)
    assert subset.mask.shape[0] == 0


@settings(deadline=None, max_examples=150)
@given(st.lists(st.tuples(st.integers(0, 6), st.booleans()), min_size=1, max_size=12), st.data())
def test_listed_sorts_and_keeps_each_token_once(entries, data):
    """Against sorted() on a dictionary, in which the first entry of a token counts."""
    logprob = data.draw(st.lists(st.sampled_from([-INF, -3.0, -2.0, -1.0]), min_size=7, max_size=7))
    actions = torch.tensor([[a for a, _ in entries]])
    mask = torch.tensor([[held for _, held in entries]])
    weights = torch.arange(1.0, len(entries) + 1)[None]
    found = listed(actions, mask, torch.tensor(logprob)[actions], weights)
    first: dict[int, float] = {}
    for place, (a, held) in enumerate(entries):
        if held:
            first.setdefault(a, place + 1.0)
    expected = sorted(first, key=lambda a: (-logprob[a], a))
    assert sets(found) == [expected]
    assert found.weights is not None
    assert found.weights[0].tolist() == [first[a] for a in expected], "cut to the set"
    assert found.logprobs[0].tolist() == [logprob[a] for a in expected]
    assert found.mass.item() == pytest.approx(min(1.0, sum(math.exp(logprob[a]) for a in expected)))


pairs = (
    st.integers(2, 20)
    .flatmap(
        lambda n: st.tuples(*[st.lists(st.sampled_from([-INF, -2.0, -1.0, 0.0, 1.5]), min_size=n, max_size=n)] * 2)
    )
    .filter(lambda rows: all(max(row) > -INF for row in rows))
)


@settings(deadline=None, max_examples=150)
@given(pairs, st.integers(1, 25))
def test_student_top_k_takes_what_the_student_likes_in_the_teachers_order(rows, k):
    teacher, student = rows
    found = StudentTopK(k=k).choose(view(teacher), view(student))
    liked = sorted(range(len(student)), key=lambda a: (-student[a], a))[:k]
    expected = sorted((a for a in liked if student[a] > -INF), key=lambda a: (-teacher[a], a))
    assert sets(found) == [expected]
    probs = softmax(teacher)
    assert found.logprobs[0].exp().tolist() == pytest.approx([probs[a] for a in expected])
    assert found.mass.item() == pytest.approx(sum(probs[a] for a in expected))


def test_student_top_k_gives_no_gradient_and_selects_as_if_the_teacher_were_the_student():
    teacher, student = (torch.randn(6, 9).requires_grad_() for _ in range(2))
    found = StudentTopK(k=3).choose(DenseLogits(teacher), DenseLogits(student))
    assert not found.logprobs.requires_grad
    assert not found.mass.requires_grad
    alone = DenseLogits(teacher.detach())
    assert sets(StudentTopK(k=3).select(alone)) == sets(TopK(k=3).select(alone))


def test_the_taken_action_stands_in_its_place():
    """An appended action may be more probable than what the student likes."""
    part = StudentTopK(k=1, include_action=True)
    teacher, student = view([0.0, 2.0, 1.0]), view([5.0, 0.0, 1.0])
    grown = part.with_action(part.choose(teacher, student), teacher, torch.tensor([1]))
    assert sets(grown) == [[1, 0]]
    assert grown.added is not None
    assert grown.added.tolist() == [True]


@settings(deadline=None, max_examples=100)
@given(pairs, st.floats(0.1, 1.0), st.integers(1, 10))
def test_a_union_holds_both_in_either_order(rows, p, k):
    teacher, student = view(rows[0]), view(rows[1])
    first, second = TopP(p=p), StudentTopK(k=k)
    (one,), (other,) = sets(first.select(teacher)), sets(second.choose(teacher, student))
    found = Union(first=first, second=second).choose(teacher, student)
    assert sets(found) == [sorted({*one, *other}, key=lambda a: (-rows[0][a], a))]
    swapped = Union(first=second, second=first).choose(teacher, student)
    for name in ("actions", "mask", "logprobs", "mass"):
        torch.testing.assert_close(getattr(found, name), getattr(swapped, name))
    assert found.weights is None
    assert sets(Union(first=first, second=first).select(teacher)) == [one], "a set joined with itself"


def test_a_union_asks_for_what_its_parts_ask_for():
    plain, asking = Union(first=TopP(), second=TopK()), Union(first=TopP(), second=StudentTopK())
    assert (plain.needs_teacher, plain.needs_student, plain.draws) == (True, False, False)
    assert (asking.needs_student, Union(first=asking, second=TopK()).needs_student) == (True, True)
    assert Union(first=Sampled(), second=TopK()).draws
    whole = Union(first=StudentTopK(), second=Full())
    assert (whole.needs_teacher, whole.needs_student) == (False, False)
    assert whole.select(view([1.0, 2.0])).full


def test_the_parts_of_a_union_add_no_action_of_their_own():
    with pytest.raises(ValueError, match="include_action belongs to the union"):
        Union(first=TopP(include_action=True), second=TopK())


def test_a_union_of_two_weighted_subsets_is_refused():
    with pytest.raises(ValueError, match="only one of first and second may draw with importance weights"):
        Union(first=Sampled(p=0.3), second=Sampled(p=0.5))


def test_sampled_lists_the_nucleus_and_m_draws_from_outside():
    teacher, m = torch.randn(50, 30).double() * 2, 5
    found = Sampled(p=0.6, m=m).select(DenseLogits(teacher))
    assert found.weights is not None
    for i, row in enumerate(teacher.tolist()):
        inside, probs = nucleus(row, 0.6), softmax(row)
        tail = 1 - sum(probs[a] for a in inside)
        weight = dict(zip(sets(found)[i], found.weights[i].tolist(), strict=False))
        assert set(inside) <= set(weight)
        assert all(weight[a] == 1.0 for a in inside)
        counts = [w * m * probs[a] / tail for a, w in weight.items() if a not in inside]
        assert counts == pytest.approx([round(c) for c in counts])
        assert sum(counts) == pytest.approx(m)


def test_sampled_draws_in_proportion_to_the_tail():
    row = [3.0, 1.0, 0.0, -1.0, -2.0]
    (inside,), probs, n = sets(TopP(p=0.5).select(view(row))), softmax(row), 20_000
    found = Sampled(p=0.5, m=1).select(DenseLogits(torch.tensor([row]).double().expand(n, -1)))
    tail = {a: probs[a] / (1 - probs[inside[0]]) for a in range(5) if a not in inside}
    for a, share in tail.items():
        hits = found.contains(torch.full((n,), a)).double().mean().item()
        assert abs(hits - share) < 5 * math.sqrt(share * (1 - share) / n)


@pytest.mark.parametrize("part", [Sampled(p=1.0), Sampled(p=1.0, m=3)])
def test_nothing_is_drawn_from_an_empty_tail(part):
    teacher = view([1.0, 0.0, -INF, 2.0], [-INF, 3.0, -INF, -INF])
    found = part.select(teacher)
    assert sets(found) == sets(TopP(p=1.0).select(teacher))
    assert found.weights is not None
    assert found.weights.tolist() == found.mask.double().tolist()
    one = Sampled(p=0.5).select(teacher)
    assert sets(one)[1] == [1], "one state without a tail beside one with one"
    assert len(sets(one)[0]) > 1


def test_sampled_never_holds_more_logits_than_a_chunk(monkeypatch):
    monkeypatch.setattr(views, "BLOCK_ELEMENTS", 90)
    seen: list[int] = []

    class Watched(DenseLogits):
        def block(self, rows):
            seen.append(rows.numel() * self.size)
            return super().block(rows)

    found = Sampled(p=0.5).select(Watched(torch.randn(40, 30).double()))
    assert found.mask.shape[0] == 40
    assert max(seen) <= 90


def estimates(part: ActionSubset, rows: int = 20_000) -> tuple[list[float], list[float]]:
    """z-scores of weighted sums of some f over many draws of one state, without the taken action and with it."""
    row = torch.tensor([2.0, 1.5, 0.0, -0.5, -1.0, -2.0]).double()
    f = torch.tensor([1.0, -2.0, 3.0, 0.5, -4.0, 7.0]).double() * row.softmax(0)
    teacher = DenseLogits(row.expand(rows, -1))
    subset, scores = part.select(teacher), []
    for action in (None, 0, 2, 5):
        grown = subset
        if action is not None:
            grown = part.model_copy(update={"include_action": True})
            grown = grown.with_action(subset, teacher, torch.full((rows,), action))
        assert grown.weights is not None
        sums = (grown.weights * torch.where(grown.mask, f[grown.actions], 0.0)).sum(1)
        scores.append(((sums.mean() - f.sum()).abs() / (sums.std() / math.sqrt(rows) + 1e-12)).item())
    return scores[:1], scores[1:]


@pytest.mark.parametrize(
    "part",
    [
        Sampled(p=0.5, m=1),
        Sampled(p=0.7, m=4),
        Sampled(p=0.9, m=2, k_max=1),
        Union(first=Sampled(p=0.5, m=2), second=StudentTopK(k=3)),
        Union(first=TopK(k=2), second=Sampled(p=0.3, m=3)),
    ],
    ids=str,
)
def test_weighted_sums_are_unbiased_also_with_the_taken_action(part):
    plain, grown = estimates(part)
    assert max(plain) < 4.5
    assert max(grown) < 4.5


def test_what_the_other_part_lists_has_the_weight_one():
    teacher = DenseLogits(torch.randn(60, 12).double())
    found = Union(first=Sampled(p=0.3, m=4), second=TopK(k=6)).select(teacher)
    sure = TopK(k=6).select(teacher)
    assert found.weights is not None
    for i, tokens in enumerate(sets(sure)):
        weight = dict(zip(sets(found)[i], found.weights[i].tolist(), strict=False))
        assert [weight[a] for a in tokens] == [1.0] * 6


@pytest.mark.parametrize(
    "extraction", [Mellowmax(), EpsilonSmoothed(), Sparsemax(), Tsallis(), Greedy()], ids=lambda e: type(e).__name__
)
def test_extractions_take_the_listed_tokens_as_they_are(extraction: PolicyExtraction):
    drawn = Sampled(p=0.5, m=4).select(DenseLogits(torch.randn(8, 12).double()))
    plain = Subset(drawn.actions, drawn.mask, drawn.logprobs, drawn.mass)
    student = DenseLogits(torch.randn(8, 12).double())
    one, other = SubsetQ(student, drawn), SubsetQ(student, plain)
    torch.testing.assert_close(extraction.value(one), extraction.value(other))
    first = drawn.actions[:, :1]
    torch.testing.assert_close(extraction.log_policy(one, first), extraction.log_policy(other, first))
