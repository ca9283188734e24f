"""The token MDP's table: shift, end of sequence, truncation, padding."""

import pytest
import torch

from distillzoo.core.batch import Collator
from distillzoo.core.trajectories import Completion, Trajectory
from distillzoo.core.transitions import IGNORED, TERMINAL, UNKNOWN, transitions

EOS = 2


def table(*sequences: tuple[list[int], list[int], bool], pad: int = EOS):
    batch = Collator(pad)([Trajectory(p, Completion(r, ended), "test") for p, r, ended in sequences])
    return batch, transitions(batch["labels"], batch["input_ids"], batch["ended"])


def test_the_first_response_token_and_the_end_token_are_both_actions():
    _, rows = table(([5, 6], [7, 8, EOS], True))
    assert rows.action.tolist() == [7, 8, EOS]
    assert rows.position.tolist() == [1, 2, 3]  # state 1 is the prompt's last token: it predicts the first answer token
    assert rows.successor.tolist() == [1, 2, TERMINAL]


def test_the_end_token_is_an_action_also_where_pad_and_end_are_one_id():
    batch, rows = table(([5], [7, EOS], True), ([5, 6, 7], [8, 9, EOS], True), pad=EOS)
    assert (batch["input_ids"] == EOS).sum() == 5, "three pads, two ends"
    assert rows.action.tolist() == [7, EOS, 8, 9, EOS]
    assert rows.terminal.tolist() == [False, True, False, False, True]


def test_an_end_token_inside_a_response_is_no_end():
    _, rows = table(([5], [EOS, 7, EOS], True))
    assert rows.successor.tolist() == [1, 2, TERMINAL]


def test_a_truncated_sequence_has_no_known_successor():
    _, rows = table(([5], [7, 8], False), ([5], [9, EOS], True))
    assert rows.successor.tolist() == [1, UNKNOWN, 3, TERMINAL]
    assert rows.known.tolist() == [True, False, True, True]


def test_next_value_is_zero_after_the_end_and_where_unknown():
    _, rows = table(([5], [7, 8], False), ([5], [9, EOS], True))
    value = torch.tensor([1.0, 2.0, 3.0, 4.0])
    assert rows.next_value(value).tolist() == [2.0, 0.0, 4.0, 0.0]


def test_sequences_do_not_leak_into_each_other():
    _, rows = table(([5], [7], True), ([5], [8], True), ([5], [9], True))
    assert rows.successor.tolist() == [TERMINAL] * 3
    assert rows.sequence.tolist() == [0, 1, 2]


def test_padding_and_prompt_never_enter():
    batch, rows = table(([5] * 10, [7], True), ([6], [8, 9], True))
    assert len(rows) == 3 == int((batch["labels"] != IGNORED).sum())


def test_a_response_without_a_prompt_is_refused():
    with pytest.raises(ValueError, match="column 0"):
        transitions(torch.tensor([[4, 5]]), torch.tensor([[4, 5]]), torch.tensor([True]))


def test_a_response_with_a_hole_is_refused():
    with pytest.raises(ValueError, match="hole"):
        transitions(torch.tensor([[IGNORED, 5, IGNORED, 6]]), torch.tensor([[4, 5, 5, 6]]), torch.tensor([True]))


def test_an_empty_batch_gives_an_empty_table():
    rows = transitions(torch.full((2, 3), IGNORED), torch.zeros(2, 3, dtype=torch.long), torch.tensor([True, True]))
    assert len(rows) == 0
