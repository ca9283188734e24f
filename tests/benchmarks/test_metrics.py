"""Metrics against hand-made answers and closed forms."""

import math
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from distillzoo.benchmarks.metrics.divergence import ForwardKL, ReverseKL, kl
from distillzoo.benchmarks.metrics.entropy import Entropy
from distillzoo.benchmarks.metrics.nucleus_mass import NucleusMass
from distillzoo.benchmarks.metrics.right import Right
from distillzoo.benchmarks.metrics.rouge_l import RougeL
from tests.reference.losses import kl as reference_kl
from tests.reference.losses import softmax


@dataclass
class Answers:
    rows: list[dict[str, Any]] = field(default_factory=list)
    answers: list[str] = field(default_factory=list)
    right: Any = None

    def mean_over_tokens(self, fn, on):
        student = torch.tensor([[0.0, 1.0, 2.0]]).double()
        teacher = torch.tensor([[1.0, 1.0, -1.0]]).double()
        return float(fn(student, teacher).mean()) + (100 if on == "samples" else 0)


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
    assert ReverseKL().score(Answers()) == pytest.approx(100 + reference_kl(student, teacher))


def test_entropy_is_the_students_on_its_own_samples():
    student = softmax([0.0, 1.0, 2.0])
    assert Entropy().score(Answers()) == pytest.approx(100 - sum(q * math.log(q) for q in student))


def test_nucleus_mass_is_the_students_probability_of_the_teachers_nucleus():
    """The teacher has 0.47, 0.47 and 0.06: its nucleus at 0.4 is the first token, at 0.8 the first two."""
    student = softmax([0.0, 1.0, 2.0])
    assert NucleusMass(p=0.4).score(Answers()) == pytest.approx(100 + student[0])
    assert NucleusMass().score(Answers()) == pytest.approx(100 + student[0] + student[1])
    assert NucleusMass(p=1.0).score(Answers()) == pytest.approx(101)
