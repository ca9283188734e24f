"""Every recipe file loads, resolves and names its source."""

from pathlib import Path

import pytest

import distillzoo.zoo
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
    parts["objective"].check(parts["extraction"])


def test_bd_iql_carries_a_support_term(registry):
    """Without one, or a language-modelling term, the student's mass leaves the subset."""
    assert build_part(registry, resolve(registry, algo="bd-iql"), "objective").support_weight > 0


def test_a_wrong_recipe_is_explained(tmp_path):
    (tmp_path / "x.yaml").write_text("titel: x\n")
    with pytest.raises(UserError, match=r"Recipe '.*x\.yaml'.*'titel' is not a known field\. Did you mean 'title'"):
        Recipe.read(tmp_path / "x.yaml")
