"""The run directory: whole files or none."""

import json

import pytest

from distillzoo.core.errors import UserError
from distillzoo.core.rundir import RunDirectory


@pytest.fixture
def directory(tmp_path):
    return RunDirectory.create(tmp_path / "run")


def test_a_directory_with_something_in_it_is_refused(tmp_path):
    (tmp_path / "x").write_text("")
    with pytest.raises(UserError, match="exists already"):
        RunDirectory.create(tmp_path)


def test_a_failed_write_leaves_the_old_file_and_no_half_one(directory):
    directory.write_text(directory.config, "old")
    with pytest.raises(UnicodeEncodeError):
        directory.write_text(directory.config, "\ud800")
    assert directory.config.read_text() == "old"


def test_a_last_line_cut_in_half_is_left_out(directory):
    directory.append(directory.metrics, {"step": 1})
    with directory.metrics.open("a") as file:
        file.write('{"step": 2, "lo')
    assert list(directory.read(directory.metrics)) == [{"step": 1}]


def test_rewinding_drops_rows_after_a_step(directory):
    for step in (1, 2, 3):
        directory.append(directory.metrics, {"step": step})
    directory.rewind(2)
    assert [json.loads(line)["step"] for line in directory.metrics.read_text().splitlines()] == [1, 2]


def test_the_last_whole_checkpoint(directory):
    for step, state in ((2, "{}"), (10, "{}"), (12, '{"half'), (14, None)):
        folder = directory.checkpoints / f"checkpoint-{step}"
        folder.mkdir(parents=True)
        if state is not None:
            (folder / "trainer_state.json").write_text(state)
    assert directory.last_checkpoint() == directory.checkpoints / "checkpoint-10"


def test_no_run_in_a_directory(tmp_path):
    with pytest.raises(UserError, match=r"no config\.yaml"):
        RunDirectory.open(tmp_path)
