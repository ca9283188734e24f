"""The target network: how it follows the student, and that a resumed run goes on with it."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor

from distillzoo.core.divergence import kl
from distillzoo.core.models import Vocabulary, backbone
from distillzoo.core.objective import LossTerms, Objective, TargetUpdate, TDBatch, term, watched
from distillzoo.core.target import TargetNetwork
from tests.core.one_step import trainer_of, weights
from tests.tiny import VOCABULARY, Tiny, tiny_model


def changed(model) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += torch.randn_like(parameter)


@pytest.fixture(params=[False, True], ids=["untied", "tied"])
def student(request):
    return backbone(tiny_model("llama", 2, tie_word_embeddings=request.param), Vocabulary(VOCABULARY, None), "student")


def copied(target: TargetNetwork, folder: Path) -> dict[str, Tensor]:
    """The weights of the copy, as they are saved."""
    target.save(folder)
    return weights(type(tiny_model()).from_pretrained(folder))


def test_a_rate_between_0_and_1_goes_that_far_once(student, tmp_path):
    target, before = TargetNetwork(student, TargetUpdate(every=1, rate=0.25)), weights(student.model)
    changed(student.model)
    target.follow(1)
    found, after = copied(target, tmp_path), weights(student.model)
    for name, value in found.items():
        torch.testing.assert_close(value, before[name] + 0.25 * (after[name] - before[name]))


def test_a_rate_of_1_copies_the_bits_every_so_many_steps(student, tmp_path):
    target, before = TargetNetwork(student, TargetUpdate(every=3, rate=1.0)), weights(student.model)
    changed(student.model)
    after = weights(student.model)
    for at, expected in ((1, before), (2, before), (3, after), (4, after)):
        target.follow(at)
        found = copied(target, tmp_path / str(at))
        assert all(torch.equal(found[name], value) for name, value in expected.items()), at


def test_the_copy_is_its_own_and_takes_no_gradient(student):
    target = TargetNetwork(student, TargetUpdate(every=1, rate=1.0))
    ids = torch.tensor([[5, 6, 7]])
    rows = torch.tensor([0, 0]), torch.tensor([1, 2])
    before = student.view(student.states(ids, torch.ones_like(ids), *rows)).logsumexp().detach()
    changed(student.model)

    @dataclass
    class Two:
        input_ids: Tensor
        attention_mask: Tensor
        sequence: Tensor
        position: Tensor

    batch = Two(ids, torch.ones_like(ids), *rows)
    found = target.view(batch, batch).logsumexp()
    assert not found.requires_grad
    torch.testing.assert_close(found, before)


def test_what_is_saved_is_read_again(student, tmp_path):
    target = TargetNetwork(student, TargetUpdate(every=1, rate=0.5))
    changed(student.model)
    target.follow(1)
    before = copied(target, tmp_path / "1")
    target.follow(2)
    target.load(tmp_path / "1")
    after = copied(target, tmp_path / "2")
    assert all(torch.equal(after[name], value) for name, value in before.items())


@dataclass(frozen=True)
class Terms(LossTerms):
    nll: Tensor = term()
    lag: Tensor = watched()


class Lagging(Objective):
    """Cloning, and KL(target || student) beside it, [N]."""

    every: int = 1
    rate: float = 1.0

    @property
    def target_update(self) -> TargetUpdate:
        return TargetUpdate(self.every, self.rate)

    def terms(self, td: TDBatch) -> Terms:
        nll = td.student.logsumexp() - td.q_action
        lag = td.student.rowwise(lambda student, target: kl(target, student), td.target)
        return Terms(nll + lag, lag)


@pytest.mark.parametrize(("every", "lags"), [(1, [0, 0, 0, 0, 0]), (2, [0, 1, 0, 1, 0]), (3, [0, 1, 1, 0, 1])])
def test_in_training_it_is_the_student_of_so_many_steps_ago(tmp_path, every, lags):
    trainer, _ = trainer_of(tmp_path, Lagging(every=every), "full", accumulate=2, device_batch=4, max_steps=5)
    trainer.train()
    found = [row["lag"] for row in trainer.state.log_history if "lag" in row]
    assert [int(lag > 1e-4) for lag in found] == lags
    assert all(lag < 1e-9 for lag, moved in zip(found, lags, strict=True) if not moved)


def test_a_resumed_training_goes_on_with_the_saved_target(tmp_path):
    settings = {"device_batch": 2, "max_steps": 6, "save_strategy": "steps", "save_steps": 3}  # within an epoch
    trainer, straight = trainer_of(tmp_path, Lagging(every=2, rate=0.5), "full", **settings)
    trainer.train()
    again, resumed = trainer_of(tmp_path, Lagging(every=2, rate=0.5), "full", **settings)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    expected = weights(straight)
    assert all(torch.equal(value, expected[name]) for name, value in weights(resumed).items())
    assert [r["lag"] for r in again.state.log_history if "lag" in r] == [
        r["lag"] for r in trainer.state.log_history if "lag" in r
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    "parts",
    [
        ["--objective", "soft-q", "--trajectories", "dataset", "--set", "objective.target=network",
         "--set", "objective.target_every=3"],
        ["--objective", "minillm", "--trajectories", "teacher-mixed", "--set", "trajectories.every=3",
         "--set", "lm.data=texts.jsonl", "--set", "lm.weight=0.5"],
    ],
    ids=["target-network", "rounds-moments-corpus"],
)  # fmt: skip
def test_a_run_that_was_cut_off_ends_with_the_same_bits(tiny: Tiny, tmp_path, parts):
    def distillzoo(*args: object) -> None:
        done = subprocess.run(
            [sys.executable, "-m", "distillzoo.core.cli.main", "run", *map(str, args), "-q"],
            cwd=tmp_path, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr

    (tmp_path / "texts.jsonl").write_text("".join(json.dumps({"text": f"w{i} w3 w{i % 4}"}) + "\n" for i in range(9)))
    distillzoo(
        "--teacher", tiny.teacher, "--student", tiny.student, "--data", tiny.data, "--batch-size", "8",
        "--subset", "top-k", *parts, "--set", "train.device_batch_size=4", "--max-steps", "6", "--lr", "1e-2",
        "--set", "train.log_every=1", "--set", "train.save_every=2", "--set", "evaluate.limit=2",
        "--set", "evaluate.before=false", "--set", "data.max_length=24", "--set", "data.max_prompt_length=8",
        "--device", "cpu", "--output", "straight",
    )  # fmt: skip
    shutil.copytree(tmp_path / "straight", tmp_path / "cut")
    (tmp_path / "cut" / "result.json").unlink()
    shutil.rmtree(tmp_path / "cut" / "checkpoints" / "checkpoint-6")
    distillzoo("--resume", "cut")
    straight, cut = (json.loads((tmp_path / d / "result.json").read_text()) for d in ("straight", "cut"))
    assert straight["hashes"]["student_after"] != straight["hashes"]["student_before"]
    assert straight["hashes"] == cut["hashes"]
    logs = [(tmp_path / d / "metrics.jsonl").read_text().splitlines() for d in ("straight", "cut")]
    losses = [[(row["step"], row["loss"]) for row in map(json.loads, lines)] for lines in logs]
    assert losses[0] == losses[1]
    assert len(losses[0]) == 6
