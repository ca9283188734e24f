"""Checks of recipes."""

from dataclasses import replace
from functools import cache
from typing import Final

import torch
import yaml

from distillzoo.core.checks.check import CheckFailed, RecipeFile, check
from distillzoo.core.checks.measure import STEPS, composed, descend, evaluate, gradients, total
from distillzoo.core.checks.world import Lay, Layout, batch, make_tree, make_world, members
from distillzoo.core.config import RunConfig, build_part, dump, merge, resolve
from distillzoo.core.errors import UserError
from distillzoo.core.extraction import PolicyExtraction
from distillzoo.core.logits import DenseLogits
from distillzoo.core.objective import Objective
from distillzoo.core.recipe import Recipe
from distillzoo.core.registry import PART_KINDS, Registry, installed
from distillzoo.core.subset import ActionSubset
from distillzoo.core.trajectories import TrajectorySource


@cache
def _registry(recipe: RecipeFile) -> Registry:
    """The installed parts, with the recipe's file entered where it isn't the installed one of its name."""
    found = installed()
    known = recipe.name in found.names("recipe") and found.entry("recipe", recipe.name).target == recipe.path
    return found if known else found.with_recipe(recipe.name, recipe.path)


def config_of(recipe: RecipeFile) -> RunConfig:
    """The recipe's resolved configuration."""
    try:
        return resolve(_registry(recipe), algo=recipe.name)
    except UserError as error:
        raise CheckFailed(f"The recipe doesn't resolve: {error}") from None


def parts_of(
    recipe: RecipeFile, config: RunConfig | None = None
) -> tuple[ActionSubset, Objective, PolicyExtraction, TrajectorySource]:
    """The parts that the recipe composes, or those of a configuration that its settings give."""
    config = config or config_of(recipe)
    subset, objective, extraction, source = (build_part(_registry(recipe), config, kind) for kind in PART_KINDS)
    return subset, objective, extraction, source


@check("recipe")
def readable(recipe: RecipeFile) -> None:
    """The file has all fields of a recipe, and no others, and is named like the recipe."""
    try:
        Recipe.read(recipe.path)
    except UserError as error:
        raise CheckFailed(str(error)) from None
    if recipe.path.stem != recipe.name:
        raise CheckFailed(
            f"The file '{recipe.path.name}' is registered as '{recipe.name}': name it {recipe.name}.yaml."
        )


@check("recipe")
def documented(recipe: RecipeFile) -> None:
    """Title, paper and formula are given."""
    found = Recipe.read(recipe.path)
    for name in ("title", "paper", "formula"):
        if not getattr(found, name).strip():
            raise CheckFailed(f"The recipe's {name} is empty.")
    if "=" not in found.formula:
        raise CheckFailed("The recipe's formula has no '=': write the loss a row, as in 'L(s, a) = -log pi(a|s)'.")


@check("recipe")
def resolves(recipe: RecipeFile) -> None:
    """It resolves to parts that fit, on its own and with each of its settings."""
    found = Recipe.read(recipe.path)
    configs = {"the recipe": config_of(recipe)}
    for family, tree in found.settings.items():
        try:
            configs[f"the settings for '{family}'"] = resolve(_registry(recipe), flags=merge(found.run, tree))
        except UserError as error:
            raise CheckFailed(f"The settings for '{family}' don't resolve: {error}") from None
    for which, config in configs.items():
        subset, objective, extraction, _ = parts_of(recipe, config)
        try:
            objective.check(subset, extraction)
        except UserError as error:
            raise CheckFailed(f"The parts of {which} don't fit: {error}") from None


@check("recipe")
def round_trip(recipe: RecipeFile) -> None:
    """The resolved configuration, written out and read back, is the same."""
    text = dump(config_of(recipe))
    again = dump(resolve(_registry(recipe), flags=yaml.safe_load(text)))
    if again != text:
        raise CheckFailed("The resolved configuration changes when it is written out and read back.")


@check("recipe")
def gradient(recipe: RecipeFile) -> None:
    """The composed loss is finite and moves the student, and splits over accumulation steps."""
    subset, objective, extraction, _ = parts_of(recipe)
    world = make_world()
    td, _ = batch(world, (subset, extraction))
    loss = total(evaluate(objective, td))
    found = gradients(loss, world)
    if not bool(torch.isfinite(loss).all()) or all(bool((g == 0).all()) for g in found):
        raise CheckFailed("The composed loss is not finite, or has no gradient for the student.")
    pieces = 0.0
    for i in range(len(world.answers)):
        part, _ = batch(world, (subset, extraction), Lay(Layout((i,))))
        pieces += float(total(evaluate(objective, part)).sum().detach())
    if abs(pieces - float(loss.sum().detach())) > 1e-6 * (1 + abs(pieces)):
        raise CheckFailed(f"The loss of a batch is {float(loss.sum().detach()):.6g}, and {pieces:.6g} in parts.")


TOKENS: Final = 400
"""Tokens of the world in which a subset should leave some out."""


@check("recipe")
def outside_mass(recipe: RecipeFile) -> None:
    """The loss, without a language-modelling term, sees probability that the student puts outside the subset."""
    if config_of(recipe).lm.weight > 0:
        return
    subset, objective, extraction, _ = parts_of(recipe)
    world = make_world(tokens=TOKENS)
    td, _ = batch(world, (subset.model_copy(update={"include_action": True}), extraction))
    if td.subset.full:
        return
    inside = members(td.subset, world.teacher.shape[1])
    partial = ~inside.all(1)
    right = td.subset.mass.clamp(max=1 - 1e-6)
    teacher = world.teacher.log_softmax(1)
    losses = []
    for mass in (right, right / 3):  # the other tokens share the rest, so that none of them is the likeliest
        others = ((1 - mass) / (~inside).sum(1).clamp(min=1)).log()
        logits = torch.where(inside, teacher + (mass / right).log()[:, None], others[:, None])
        losses.append(composed(objective, replace(td, student=DenseLogits(logits)))[partial])
    if not bool((losses[1] > losses[0] + 1e-3).all()):
        raise CheckFailed(
            "The loss doesn't rise when a student that else equals its teacher gives the subset a third of the "
            "probability: nothing holds the mass outside. Set objective.support_weight, or take an objective with a "
            "tail, or the softmax extraction."
        )


@check("recipe")
def learns(recipe: RecipeFile) -> None:
    """Minimised on a token tree, it brings the student's policy nearer to the teacher's on the subset."""
    subset, objective, extraction, _ = parts_of(recipe)
    if "learns" in objective.known_failures:  # which says why it comes no nearer
        return
    before, after = descend(make_tree(), subset, objective, extraction)
    if not after < 0.8 * before:
        raise CheckFailed(
            f"After {STEPS} steps on the teacher's answers the student's KL to the teacher on the subset is "
            f"{after:.4g} nats, and was {before:.4g}. Most likely the parts don't belong together."
        )
