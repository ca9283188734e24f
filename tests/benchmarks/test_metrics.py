"""Metrics against hand-made answers, closed forms and plain loops."""

import json
import math
import random
import re
from dataclasses import dataclass, field
from typing import Any, get_args

import pytest
import torch

from distillzoo.benchmarks.metrics.calibration import Calibration
from distillzoo.benchmarks.metrics.distinct import Distinct1, Distinct2
from distillzoo.benchmarks.metrics.divergence import ForwardKL, ReverseKL, kl
from distillzoo.benchmarks.metrics.entropy import Entropy
from distillzoo.benchmarks.metrics.exposure_bias import ExcessAccumulatedError
from distillzoo.benchmarks.metrics.length_ratio import LengthRatio
from distillzoo.benchmarks.metrics.nucleus_mass import NucleusMass
from distillzoo.benchmarks.metrics.right import Right
from distillzoo.benchmarks.metrics.rouge_l import RougeL
from distillzoo.core.cli.output import print_scores
from distillzoo.core.metric import ARROWS, Direction, TokenValues
from distillzoo.core.trajectories import Completion, PromptRow
from tests.reference.losses import kl as reference_kl
from tests.reference.losses import softmax

State = tuple[list[float], list[float], int]
"""The student's and the teacher's logits, and the token that follows."""

ON_REFERENCES: State = ([0.0, 1.0, 2.0], [1.0, 1.0, -1.0], 2)
ON_SAMPLES: State = ([0.5, 0.0, -1.0], [1.0, 1.0, -1.0], 0)


@dataclass
class Answers:
    """An evaluation whose states are given, response by response; none means that there is no teacher."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    answers: list[str] = field(default_factory=list)
    right: Any = None
    encoded: list[PromptRow] = field(default_factory=list)
    completions: list[Completion] = field(default_factory=list)
    states: dict[str, list[list[State]]] = field(
        default_factory=lambda: {"references": [[ON_REFERENCES]], "samples": [[ON_SAMPLES]]}
    )
    with_teacher: bool = True

    def tokens(self, fn, on):
        return self._over(lambda student, teacher, action: fn(student, teacher), on) if self.with_teacher else None

    def taken(self, fn, on):
        return self._over(lambda student, teacher, action: fn(student, action), on)

    def mean_over_tokens(self, fn, on):
        found = self.tokens(fn, on)
        return None if found is None else found.mean()

    def _over(self, fn, on):
        states = [(*state, t) for response in self.states[on] for t, state in enumerate(response)]
        student, teacher, action, position = zip(*states, strict=True)
        logits = (torch.tensor(z, dtype=torch.float64) for z in (student, teacher))
        return TokenValues(fn(*logits, torch.tensor(action)).double(), torch.tensor(position))


def drawn(lengths: list[int], tokens: int = 4) -> list[list[State]]:
    logits = lambda: [random.gauss(0, 2) for _ in range(tokens)]  # noqa: E731
    return [[(logits(), logits(), random.randrange(tokens)) for _ in range(n)] for n in lengths]


def error(state: State) -> float:
    return reference_kl(softmax(state[1]), softmax(state[0]))


@pytest.fixture(autouse=True)
def _same_draws():
    random.seed(0)


def test_right_is_a_percentage_of_the_checkers_marks():
    found = Answers([{"n": 1}, {"n": 2}, {"n": 3}, {"n": 4}], list("abcd"), lambda row, answer: row["n"] < 2)
    assert Right().score(found) == 25.0
    assert Right().score(Answers([{}], ["a"])) is None


def test_rouge_l_takes_the_best_reference_with_stemming():
    """LCS of "the cats ran fast" and "the cat runs" stemmed is (the, cat): P = 2/4 and R = 2/3, F = 4/7."""
    rows = [{"output": ["nothing alike", "the cat runs"]}, {"output": ["same words"]}]
    found = RougeL().score(Answers(rows, ["the cats ran fast", "same words"]))
    assert found == pytest.approx(100 * (4 / 7 + 1) / 2)


def test_kl_equals_a_loop_and_is_finite_at_columns_without_a_token():
    p, q = torch.randn(5, 7).double(), torch.randn(5, 7).double()
    expected = [reference_kl(softmax(a), softmax(b)) for a, b in zip(p.tolist(), q.tolist(), strict=True)]
    assert kl(p, q).tolist() == pytest.approx(expected)
    p[:, 3] = q[:, 3] = -float("inf")
    assert torch.isfinite(kl(p, q)).all()


def test_forward_is_teacher_to_student_on_references_and_reverse_student_to_teacher_on_samples():
    student, teacher = softmax([0.0, 1.0, 2.0]), softmax([1.0, 1.0, -1.0])
    assert ForwardKL().score(Answers()) == pytest.approx(reference_kl(teacher, student))
    assert ReverseKL().score(Answers()) == pytest.approx(reference_kl(softmax([0.5, 0.0, -1.0]), teacher))


@pytest.mark.parametrize("metric", [ForwardKL(), ReverseKL()])
def test_a_divergence_by_position_is_its_mean_in_bins_between_powers_of_two(metric):
    lengths = [1, 2, 3, 6, 11]
    found = Answers(states={"references": drawn(lengths), "samples": drawn(lengths)})
    expected = []
    for first, last in ((0, 0), (1, 1), (2, 3), (4, 7), (8, 15)):
        values = []
        for response in found.states["references" if metric == ForwardKL() else "samples"]:
            for t, (student, teacher, _) in enumerate(response):
                p, q = softmax(teacher), softmax(student)
                if first <= t <= last:
                    values.append(reference_kl(p, q) if metric == ForwardKL() else reference_kl(q, p))
        value = pytest.approx(sum(values) / len(values))
        expected.append({"first": first, "last": last, "value": value, "count": len(values)})
    curve = metric.by_position(found)
    assert curve == expected
    assert json.loads(json.dumps(curve)) == curve
    assert [bin["count"] for bin in curve] == [5, 4, 5, 6, 3]
    assert metric.score(found) == pytest.approx(sum(b["value"] * b["count"] for b in curve) / sum(lengths))
    assert metric.by_position(Answers(with_teacher=False)) is None


def excess(samples: list[list[State]], taught: list[list[State]], length: int) -> float:
    """ExAccErr(l) step by step: means over the responses that have a t-th token."""
    regret = expected = 0.0
    for t in range(length):
        here = [error(response[t]) for response in samples if len(response) > t]
        there = [error(response[t]) for response in taught if len(response) > t]
        regret += sum(here) / len(here)
        expected += sum(there) / len(there)
    epsilon = expected / length
    return 100 * (regret - length * epsilon) / (length * epsilon)


def test_excess_error_equals_a_loop_up_to_the_length_that_half_of_the_teachers_answers_reach():
    """Of the teacher's five answers three, at least half, have six tokens, and two have seven."""
    samples, taught = drawn([9, 7, 3, 2, 1]), drawn([12, 7, 6, 2, 1])
    found = Answers(states={"samples": samples, "teacher": taught})
    assert ExcessAccumulatedError().score(found) == pytest.approx(excess(samples, taught, 6))
    assert ExcessAccumulatedError().by_position(found) == [
        {"first": 0, "last": n - 1, "value": pytest.approx(excess(samples, taught, n)), "count": count}
        for n, count in ((1, 5), (2, 4), (4, 2), (6, 2))
    ]


