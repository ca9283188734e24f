"""An evaluation against one forward pass a sequence, and what it keeps."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from distillzoo.benchmarks.metrics.calibration import Calibration
from distillzoo.benchmarks.metrics.divergence import ForwardKL, ReverseKL
from distillzoo.benchmarks.metrics.entropy import Entropy
from distillzoo.benchmarks.metrics.exposure_bias import ExcessAccumulatedError
from distillzoo.core import evaluation as module
from distillzoo.core.config import resolve
from distillzoo.core.divergence import kl
from distillzoo.core.evaluation import ModelEvaluation, Scores
from distillzoo.core.generation import Generator
from distillzoo.core.models import Backbone, Vocabulary, backbone
from distillzoo.core.trajectories import Completion, PromptRow
from distillzoo.core.world import World, cache_folder
from tests.reference.losses import kl as reference_kl
from tests.reference.losses import softmax
from tests.tiny import VOCABULARY, tiny_model

PAD = 2
METRICS = (ForwardKL(), ReverseKL(), ExcessAccumulatedError(), Entropy(), Calibration())


def response(length: int, start: int) -> Completion:
    return Completion([(start + 7 * i) % 29 + 3 for i in range(length)], ended=False)


ROWS = [PromptRow([1, *range(4, 4 + n)], [response(m, n)]) for n, m in ((3, 4), (7, 2), (1, 9), (5, 1), (2, 6))]
RESPONSES = {
    "references": [row.references[0] for row in ROWS],
    "samples": [response(n, 11) for n in (6, 3, 8, 0, 5)],
    "teacher": [response(n, 17) for n in (5, 5, 2, 7, 1)],
}


def model(kind: str, layers: int) -> Backbone:
    return backbone(tiny_model(kind, layers).double(), Vocabulary(VOCABULARY, None), "model")


def evaluation(
    kind: str = "llama", batch_size: int = 2, with_teacher: bool = True
) -> tuple[ModelEvaluation, list[str]]:
    """An evaluation in float64, and what was done for it: teacher sampled, a body run."""
    log: list[str] = []

    def sample() -> Sequence[Completion]:
        log.append("sampled")
        return RESPONSES["teacher"]

    student, teacher = model(kind, 2), model(kind, 3)
    for name, each in (("student", student), ("teacher", teacher)):
        each.model.base_model.register_forward_hook(lambda *_, name=name: log.append(name))
    answers = [""] * len(ROWS)
    found = ModelEvaluation(
        [{}] * len(ROWS), ROWS, RESPONSES["samples"], answers, student, teacher if with_teacher else None, sample,
        None, PAD, batch_size,
    )  # fmt: skip
    return found, log


def alone(each: Backbone, on: str) -> list[tuple[list[float], int, int]]:
    """Logits, token that follows and position in the response, with one forward pass a sequence."""
    found = []
    for row, answer in zip(ROWS, RESPONSES[on], strict=True):
        ids = torch.tensor([[*row.prompt, *answer.tokens]])
        with torch.no_grad():
            logits = each.model(ids).logits[0].tolist()
        found += [(logits[len(row.prompt) - 1 + t], token, t) for t, token in enumerate(answer.tokens)]
    return found


@pytest.mark.parametrize("on", ["references", "samples", "teacher"])
@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_a_quantity_a_token_is_that_of_each_sequence_alone(on, batch_size):
    found, _ = evaluation(batch_size=batch_size)
    student, teacher = alone(found.model, on), alone(found.teacher, on)
    expected = sorted(
        (t, reference_kl(softmax(p), softmax(q))) for (q, _, t), (p, _, _) in zip(student, teacher, strict=True)
    )
    values = found.tokens(lambda student, teacher: kl(teacher, student), on)
    pairs = sorted(zip(values.position.tolist(), values.value.tolist(), strict=True))
    assert [t for t, _ in pairs] == [t for t, _ in expected]
    assert [v for _, v in pairs] == pytest.approx([v for _, v in expected])
    taken = found.taken(lambda z, action: z.gather(1, action[:, None])[:, 0], on)
    pairs = sorted(zip(taken.position.tolist(), taken.value.tolist(), strict=True))
    assert [v for _, v in pairs] == pytest.approx([v for _, v in sorted((t, z[action]) for z, action, t in student)])


def found_by(metrics: Sequence[Any], of: ModelEvaluation) -> list[Any]:
    return [(metric.score(of), metric.by_position(of)) for metric in metrics]


def flat(found: list[Any]) -> list[float]:
    return [value for score, curve in found for value in (score, *(b["value"] for b in curve or []))]


def test_padding_and_batches_change_no_score():
    one, _ = evaluation(batch_size=1)
    others = [evaluation(batch_size=n)[0] for n in (2, 5)]
    expected = flat(found_by(METRICS, one))
    assert len(expected) > 12
    for other in others:
        assert flat(found_by(METRICS, other)) == pytest.approx(expected)


def test_bodies_run_once_a_batch_for_all_metrics(monkeypatch):
    """Five responses in batches of two make three batches; one of the samples is empty, which leaves two."""
    found, log = evaluation()
    expected = found_by(METRICS, found)
    found.taken(lambda z, action: z[:, 0], "teacher")
    assert log.count("student") == log.count("teacher") == 3 + 2 + 3
    assert log.count("sampled") == 1
    states = [*found._kept.values()]
    monkeypatch.setattr(module, "KEPT_BYTES", sum(s.nbytes for s in states[:4]))
    some, log = evaluation()
    assert flat(found_by(METRICS, some)) == pytest.approx(flat(expected))
    assert len(some._kept) >= 4
    assert sum(s.nbytes for s in some._kept.values()) <= module.KEPT_BYTES
    assert log.count("student") > 8
    assert log.count("sampled") == 1


def test_logits_are_not_kept_where_a_model_has_no_linear_head():
    found, _ = evaluation("gemma2")
    assert ForwardKL().score(found) == pytest.approx(ForwardKL().score(evaluation("gemma2", 5)[0]))
    assert not found._kept


def test_a_function_is_computed_once_for_each_kind_of_states():
    found, _ = evaluation()
    calls = []

    def first(student: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        calls.append(other.ndim)
        return student[:, 0]

    for _ in range(2):
        found.tokens(first, "references")
        found.taken(first, "references")
        found.mean_over_tokens(first, "references")
        found.tokens(first, "samples")
    assert calls == [2, 2, 2, 1, 1, 1, 2, 2]


def test_the_teacher_is_not_sampled_unless_a_metric_looks_there():
    found, log = evaluation()
    found_by([metric for metric in METRICS if metric != ExcessAccumulatedError()], found)
    assert "sampled" not in log


def test_a_student_alone_runs_no_teacher():
    found, log = evaluation()
    Entropy().score(found)
    Calibration().score(found)
    assert set(log) == {"student"}
    bare, log = evaluation(with_teacher=False)
    assert bare.tokens(kl, "samples") is None
    assert bare.mean_over_tokens(kl, "references") is None
    assert bare.taken(lambda z, action: z[:, 0], "teacher") is None
    assert Calibration().score(bare) == Calibration().score(found)
    assert set(log) == {"student"}


@pytest.fixture
def world(registry, tiny) -> World:
    flags = {
        "teacher": {"model": str(tiny.teacher)}, "student": {"model": str(tiny.student)}, "device": "cpu",
        "data": {"train": str(tiny.data), "valid": str(tiny.data), "max_length": 18, "max_prompt_length": 10},
        "evaluate": {"metrics": ["ex-acc-err", "reverse-kl"], "limit": 12, "temperature": 0.9, "batch_size": 8},
    }  # fmt: skip
    found = World(resolve(registry, algo="kd", flags=flags, sets=("seed=3",)), registry)
    found.load()
    return found


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_students_products_have_the_runs_data_type_in_sampling_and_reading(world, registry, dtype):
    world = World(world.config.model_copy(update={"dtype": dtype}), registry)
    world.load()
    model, seen = world.student.model, {"sampling": set(), "reading": set()}
    product = model.get_decoder().layers[0].mlp.down_proj
    product.register_forward_hook(
        lambda module, args, out: seen["sampling" if out.shape[1] == 1 else "reading"].add(out.dtype)
    )
    world.evaluate(world.student, "the student", metrics=["reverse-kl"])
    assert seen == {"sampling": {world.dtype}, "reading": {world.dtype}}
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def kept_files() -> list[Path]:
    return list(cache_folder().rglob("*.parquet"))


def test_the_teacher_is_sampled_like_the_student_once_and_kept(world, monkeypatch):
    calls = []
    sample = Generator.__call__

    def watched(self, prompts, decoding, seed, limits=None):
        found = sample(self, prompts, decoding, seed, limits)
        calls.append((self.model, len(prompts), decoding.temperature, seed, found))
        return found

    monkeypatch.setattr(Generator, "__call__", watched)
    scores = world.evaluate(world.student, "the student")
    assert [call[0] for call in calls] == [world.student.model, world.teacher.model]
    assert [call[1:4] for call in calls] == [(12, 0.9, 3)] * 2
    assert len(kept_files()) == 1
    assert world.evaluate(world.student, "the student again").metrics == scores.metrics
    assert [call[0] for call in calls[2:]] == [world.student.model]
    own = world.evaluate(world.teacher, "the teacher", against_teacher=False)
    assert own.metrics == {"ex-acc-err": None, "reverse-kl": None}
    assert own.positions == {}
    assert calls[-1][4] == calls[1][4]
    assert len(kept_files()) == 1


def test_scores_with_their_curves_go_through_json(world):
    scores = world.evaluate(world.student, "the student")
    assert set(scores.positions) == {"ex-acc-err", "reverse-kl"}
    assert scores.positions["ex-acc-err"][-1]["value"] == scores.metrics["ex-acc-err"]
    assert Scores(**json.loads(json.dumps(scores.to_json()))) == scores
    written_before = {name: value for name, value in scores.to_json().items() if name != "positions"}
    assert Scores(**written_before).positions == {}


def test_the_teacher_is_not_sampled_for_metrics_that_do_not_ask(world):
    world.evaluate(world.student, "the student", metrics=["reverse-kl"])
    assert not kept_files()
