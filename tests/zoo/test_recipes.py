"""Every recipe file loads, resolves and names its source."""

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

import distillzoo.zoo
from distillzoo.core.checks.measure import measure
from distillzoo.core.checks.world import make_world
from distillzoo.core.cli.show import list_parts
from distillzoo.core.config import PART_KINDS, build_part, resolve
from distillzoo.core.errors import UserError
from distillzoo.core.recipe import Recipe

RECIPES = sorted(Path(distillzoo.zoo.__file__).parent.rglob("*.yaml"))


def test_all_files_are_registered(registry):
    assert {path.stem for path in RECIPES} == set(registry.names("recipe")) >= {"bc", "kd", "seqkd", "bd-iql"}


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_a_recipe_resolves_to_parts_that_fit(registry, path):
    recipe = Recipe.read(path)
    assert recipe.paper
    assert recipe.formula
    config = resolve(registry, algo=path.stem)
    parts = {kind: build_part(registry, config, kind) for kind in PART_KINDS}
    parts["objective"].check(parts["subset"], parts["extraction"])


def test_bd_iql_carries_a_support_term(registry):
    """Without one, or a language-modelling term, the student's mass leaves the subset."""
    assert build_part(registry, resolve(registry, algo="bd-iql"), "objective").support_weight > 0


def test_a_wrong_recipe_is_explained(tmp_path):
    (tmp_path / "x.yaml").write_text("titel: x\n")
    with pytest.raises(UserError, match=r"Recipe '.*x\.yaml'.*'titel' is not a known field\. Did you mean 'title'"):
        Recipe.read(tmp_path / "x.yaml")


def _loss(registry, algo, *sets):
    """Value and gradient of a recipe's objective on the kit's toy world."""
    config = resolve(registry, algo=algo, sets=sets)
    subset, objective, extraction, _ = (build_part(registry, config, kind) for kind in PART_KINDS)
    found = measure(objective, make_world(), (subset, extraction))
    return found.loss, *found.gradients


@pytest.mark.parametrize(
    ("algo", "sets", "same"),
    [
        ("gkd", ("trajectories.share=0", "objective.beta=0"), "kd"),
        ("iq-learn", ("objective.divergence=none",), "bc"),
        ("bd-iql", ("objective.divergence=none", "subset.p=1.0", "subset.k_max=null"), "bc"),
        ("imitkd", (), "kd"),
    ],
)
def test_recipes_that_are_the_same_loss(registry, algo, sets, same):
    """lambda 0 and beta 0 of gkd are kd; without its penalty IQ-Learn is cloning."""
    for found, expected in zip(_loss(registry, algo, *sets), _loss(registry, same), strict=True):
        torch.testing.assert_close(found, expected)


def test_gkd_with_lambda_0_trains_on_the_answers_of_kd(registry):
    config = resolve(registry, algo="gkd", sets=("trajectories.share=0",))
    source = build_part(registry, config, "trajectories")
    assert not source.on_policy
    assert type(source.offline) is type(build_part(registry, resolve(registry, algo="kd"), "trajectories"))


@pytest.mark.parametrize(
    ("algo", "axes"),
    [
        ("bc", ("off", "dataset", "full", "cloning", "none")),
        ("kd", ("off", "dataset", "full", "divergence", "whole distribution")),
        ("gkd", ("on", "mixture", "full", "divergence", "whole distribution")),
        ("minillm", ("on", "teacher-mixed", "full", "policy gradient", "whole distribution")),
        ("bd-iql", ("off", "teacher", "top-p", "temporal difference", "subset")),
        ("sqil", ("on", "mixture", "full", "temporal difference", "none")),
    ],
)
def test_where_an_algorithm_stands(algo, axes):
    listed = json.loads(CliRunner().invoke(list_parts, ["algorithms", "--json"]).output)
    (found,) = [row for row in listed if row["name"] == algo]
    assert tuple(found[axis] for axis in ("policy", "trajectories", "actions", "family", "teacher")) == axes
