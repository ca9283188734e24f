"""The optimiser step: what must not change it."""

import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor

from distillzoo.core.batch import Collator
from distillzoo.core.trainer import Diverged
from distillzoo.core.trajectories import Trajectory
from tests.core.one_step import COUNT, step
from tests.tiny import VOCABULARY, tiny_model

ROOT = Path(__file__).parent.parent.parent

COMPOSITIONS = [
    ("iql", "top-p"),
    ("nll", "full"),
    ("forward-kl", "full"),
    ("forward-kl", "top-k"),
    ("minillm", "top-k"),
]


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name][:VOCABULARY], value[:VOCABULARY], rtol=1e-4, atol=2e-5)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> dict[tuple[str, str], dict[str, Tensor]]:
    return {c: step(tmp_path_factory.mktemp("whole"), *c) for c in COMPOSITIONS}


def test_the_step_moves_the_student(whole):
    before = tiny_model("llama", 2).state_dict()
    for after in whole.values():
        assert any((after[name] - value).abs().max() > 1e-3 for name, value in before.items())


@pytest.mark.parametrize("composition", COMPOSITIONS)
@pytest.mark.parametrize("parts", [2, 4, 8])
def test_splitting_a_batch_over_accumulation_steps_changes_nothing(whole, composition, parts, tmp_path):
    assert_same(step(tmp_path, *composition, device_batch=COUNT // parts, accumulate=parts), whole[composition])


def of_two_processes(folder: Path, *arguments: str) -> list[dict[str, Tensor]]:
    """The weights of both processes after the step of ``one_step``."""
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m",
        "tests.core.one_step", str(folder), *arguments,
    ]  # fmt: skip
    subprocess.run(
        command, check=True, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, timeout=180
    )
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize(
    "composition", [COMPOSITIONS[0], *(pytest.param(COMPOSITIONS[i], marks=pytest.mark.slow) for i in (1, -1))]
)
def test_two_processes_take_the_step_of_one(whole, composition, tmp_path):
    for found in of_two_processes(tmp_path, *composition):
        assert_same(found, whole[composition])


@pytest.mark.parametrize("composition", COMPOSITIONS)
def test_vocabulary_rows_without_a_token_change_nothing(whole, composition, tmp_path):
    found = step(tmp_path, *composition, rows=VOCABULARY + 11)
    assert_same(found, whole[composition])
    assert (found["lm_head.weight"][VOCABULARY:] == 7.0).all(), "they get no gradient either"


@pytest.mark.parametrize("composition", COMPOSITIONS)
def test_the_order_of_the_batch_changes_nothing(whole, composition, tmp_path):
    assert_same(step(tmp_path, *composition, order=[5, 2, 7, 0, 1, 6, 3, 4]), whole[composition])


@dataclass(frozen=True)
class LeftPadding(Collator):
    """Pads on the left, and wider than need be."""

    def __call__(self, trajectories: Sequence[Trajectory]) -> dict[str, Tensor]:
        batch = super().__call__(trajectories)
        extra = 5
        lengths = batch["attention_mask"].sum(1)
        width = batch["input_ids"].shape[1] + extra
        for name, fill in (
            ("input_ids", self.pad),
            ("attention_mask", 0),
            ("labels", -100),
            ("behaviour", float("nan")),
        ):
            wide = torch.full((len(lengths), width), fill)
            for i, length in enumerate(lengths.tolist()):
                wide[i, width - length :] = batch[name][i, :length]
            batch[name] = wide
        return batch


@pytest.mark.parametrize("composition", COMPOSITIONS)
def test_the_padding_side_and_width_change_nothing(whole, composition, tmp_path):
    assert_same(step(tmp_path, *composition, collator=LeftPadding(2)), whole[composition])


def test_a_loss_that_is_not_finite_stops_the_run_with_its_term(tmp_path):
    student = tiny_model("llama", 2)
    with torch.no_grad():
        student.model.norm.weight.fill_(float("nan"))
    with pytest.raises(Diverged, match=r"not finite at step 0 \(terms: .*nll"):
        step(tmp_path, "nll", "full", student=student)
