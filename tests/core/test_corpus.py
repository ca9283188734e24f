"""The language-modelling term on a second corpus."""

import json
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.core.one_step import COUNT, corpus, step, trainer_of, trajectories
from tests.core.test_trainer import assert_same, of_two_processes
from tests.tiny import Tiny, tiny_model

WEIGHT, SHARE = 0.7, 0.3


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> dict[str, Tensor]:
    return step(tmp_path_factory.mktemp("whole"), "nll", "full", corpus=corpus(WEIGHT, SHARE))


def by_hand() -> tuple[dict[str, Tensor], float]:
    """The student after a step of gradient descent at rate 0.5, and the language-modelling part of the loss."""
    student, teacher = tiny_model("llama", 2), tiny_model("llama", 3)
    cloning, text = [], []
    for one in trajectories():
        tokens = torch.tensor([[*one.prompt, *one.response.tokens]])
        logprobs = student(tokens).logits[0].log_softmax(1)
        cloning += [-logprobs[t - 1, tokens[0, t]] for t in range(len(one.prompt), tokens.shape[1])]
    for one in corpus().texts:
        tokens = torch.tensor([[*one.prompt, *one.response.tokens]])
        logprobs, teachers = (model(tokens).logits[0].log_softmax(1) for model in (student, teacher))
        for t in range(1, tokens.shape[1]):
            divergence = (teachers[t - 1].exp() * (teachers[t - 1] - logprobs[t - 1])).sum()
            text.append(-(1 - SHARE) * logprobs[t - 1, tokens[0, t]] + SHARE * divergence)
    lm = WEIGHT * torch.stack(text).mean()
    (torch.stack(cloning).mean() + lm).backward()
    with torch.no_grad():
        for parameter in student.parameters():
            parameter -= 0.5 * parameter.grad
    return student.state_dict(), lm.item()


def test_a_step_with_a_corpus_equals_a_computation_by_hand(whole, tmp_path):
    expected, lm = by_hand()
    assert_same(whole, expected)
    trainer, _ = trainer_of(tmp_path, "nll", "full", corpus=corpus(WEIGHT, SHARE))
    trainer.train()
    row = trainer.state.log_history[0]
    assert row["lm"] == pytest.approx(lm, rel=1e-5)
    assert row["loss"] == pytest.approx(row["nll"] + row["lm"], rel=1e-5), "the terms of the log add up to the loss"


def test_without_a_weight_it_changes_nothing(tmp_path):
    assert_same(step(tmp_path / "1", "nll", "full", corpus=corpus(0.0)), step(tmp_path / "2", "nll", "full"))


@pytest.mark.parametrize("parts", [2, 4, 8])
def test_splitting_a_batch_over_accumulation_steps_changes_nothing(whole, parts, tmp_path):
    found = step(tmp_path, "nll", "full", device_batch=COUNT // parts, accumulate=parts, corpus=corpus(WEIGHT, SHARE))
    assert_same(found, whole)


def test_two_processes_take_the_step_of_one(whole, tmp_path):
    for found in of_two_processes(tmp_path, "nll", "full", "corpus"):
        assert_same(found, whole)


Command = Callable[..., subprocess.CompletedProcess[str]]

STEPS = (
    "--max-steps", "2", "--batch-size", "4", "--set", "train.log_every=1", "--set", "evaluate.limit=2",
    "--set", "evaluate.before=false", "--set", "data.limit=8", "--device", "cpu",
)  # fmt: skip


@pytest.fixture
def run(here: Command) -> Command:
    return partial(here, "run", "--algo", "bc", *STEPS)


def logged(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_the_suites_own_rows_serve_as_a_corpus(run, tmp_path):
    result = run("--set", "lm.data=micro", "--set", "lm.weight=1", "--set", "lm.limit=8", "--output", "out")
    assert result.returncode == 0, result.stderr
    rows = logged(tmp_path / "out")
    assert len(rows) == 2
    for row in rows:
        assert row["lm"] > 0
        assert row["loss"] == pytest.approx(row["nll"] + row["lm"], rel=1e-4)


def test_a_file_of_texts_serves_as_a_corpus(run, tiny: Tiny, tmp_path):
    (tmp_path / "plain.jsonl").write_text(
        "".join(json.dumps({"text": f"w{i} w3 w5 w{i % 4}"}) + "\n" for i in range(9))
    )
    result = run(
        "--teacher", tiny.teacher, "--student", tiny.student, "--data", tiny.data, "--set", "data.max_length=24",
        "--set", "data.max_prompt_length=8", "--set", "lm.data=plain.jsonl", "--set", "lm.weight=0.5", "--set",
        "lm.teacher_share=0", "--output", "out",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert all(row["lm"] > 0 for row in logged(tmp_path / "out"))


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        (["lm.weight=1"], "a weight needs a corpus: set lm.data"),
        (["lm.weight=1", "lm.data=nowhere.jsonl"], "nowhere.jsonl"),
        (["lm.weight=1", "lm.data=nameless.jsonl"], "nameless.jsonl, line 1: a plain corpus has a 'text' in each row"),
        (["lm.weight=1", "lm.data=short.jsonl"], "holds no text of two tokens or more"),
        (["lm.weight=-1", "lm.data=micro"], "'lm.weight' is -1"),
    ],
)
def test_what_people_get_wrong_is_one_paragraph(run, tmp_path, sets, message):
    (tmp_path / "nameless.jsonl").write_text('{"content": "w1"}\n')
    (tmp_path / "short.jsonl").write_text("")
    result = run(*(argument for one in sets for argument in ("--set", one)), "--output", "out")
    assert result.returncode == 2, result.stderr
    assert "Traceback" not in result.stderr
    assert message in " ".join(result.stderr.split())
    assert len([p for p in result.stderr.strip().split("\n\n") if p]) == 1
    assert not (tmp_path / "out").exists()