@pytest.mark.parametrize(("lengths", "ends"), [([4, 4, 4], [0, 1, 3]), ([5, 1], [0, 1, 3, 4]), ([1], [0])])
def test_the_curve_of_the_excess_error_ends_once_at_the_scores_length(lengths, ends):
    found = Answers(states={"samples": drawn(lengths), "teacher": drawn(lengths)})
    curve = ExcessAccumulatedError().by_position(found)
    assert [bin["last"] for bin in curve] == ends
    assert curve[-1]["value"] == ExcessAccumulatedError().score(found)


def test_excess_error_is_0_where_both_sample_the_same_and_the_ratio_of_errors_less_1_where_they_are_constant():
    same = drawn([8, 5, 3])
    assert ExcessAccumulatedError().score(Answers(states={"samples": same, "teacher": same})) == pytest.approx(0)
    far: State = ([3.0, 0.0], [0.0, 3.0], 0)
    near: State = ([1.0, 0.0], [0.0, 1.0], 0)
    found = Answers(states={"samples": [[far] * 7, [far] * 4], "teacher": [[near] * 5, [near] * 6]})
    # KL between softmax(0, x) and softmax(x, 0) is x tanh(x / 2)
    ratio = 3 * math.tanh(1.5) / math.tanh(0.5)
    assert ExcessAccumulatedError().score(found) == pytest.approx(100 * (ratio - 1))


def test_excess_error_counts_an_answer_up_to_its_end():
    """The short answer errs, the long one doesn't: at step 1 the mean is half the error, at step 2 it is 0.

    Averaged over the answers that reach step 2, as in the paper's code, the student would err nowhere.
    """
    errs: State = ([2.0, 0.0], [0.0, 2.0], 0)
    agrees: State = ([0.0, 0.0], [0.0, 0.0], 0)
    found = Answers(states={"samples": [[errs], [agrees, agrees]], "teacher": [[errs, errs]]})
    assert ExcessAccumulatedError().score(found) == pytest.approx(100 * (0.5 / 2 - 1))


def test_excess_error_is_undefined_for_answers_too_short_for_a_student_without_error_and_without_a_teacher():
    taught = drawn([5, 5])
    assert ExcessAccumulatedError().score(Answers(states={"samples": drawn([4, 3]), "teacher": taught})) is None
    perfect = [[([0.0, 1.0], [0.0, 1.0], 0)] * 3]
    assert ExcessAccumulatedError().score(Answers(states={"samples": perfect, "teacher": perfect})) is None
    bare = Answers(states={"samples": taught, "teacher": taught}, with_teacher=False)
    assert ExcessAccumulatedError().score(bare) is None


