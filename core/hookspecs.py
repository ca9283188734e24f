"""The hooks: the whole surface through which parts enter the program.

Every hook receives ``register(name, target)``. ``target`` is a class, or better ``"package.module:Class"``, which is
imported only when the part is used. A name taken twice is an error that names both distributions.
"""

from typing import TYPE_CHECKING, Protocol, runtime_checkable

import pluggy

if TYPE_CHECKING:
    from pathlib import Path

hookspec = pluggy.HookspecMarker("distillzoo")


@runtime_checkable
class Register(Protocol):
    """Callback that enters one part under its name."""

    def __call__(self, name: str, target: "type | str | Path") -> None: ...


@hookspec
def register_subsets(register: Register) -> None:
    """Enter subclasses of ``distillzoo.core.subset.ActionSubset``."""


@hookspec
def register_objectives(register: Register) -> None:
    """Enter subclasses of ``distillzoo.core.objective.Objective``."""


@hookspec
def register_extractions(register: Register) -> None:
    """Enter subclasses of ``distillzoo.core.extraction.PolicyExtraction``."""


@hookspec
def register_trajectories(register: Register) -> None:
    """Enter subclasses of ``distillzoo.core.trajectories.TrajectorySource``."""


@hookspec
def register_metrics(register: Register) -> None:
    """Enter subclasses of ``distillzoo.core.metric.Metric``."""


@hookspec
def register_suites(register: Register) -> None:
    """Enter subclasses of ``distillzoo.core.suite.Suite``."""


@hookspec
def register_recipes(register: Register) -> None:
    """Enter paths of recipe files (YAML)."""


@hookspec
def register_benchmarks(register: Register) -> None:
    """Enter paths of benchmark files (YAML): what a matrix of ``distillzoo bench run`` holds fixed."""


@hookspec
def register_commands(register: Register) -> None:
    """Enter click commands, which become subcommands of ``distillzoo``."""
