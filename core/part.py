"""The base of every plugin part: its parameters are its fields."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from distillzoo.core.errors import UserError, explain


class Part(BaseModel):
    """A subset, objective, extraction, trajectory source or metric.

    A part is a frozen pydantic model. Its parameters are its fields, so they are validated, documented by
    ``Field(description=...)`` and written into the run's configuration without further code. Its docstring is the
    paper in miniature: intent, formula, shapes, source; ``distillzoo show`` prints it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)

    paper: ClassVar[str] = ""
    """Where the part comes from, for example ``arXiv:2505.20335, eq. 7``."""

    known_failures: ClassVar[Mapping[str, str]] = {}
    """Checks of the conformance kit that the part fails, with the reason; one that passes after all is an error."""

    @classmethod
    def examples(cls) -> Sequence["Part"]:
        """Instances that the conformance kit checks; override it where parameters change what the part does.

        Raises:
            UserError: a parameter has no default, so the part must give its own examples.
        """
        return [cls.configure(f"{cls.__name__}.examples", {})]

    @classmethod
    def configure(cls, where: str, params: dict[str, Any]) -> Self:
        """Build the part from configuration values.

        Raises:
            UserError: a parameter is unknown, missing or out of range (the message names ``where.parameter``), or the
                class lacks a method.
        """
        try:
            return cls(**params)
        except ValidationError as error:
            raise explain(error, where, cls) from None
        except TypeError as error:  # a method that every part of its kind has is missing
            raise UserError(f"{where}: {error}.") from None
