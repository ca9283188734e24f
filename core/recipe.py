"""Recipes: an algorithm as data, a named composition of parts with its paper and its settings a model family."""

from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from distillzoo.core.errors import UserError, cannot, explain
from distillzoo.core.registry import PART_KINDS


class Recipe(BaseModel):
    """What a recipe file holds."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    title: str = Field(description="one line on what the algorithm is")
    version: int = Field(ge=1, description="raised when a change alters results")
    paper: str = Field(description="the source, for example arXiv:2505.20335")
    formula: str = Field(description="the loss a row as resolved by this recipe")
    differs: list[str] = Field(default_factory=list, description="known deviations from the paper")
    run: dict[str, Any] = Field(description="the part of the run's configuration that makes the algorithm")
    settings: dict[str, dict[str, Any]] = Field(
        default_factory=dict, description="further configuration by suite or by the teacher's model type"
    )
    trials: int | None = Field(None, ge=0, description="tuning trials that the settings rest on, where it is known")

    @field_validator("run")
    @classmethod
    def _names_parts(cls, run: dict[str, Any]) -> dict[str, Any]:
        for kind in PART_KINDS:
            choice = run.get(kind)
            if choice is not None and not (isinstance(choice, dict) and isinstance(choice.get("name"), str)):
                raise ValueError(
                    f"{kind} should be a mapping with a name, as in {kind}: {{name: ...}}, and is {choice!r}"
                )
        return run

    @classmethod
    def read(cls, path: Path) -> "Recipe":
        """Read and validate a recipe file.

        Raises:
            UserError: the file is missing, is no YAML mapping, or a field is wrong.
        """
        try:
            return cls.model_validate(read_yaml(path))
        except ValidationError as error:
            raise UserError(f"Recipe '{path}': {explain(error, '', cls)}") from None


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file that holds a mapping.

    Raises:
        UserError: the file cannot be read, is no valid YAML (the message gives the line) or is no mapping.
    """
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise cannot("read", path, error) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"'{path}' is no valid YAML: {' '.join(str(error).split())}.") from None
    if not isinstance(tree, dict):
        raise UserError(f"'{path}' should hold a mapping of fields, and holds {type(tree).__name__}.")
    return tree
