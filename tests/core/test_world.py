"""What is refused before anything loads, and what a run starts from."""

import pytest

from distillzoo.core.config import resolve
from distillzoo.core.distill import _same_inputs
from distillzoo.core.errors import UserError
from distillzoo.core.rundir import RunDirectory
from distillzoo.core.world import World


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
