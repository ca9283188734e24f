"""The table of the zoo on micro: its statistics and its bookkeeping."""

import math
from dataclasses import replace

import pytest
import yaml

from distillzoo.benchmarks.micro import __main__ as command
from distillzoo.benchmarks.micro.cell import Cell, run_cell
from distillzoo.benchmarks.micro.table import COLUMNS, interval, markdown


def test_the_interval_is_students_over_seeds():
    """t(0.975, 4) = 2.7764, the standard deviation of 1 to 5 is sqrt(2.5)."""
    mean, half = interval([1, 2, 3, 4, 5])
    assert mean == 3
    assert half == pytest.approx(2.7764 * math.sqrt(2.5 / 5), rel=1e-4)
    assert math.isnan(interval([4.0])[1])


def test_a_failed_cell_is_counted_and_leaves_the_others():
    scores = dict.fromkeys(COLUMNS, 1.0)
    done = {"scores": scores, "training": {"seconds": 9.0}}
    lines = markdown({"one": [done, done, {"error": "it broke"}], "other": [{"error": "no such part"}]}).splitlines()
    assert lines[2].endswith("| 9 ± 0 | 2, 1 failed |")
    assert lines[3] == "| other | failed: no such part |"


def test_every_recipe_has_the_same_number_of_trials(registry):
    trials = yaml.safe_load((command.HERE / "trials.yaml").read_text())
    assert set(trials) == set(registry.names("recipe"))
    assert {len(several) for several in trials.values()} == {4}


def test_every_recipe_has_the_settings_of_one_of_its_trials(registry):
    from distillzoo.core.config import resolve

    trials = yaml.safe_load((command.HERE / "trials.yaml").read_text())
    for name, several in trials.items():
        own = resolve(registry, algo=name)
        assert own in [resolve(registry, algo=name, sets=command._sets(sets)) for sets in several], name


@pytest.mark.parametrize("file", ["trials.yaml", "ablations.yaml"])
def test_every_trial_and_variant_resolves(registry, file):
    from distillzoo.core.config import resolve

    named = yaml.safe_load((command.HERE / file).read_text())
    for name, content in named.items():
        algo = content["algo"] if file == "ablations.yaml" else name
        for sets in [content.get("sets", {})] if file == "ablations.yaml" else content:
            resolve(registry, algo=algo, sets=command._sets(sets))


def test_a_cell_trains_scores_and_is_read_again(tmp_path):
    small = ("train.max_steps=1", "train.batch_size=4", "data.limit=8", "trajectories.name=dataset")
    cell = Cell("tiny", "bd-iql", small, 0, "valid")
    row = run_cell(cell, tmp_path)
    assert "error" not in row
    assert set(row["scores"]) >= set(COLUMNS)
    assert not (tmp_path / cell.folder).exists(), "models are not kept"
    again = run_cell(cell, tmp_path)
    assert again["seconds"] == row["seconds"]
    assert run_cell(replace(cell, sets=("train.max_step=1",)), tmp_path)["error"].startswith(
        "UserError: 'train.max_step"
    )