def sure(confidence: float, right: bool) -> State:
    """A state of four tokens whose likeliest has this probability and does follow, or doesn't."""
    rest = math.log((1 - confidence) / 3)
    return [math.log(confidence), rest, rest, rest], [0.0] * 4, 0 if right else 2


def calibration(states: list[State], bins: int = 15) -> float | None:
    return Calibration(bins=bins).score(Answers(states={"references": [states]}, with_teacher=False))


def test_calibration_error_is_0_for_a_student_as_often_right_as_it_is_sure():
    half, mostly = [sure(0.5, i < 2) for i in range(4)], [sure(0.9, i < 9) for i in range(10)]
    assert calibration(half + mostly) == pytest.approx(0, abs=1e-9)


def test_calibration_error_of_a_constant_overconfident_student_is_what_it_is_too_sure():
    assert calibration([sure(0.9, i < 5) for i in range(10)]) == pytest.approx(40)


def test_too_sure_here_does_not_make_up_for_too_little_sure_there():
    assert calibration([sure(0.9, i < 4) for i in range(5)] + [sure(0.4, i < 3) for i in range(5)]) == pytest.approx(15)
    assert calibration([sure(0.9, i < 4) for i in range(5)] + [sure(0.4, i < 3) for i in range(5)], 1) == pytest.approx(
        5
    )


def test_a_confidence_on_the_border_is_in_the_lower_bin():
    """With two bins 1/2 is beside 2/5, and their errors make up for one another; above it would be alone."""
    edge: State = ([0.0, 0.0, -math.inf, -math.inf], [0.0] * 4, 0)
    assert calibration([edge, sure(0.4, False)], 2) == pytest.approx(100 * abs(1 - 0.5 - 0.4) / 2)


def test_calibration_error_equals_a_loop():
    states = drawn([60])[0]
    total = 0.0
    for m in range(1, 16):
        inside = []
        for student, _, action in states:
            probs = softmax(student)
            if (m - 1) / 15 < max(probs) <= m / 15:
                inside.append((max(probs), probs.index(max(probs)) == action))
        if inside:
            accuracy = sum(hit for _, hit in inside) / len(inside)
            confidence = sum(p for p, _ in inside) / len(inside)
            total += len(inside) / len(states) * abs(accuracy - confidence)
    assert calibration(states) == pytest.approx(100 * total)


def test_distinct_counts_different_n_grams_of_all_answers_together():
    """Words a b a, a b, c: six words of three kinds; pairs ab, ba, ab of two kinds, none over an end."""
    found = Answers(answers=["a b a", "a  b", "c", ""])
    assert Distinct1().score(found) == pytest.approx(100 * 3 / 6)
    assert Distinct2().score(found) == pytest.approx(100 * 2 / 3)
    assert Distinct1().score(Answers(answers=["", " "])) is None
    assert Distinct2().score(Answers(answers=["a", "b"])) is None


def test_length_ratio_is_of_the_sums_to_the_first_references():
    """(2 + 4) / (1 + 3): the mean of the two ratios would be 5/3."""
    answer = lambda n: Completion([7] * n, ended=True)  # noqa: E731
    rows = [PromptRow([1], [answer(1), answer(9)]), PromptRow([1], [answer(3)])]
    assert LengthRatio().score(Answers(encoded=rows, completions=[answer(2), answer(4)])) == pytest.approx(1.5)


def test_a_table_points_to_the_better_values_if_either_end_is_better(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    directions = {"right": "higher", "forward-kl": "lower", "length-ratio": "none", "entropy": "none"}
    print_scores([("student", dict.fromkeys(directions, 1.0))], directions)
    assert re.split(" {2,}", capsys.readouterr().out.splitlines()[0].strip()) == [
        "model", "right, % ↑", "forward KL, nats/token ↓", "length / reference", "entropy, nats/token"
    ]  # fmt: skip
    assert set(ARROWS) == set(get_args(Direction))


def test_entropy_is_the_students_on_its_own_samples_and_needs_no_teacher():
    student = softmax([0.5, 0.0, -1.0])
    assert Entropy().score(Answers(with_teacher=False)) == pytest.approx(-sum(q * math.log(q) for q in student))


def test_nucleus_mass_is_the_students_probability_of_the_teachers_nucleus():
    """The teacher has 0.47, 0.47 and 0.06: its nucleus at 0.4 is the first token, at 0.8 the first two."""
    student = softmax([0.5, 0.0, -1.0])
    assert NucleusMass(p=0.4).score(Answers()) == pytest.approx(student[0])
    assert NucleusMass().score(Answers()) == pytest.approx(student[0] + student[1])
    assert NucleusMass(p=1.0).score(Answers()) == pytest.approx(1)
