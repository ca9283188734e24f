"""The account of a training: seconds that stand still, tokens that are paid once, and what a checkpoint keeps of it."""

import time
from pathlib import Path

import pytest
import torch

from distillzoo.core.errors import UserError
from distillzoo.core.spent import CLEAR, Spent, begin_peak, peak_memory

CPU = torch.device("cpu")


def test_the_clock_runs_and_stands_still() -> None:
    spent = Spent()
    with spent.paused():
        time.sleep(0.01)
    assert spent.seconds == 0, "a clock that does not run isn't started by a pause"
    with spent.running(CPU):
        with spent.paused():
            time.sleep(0.2)
            assert spent.seconds < 0.1
        time.sleep(0.02)
    assert 0.02 <= spent.seconds < 0.2
    stopped = spent.seconds
    assert spent.seconds == stopped


def test_kept_samples_are_paid_once() -> None:
    spent = Spent(teacher_read=5)
    spent.note_offline("a", 100, 2.0)
    spent.note_offline("a", 100, 2.0)
    spent.note_offline("b", 10, 1.0)
    assert (spent.teacher_tokens, spent.sampling_seconds) == (115, 3.0)


def test_a_checkpoint_goes_on_with_the_account(tmp_path: Path) -> None:
    before = Spent(student_tokens=7, sampled_tokens=3, teacher_read=2, peak_bytes=1 << 60)
    before.note_offline("a", 100, 2.0)
    with before.running(CPU):
        time.sleep(0.02)
    before.save(tmp_path)
    after = Spent(student_tokens=99)
    after.note_offline("a", 100, 2.0)
    with after.running(CPU):
        time.sleep(0.1)
        after.load(tmp_path)
        assert before.seconds <= after.seconds < before.seconds + 0.05, "what is done again isn't paid again"
        time.sleep(0.02)
    assert after.seconds >= before.seconds + 0.02, "the clock goes on"
    told = {name: value for name, value in after.to_json().items() if name != "seconds"}
    assert told == {"sampling_seconds": 2.0, "student_tokens": 7, "sampled_tokens": 3, "teacher_tokens": 102}
    assert after.peak_bytes == 1 << 60


@pytest.mark.parametrize("text", ["{", "{}", '{"seconds": 1, "student_tokens": 1, "nonsense": 2, "offline": {}}'])
def test_a_damaged_account_is_told(tmp_path: Path, text: str) -> None:
    (tmp_path / "spent.json").write_text(text)
    with pytest.raises(UserError, match=r"spent\.json' is damaged"):
        Spent().load(tmp_path)
    with pytest.raises(UserError, match="Cannot read"):
        Spent().load(tmp_path / "nowhere")


@pytest.mark.skipif(not CLEAR.exists(), reason="only Linux can begin anew")
def test_memory_that_was_taken_before_or_in_a_pause_is_not_told() -> None:
    large = 1 << 28
    torch.ones(large, dtype=torch.uint8)
    spent = Spent()
    begin_peak(CPU)
    floor = peak_memory(CPU)
    with spent.running(CPU):
        with spent.paused():
            torch.ones(large, dtype=torch.uint8)
        torch.ones(large // 8, dtype=torch.uint8)
    assert floor + large // 16 < spent.peak_bytes < floor + large // 2
