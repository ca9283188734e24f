"""The teacher's states, computed once instead of in every step."""

from dataclasses import replace

import pytest
import torch

from distillzoo.core import taught as module
from distillzoo.core.batch import Batch, Collator, TrajectoryData
from distillzoo.core.config import resolve
from distillzoo.core.distill import distil
from distillzoo.core.models import Vocabulary, backbone
from distillzoo.core.progress import Reporter
from distillzoo.core.registry import installed
from distillzoo.core.rundir import RunDirectory
from distillzoo.core.taught import pays, states_fit, taught, with_sets
from tests.core.one_step import COUNT, EOS, corpus, trainer_of, trajectories, weights
from tests.core.test_trainer import COMPOSITIONS, assert_same
from tests.tiny import VOCABULARY, tiny_model

COLLATE = Collator(EOS)
TEACHER = backbone(tiny_model("llama", 3), Vocabulary(VOCABULARY, None), "teacher")


def learned(size=3):
    """The fixed trajectories with the teacher's states; of one the first tokens are given."""
    rows = trajectories()
    rows[3] = replace(rows[3], given=2)
    return rows, taught(TEACHER, rows, COLLATE, size, lambda count: None)


@pytest.mark.parametrize("size", [1, 3, COUNT])
def test_the_states_are_those_of_a_forward_pass_in_any_order(size):
    rows, found = learned(size)
    order = [4, 0, 3, 7, 3]
    batch = Batch(**COLLATE([rows[i] for i in order]))
    table = batch.transitions()
    once = Batch(**COLLATE([found[i] for i in order])).teacher_states
    torch.testing.assert_close(
        once, TEACHER.states(batch.input_ids, batch.attention_mask, table.sequence, table.position)
    )


def test_a_batch_with_one_sequence_unread_is_read_by_the_teacher():
    rows, found = learned()
    assert Batch(**COLLATE([found[0], rows[1]])).teacher_states is None


@pytest.mark.parametrize("composition", COMPOSITIONS)
@pytest.mark.parametrize("of_corpus", [False, True])
def test_the_step_is_the_same_and_the_teacher_does_not_run(composition, of_corpus, tmp_path):
    texts = corpus() if of_corpus else None
    live, expected = trainer_of(tmp_path / "live", *composition, corpus=texts)
    live.train()
    if texts is not None:
        texts = replace(texts, texts=taught(TEACHER, texts.texts, COLLATE, 2, lambda count: None))
    once, student = trainer_of(tmp_path / "once", *composition, corpus=texts)
    once.train_dataset = TrajectoryData(taught(TEACHER, trajectories(), COLLATE, 3, lambda count: None))
    calls = []
    once._teacher.model.register_forward_hook(lambda *_: calls.append("whole"))
    once._teacher.model.base_model.register_forward_hook(lambda *_: calls.append("body"))
    once.train()
    assert_same(weights(student), weights(expected))
    assert not calls


@pytest.mark.parametrize("composition", [("iql", "top-p"), ("forward-kl", "top-k"), ("reverse-kl", "top-p")])
def test_the_step_is_the_same_with_the_sets_alone(composition, tmp_path):
    live, expected = trainer_of(tmp_path / "live", *composition)
    live.train()
    once, student = trainer_of(tmp_path / "once", *composition)
    subset = once._subset
    once.train_dataset = TrajectoryData(with_sets(TEACHER, subset, trajectories(), COLLATE, 3, lambda count: None))
    once._teacher = None
    once.train()
    assert_same(weights(student), weights(expected))


def test_sets_are_those_of_a_live_teacher():
    rows, _ = learned()
    subset = installed().get("subset", "top-p")(p=0.9)
    batch = Batch(**COLLATE(with_sets(TEACHER, subset, rows, COLLATE, 3, lambda count: None)))
    expected = subset.select(TEACHER.view_of(batch, batch.transitions()))
    assert torch.equal(batch.stored.actions, expected.actions)
    assert torch.equal(batch.stored.mask, expected.mask)
    torch.testing.assert_close(batch.stored.logprobs, expected.logprobs)
    torch.testing.assert_close(batch.stored.mass, expected.mass)


def test_it_pays_with_rounds_to_come():
    rows = trajectories()
    assert pays(rows, 12)
    assert not pays(rows, 11), "a pass over 8 sequences for fewer than 12"
    assert not pays([], 100)


def test_what_is_kept_has_a_limit(monkeypatch):
    rows = trajectories()
    assert not states_fit(replace(TEACHER, head=None), rows)
    actions = sum(len(t.response.tokens) for t in rows)
    width = TEACHER.head.weight.shape[1] * 4
    monkeypatch.setattr(module, "MOST_BYTES", actions * width)
    assert states_fit(TEACHER, rows)
    monkeypatch.setattr(module, "MOST_BYTES", actions * width - 1)
    assert not states_fit(TEACHER, rows)
    rows[3] = replace(rows[3], given=1)
    assert states_fit(TEACHER, rows), "what is given has no action"
    three = installed().get("subset", "top-k")(k=3)
    monkeypatch.setattr(module, "MOST_BYTES", (actions - 1) * 3 * 8)
    assert with_sets(TEACHER, three, rows, COLLATE, 3, lambda count: None) is not None
    monkeypatch.setattr(module, "MOST_BYTES", (actions - 1) * 3 * 8 - 1)
    assert with_sets(TEACHER, three, rows, COLLATE, 3, lambda count: None) is None


@pytest.mark.parametrize("algo", ["kd", "bd-plus"])
def test_a_run_of_many_rounds_scores_as_one_with_a_live_teacher(algo, registry, tiny, tmp_path, monkeypatch):
    flags = {
        "teacher": {"model": str(tiny.teacher)}, "student": {"model": str(tiny.student)}, "device": "cpu",
        "data": {"train": str(tiny.data), "max_length": 20, "max_prompt_length": 8},
        "train": {"max_steps": 30, "batch_size": 8, "lr": 1e-2, "log_every": 1, "save_every": 100},
        "evaluate": {"limit": 2, "before": False},
    }  # fmt: skip
    config = resolve(registry, algo=algo, flags=flags)
    titles = []

    class Listening(Reporter):
        def stage(self, title, total=None):
            titles.append(title)
            return super().stage(title, total)

    once = distil(config, registry, RunDirectory.create(tmp_path / "once"), Listening())
    assert "the teacher reads the trajectories" in titles
    monkeypatch.setattr(module, "MOST_BYTES", 0)
    titles.clear()
    live = distil(config, registry, RunDirectory.create(tmp_path / "live"), Listening())
    assert ("the teacher reads the trajectories" in titles) == (algo == "bd-plus"), "it finds out as it reads"
    assert once["scores"]["after"]["forward-kl"] == pytest.approx(live["scores"]["after"]["forward-kl"], rel=1e-3)
