"""Every check of recipes catches a recipe that breaks its rule."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import Field, field_validator

from distillzoo.core import hookimpl
from distillzoo.core.checks import RecipeFile, checks_of, recipe
from distillzoo.core.config import merge
from distillzoo.core.hookspecs import Register
from distillzoo.core.registry import Registry
from tests.core.checks.catching import assert_caught
from tests.core.checks.test_catch_objective import Cloning, DividedByRows


class Percent(Cloning):
    percent: float = Field(10.0, description="share of the loss")

    @field_validator("percent")
    @classmethod
    def _as_share(cls, value: float) -> float:
        return value / 100  # and again when the resolved configuration is read back


class Plugin:
    """No recipe of built-in parts alone can fail to come back from its file."""

    @hookimpl
    def register_objectives(self, register: Register) -> None:
        register("percent", Percent)
        register("divided-by-rows", DividedByRows)


@pytest.fixture(autouse=True)
def _plugin(monkeypatch: pytest.MonkeyPatch) -> None:
    registry = Registry.installed()
    registry.add(Plugin(), "broken-parts", "1.0")
    monkeypatch.setattr(recipe, "installed", lambda: registry)


HEALTHY: dict[str, Any] = {
    "title": "Cloning",
    "version": 1,
    "paper": "These tests",
    "formula": "L(s, a) = -log pi(a|s)",
    "run": {"subset": {"name": "full"}, "objective": {"name": "nll"}},
}

ON_SUBSET = {"subset": {"name": "top-k", "k": 3}, "extraction": {"name": "projected-softmax"}}
ON_ONE_TOKEN = merge(ON_SUBSET, {"subset": {"k": 1}})  # whose probability is 1, whatever the student says

BROKEN: list[tuple[str, dict[str, Any], str]] = [
    ("readable", {"titel": "Cloning"}, "'titel' is not a known field"),
    ("documented", {"paper": " "}, "The recipe's paper is empty"),
    ("documented", {"formula": "cross entropy"}, "formula has no '='"),
    ("resolves", {"run": {"objective": {"name": "nnl"}}}, "no objective named 'nnl'. Did you mean 'nll'"),
    ("resolves", {"run": {"subset": {"name": "top-k", "p": 0.5}}}, "'subset.p' is not a known field"),
    ("resolves", {"run": {"extraction": {"name": "greedy"}}}, "of the recipe don't fit: .* Use an extraction such as"),
    ("resolves", {"settings": {"llama": {"extraction": {"name": "greedy"}}}}, "of the settings for 'llama' don't fit"),
    ("resolves", {"settings": {"micro": {"train": {"lr": -1}}}}, "'train.lr' is -1"),
    ("resolves", {"settings": {"llama": {"train": {"lr": -1}}}}, "settings for 'llama' don't resolve: 'train.lr'"),
    ("round-trip", {"run": {"objective": {"name": "percent"}}}, "changes when it is written out and read back"),
    ("gradient", {"run": ON_ONE_TOKEN}, "has no gradient for the student"),
    ("gradient", {"run": {"objective": {"name": "divided-by-rows"}}}, "The loss of a batch is .* in parts"),
    ("outside-mass", {"run": ON_SUBSET}, r"nothing holds the mass outside\. Set objective\.support_weight"),
    ("learns", {"run": ON_ONE_TOKEN}, "student's KL to the teacher on the subset is"),
]


def written(folder: Path, changes: dict[str, Any]) -> RecipeFile:
    path = folder / "cloning.yaml"
    path.write_text(yaml.safe_dump(merge(HEALTHY, changes)), encoding="utf-8")
    return RecipeFile(path, "cloning")


def test_the_healthy_recipe_passes(tmp_path):
    subject = written(tmp_path, {})
    for check in checks_of(subject):
        check(subject)


@pytest.mark.parametrize(("name", "changes", "message"), BROKEN)
def test_a_broken_recipe_is_caught(name, changes, message, tmp_path):
    assert_caught(name, written(tmp_path, changes), message)


def test_a_recipe_is_named_like_its_file(tmp_path):
    found = written(tmp_path, {})
    assert_caught("readable", RecipeFile(found.path, "copying"), "'cloning.yaml' is registered as 'copying'")


def test_a_file_is_checked_also_when_a_recipe_of_its_name_is_installed(tmp_path):
    found = written(tmp_path, {"run": {"objective": {"name": "nnl"}}})
    found.path.rename(tmp_path / "bc.yaml")
    assert_caught("resolves", RecipeFile(tmp_path / "bc.yaml", "bc"), "no objective named 'nnl'")
