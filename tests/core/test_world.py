"""What is refused before anything loads, and what a run starts from."""

import gc
import os
import weakref
from functools import cache

import pytest

from distillzoo.core import distill, world
from distillzoo.core.config import resolve
from distillzoo.core.distill import _same_inputs
from distillzoo.core.errors import UserError
from distillzoo.core.progress import Reporter
from distillzoo.core.rundir import RunDirectory
from distillzoo.core.world import World, pick_device


@pytest.mark.parametrize(
    ("algo", "sets", "missing"),
    [
        (
            "minillm",
            ("trajectories.name=dataset",),
            "minillm needs the student's own trajectories, and the source dataset",
        ),
        ("sqil", ("trajectories.name=teacher",), "soft-q needs the student's own"),
        ("sqil", ("trajectories.name=student",), "soft-q needs the expert's trajectories, and the source student"),
        (
            "sqil",
            ("trajectories.share=1.0",),
            "soft-q needs the expert's trajectories, and the source mixture, as it is",
        ),
        ("ls-iq", ("trajectories.name=student-prefix",), "ls-iq needs the student's own"),
        ("bc", ("trajectories.name=student",), "nll needs the expert's"),
        ("bd-iql", ("trajectories.name=student",), "iql needs the expert's"),
        ("nll-on-draws", ("subset.name=sampled",), "Sampled draws tokens with importance weights.*NLL would not count"),
    ],
)
def test_a_composition_that_cannot_learn_is_refused(registry, algo, sets, missing):
    config = resolve(registry, algo="seqkd" if algo == "nll-on-draws" else algo, sets=sets)
    with pytest.raises(UserError, match=missing):
        World(config, registry)


@pytest.mark.parametrize("algo", ["gkd", "sqil", "minillm", "imitkd", "bd-iql", "ls-iq"])
def test_the_recipes_are_not(registry, algo):
    World(resolve(registry, algo=algo), registry)


def test_a_run_goes_on_from_what_it_began_with_alone(tmp_path):
    directory = RunDirectory.create(tmp_path / "run")
    _same_inputs({"teacher": "a", "data": "b"}, directory)
    _same_inputs({"teacher": "a", "data": "b"}, directory)
    with pytest.raises(UserError, match="began with another data and corpus, so it can't go on"):
        _same_inputs({"teacher": "a", "data": "c", "corpus": "d"}, directory)


@pytest.mark.parametrize(("given", "left"), [(None, "1"), ("3,5", "5"), ("GPU-aa,GPU-bb", "GPU-bb")])
def test_the_gpu_that_is_named_is_the_only_one_left_however_often_it_is_asked_for(given, left, monkeypatch):
    monkeypatch.setattr("torch.zeros", lambda *_, device: None)
    monkeypatch.setattr(world, "_given_gpus", cache(world._given_gpus.__wrapped__))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if given is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given)
    for _ in range(2):
        assert str(pick_device("cuda:1")) == "cuda:0"
        assert os.environ["CUDA_VISIBLE_DEVICES"] == left
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    monkeypatch.setattr(world, "_given_gpus", cache(world._given_gpus.__wrapped__))
    with pytest.raises(UserError, match="CUDA_VISIBLE_DEVICES shows 1 devices"):
        pick_device("cuda:1")


def test_the_student_of_an_earlier_training_is_not_kept(registry, tiny, tmp_path, monkeypatch):
    """Under autocast accelerate puts it into a cycle of references, which on a GPU holds its memory."""
    flags = {
        "teacher": {"model": str(tiny.teacher)}, "student": {"model": str(tiny.student)}, "device": "cpu",
        "data": {"train": str(tiny.data), "max_length": 20, "max_prompt_length": 8}, "dtype": "bfloat16",
        "train": {"max_steps": 1, "batch_size": 2}, "evaluate": {"limit": 2, "before": False},
    }  # fmt: skip
    config, students, train = resolve(registry, algo="bc", flags=flags), [], distill._train

    def noted(world, *arguments):
        assert all(student() is None for student in students)
        students.append(weakref.ref(world.student.model))
        return train(world, *arguments)

    monkeypatch.setattr(distill, "_train", noted)
    gc.disable()
    try:
        for name in ("first", "second"):
            distill.distil(config, registry, RunDirectory.create(tmp_path / name), Reporter(), score=False)
    finally:
        gc.enable()
    assert len(students) == 2
