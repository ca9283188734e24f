"""Benchmarks: what a matrix of algorithms holds fixed, as a YAML file that a plugin registers."""

import hashlib
import re
from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from distillzoo.core.config import Column, assignments, merge
from distillzoo.core.errors import UserError, explain, suggest
from distillzoo.core.recipe import read_yaml
from distillzoo.core.registry import Registry

INPUT: Final = re.compile(r"input:([a-z0-9-]+)")
"""How a benchmark's file names what the user gives by path."""


PAIR_NAME: Final = re.compile(r"[a-z0-9.]+(-[a-z0-9.]+)*")
"""A pair's name is part of a folder's."""

OVER_THE_SUITE: Final = "suite."
"""How a setting begins that changes the benchmark itself, not the configuration of its cells."""


NAMED: Final = ("inputs", "pairs", "tasks", "decodings")
"""Fields whose keys are names of the benchmark's own."""


FILES: Final = (".json", ".jsonl", ".csv", ".parquet", ".gguf", ".txt")
"""Endings of a file's name; what ends so is no hub id."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Input(_Section):
    """Something that the user gives with ``--input NAME=VALUE``: a path or a hub id."""

    about: str = Field(description="what it is, and where it can be had")
    default: str | None = Field(None, description="a hub id that is taken without the option")
    sha256: str | None = Field(None, description="of the file; another file is refused")


class Pair(_Section):
    """A teacher and a student."""

    teacher: str = Field(description="suite, hub id, folder or input:NAME")
    student: str = Field(description="the same, or prune:layers=N")
    architecture: str | None = Field(None, description="model type, as in gpt2: for --dry-run where no hub is at hand")
    run: dict[str, Any] = Field(default_factory=dict, description="configuration that belongs to the pair")
    gpu_hours: float | None = Field(None, gt=0, description="estimate for one cell on one H100")


class FineTuning(_Section):
    """A model's start, made once and shared by all cells: a recipe's run on the training data."""

    algo: str = "bc"
    run: dict[str, Any] = Field(default_factory=dict, description="configuration over the recipe's")


class Task(_Section):
    """A set of prompts with reference answers on which trained students are scored."""

    data: str = Field(description="JSON lines file, datasets id (id:split), suite (suite:split) or input:NAME")
    columns: dict[Column, str] = Field(default_factory=dict, description="as data.columns of a run")
    limit: int | None = Field(None, ge=1, description="only the first so many prompts; null for all")


class DecodingChoice(_Section):
    """How answers are sampled, and which metrics are taken of them."""

    temperature: float = Field(1.0, ge=0)
    top_p: float = Field(1.0, gt=0, le=1)
    metrics: list[str] = Field(min_length=1)


class Headline(_Section):
    """The score that ranks."""

    metric: str
    decoding: str


class Curve(_Section):
    """What is measured during the training, on the first validation rows."""

    every: int = Field(ge=1, description="optimiser steps")
    metrics: list[str] = Field(min_length=1)
    decoding: str
    limit: int | None = Field(None, ge=1)


class Benchmark(_Section):
    """Everything that the cells of a matrix have in common.

    A cell's configuration is the recipe's with its settings for ``settings``, then what ``algorithms`` has for it, then
    ``run``, the pair's ``run`` and the seed. What ``run`` says holds for every algorithm, so the budget stands there.
    """

    title: str
    version: int = Field(ge=1, description="raised when a change alters results")
    about: str
    inputs: dict[str, Input] = Field(default_factory=dict)
    pairs: dict[str, Pair] = Field(min_length=1)
    run: dict[str, Any] = Field(description="configuration of every cell: data, lengths, budget")
    settings: str | None = Field(None, description="key of the recipes' settings; default: the teacher's model type")
    algorithms: dict[str, dict[str, Any]] = Field(
        default_factory=dict, description="configuration of single algorithms here, for those without such settings"
    )
    teacher_start: FineTuning | None = None
    student_start: FineTuning | None = None
    hashes: dict[str, str] = Field(
        default_factory=dict, description="sha256 that teacher, student_before, tokenizer, data and task NAME must have"
    )
    teacher_cache: bool = Field(
        False, description="whether algorithms that need the teacher's sets alone train from a cache that they share"
    )
    tasks: dict[str, Task] = Field(min_length=1)
    decodings: dict[str, DecodingChoice] = Field(min_length=1)
    headline: Headline
    curve: Curve | None = None
    seeds: int = Field(5, ge=1, description="seeds 0 to seeds - 1")
    trials: dict[str, int] = Field(
        default_factory=dict, description="tuning trials that the settings of each algorithm rest on, where it is known"
    )
    answers_may_be_published: bool = Field(False, description="whether prompts and answers may be shown on a page")

    @model_validator(mode="after")
    def _names_fit(self) -> "Benchmark":
        for field, chosen in (("headline", self.headline), ("curve", self.curve)):
            if chosen is not None and chosen.decoding not in self.decodings:
                known = suggest(chosen.decoding, self.decodings)
                raise ValueError(f"{field}.decoding is '{chosen.decoding}', which is no decoding here.{known}")
        wanted = self.decodings[self.headline.decoding].metrics
        if self.headline.metric not in wanted:
            known = suggest(self.headline.metric, wanted)
            raise ValueError(f"headline.metric is '{self.headline.metric}', which is not measured.{known}")
        measured = {metric for decoding in self.decodings.values() for metric in decoding.metrics}
        for metric in self.curve.metrics if self.curve is not None else ():
            if metric not in measured:  # the scores say which values are better
                raise ValueError(
                    f"curve.metrics has '{metric}', which no decoding measures.{suggest(metric, measured)}"
                )
        for name in self.pairs:
            if not PAIR_NAME.fullmatch(name):
                raise ValueError(f"pairs.{name}: a name is lower-case words, figures, dots and hyphens.")
        for name in _inputs_in(self.model_dump()):
            if name not in self.inputs:
                raise ValueError(f"input:{name} is named, and inputs has no '{name}'.{suggest(name, self.inputs)}")
        return self

    @classmethod
    def read(cls, path: Path, changes: Sequence[str] = ()) -> "Benchmark":
        """Read and validate a benchmark's file.

        Args:
            path: the file.
            changes: ``FIELD=VALUE`` settings over it; those that begin with ``suite.`` are taken.

        Raises:
            UserError: the file is missing, is no YAML mapping, or a field is wrong.
        """
        file, own = read_yaml(path), parted(changes)[0]
        tree = merge(file, assignments(own).get(OVER_THE_SUITE.rstrip("."), {}))
        try:
            return cls.model_validate(tree)
        except ValidationError as error:
            new = [(part, name) for part in NAMED for name in _names(tree, part) if name not in _names(file, part)]
            hints = "".join(
                f" The file has no '{part}.{name}'.{suggest(name, _names(file, part))}" for part, name in new
            )
            where = f"Benchmark '{path.name}' with --set {', '.join(own)}" if own else f"Benchmark '{path}'"
            raise UserError(f"{where}: {explain(error, '', cls)}{hints}") from None

    def given(self, values: Mapping[str, str]) -> dict[str, str]:
        """The inputs' values: those given, else the defaults. Files are named by absolute paths.

        Raises:
            UserError: an input is unknown, missing, or a file with another hash than the benchmark's.
        """
        for name in values:
            if name not in self.inputs:
                known = suggest(name, self.inputs) if self.inputs else " It takes none."
                raise UserError(f"--input {name}: the benchmark has no such input.{known}")
        missing = {name: one.about for name, one in self.inputs.items() if values.get(name, one.default) is None}
        if missing:
            needed = "; ".join(f"--input {name}=PATH: {about}" for name, about in missing.items())
            raise UserError(f"This benchmark needs {needed}")
        found = {}
        for name, one in self.inputs.items():
            value = values.get(name) or str(one.default)
            path = Path(value).expanduser()
            if path.exists():
                value = str(path.resolve())
            elif path.suffix in FILES or value.startswith(("/", ".", "~")):
                raise UserError(f"--input {name}={value}: there is no such file or folder.")
            if one.sha256 is not None and path.is_file() and sha256_of(path) != one.sha256:
                raise UserError(f"--input {name}={value}: the file's sha256 is not {one.sha256}, the benchmark's.")
            found[name] = value
        return found


def _names(tree: Mapping[str, Any], part: str) -> list[str]:
    """The keys of a field that may be anything as yet."""
    found = tree.get(part)
    return [str(name) for name in found] if isinstance(found, Mapping) else []


def parted(changes: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Settings over the benchmark itself, and those over the configuration of its cells."""
    own = tuple(change for change in changes if change.startswith(OVER_THE_SUITE))
    return own, tuple(change for change in changes if change not in own)


def with_inputs(tree: Any, values: Mapping[str, str]) -> Any:
    """A copy of a tree with each ``input:NAME`` replaced by its value."""
    if isinstance(tree, Mapping):
        return {key: with_inputs(value, values) for key, value in tree.items()}
    if isinstance(tree, list):
        return [with_inputs(value, values) for value in tree]
    match = INPUT.fullmatch(tree) if isinstance(tree, str) else None
    return deepcopy(tree) if match is None else values[match[1]]


def renamed(tree: Any, names: Mapping[str, str]) -> Any:
    """A copy of a tree with values replaced by their names, so that a row tells no path of its machine."""
    if isinstance(tree, Mapping):
        return {key: renamed(value, names) for key, value in tree.items()}
    if isinstance(tree, list):
        return [renamed(value, names) for value in tree]
    return names.get(tree, tree) if isinstance(tree, str) else tree


def benchmark_of(registry: Registry, name: str, changes: Sequence[str] = ()) -> tuple[Benchmark, Path]:
    """A registered benchmark and its file; raises as ``Registry.get`` and ``Benchmark.read``."""
    if Path(name).suffix in (".yaml", ".yml"):
        raise UserError(
            f"A benchmark is named, and '{name}' is a file: a plugin registers it under a name, in a few lines "
            f"(docs/benchmarks.md, 'Your own, in a plugin')."
        )
    path = Path(registry.get("benchmark", name))
    return Benchmark.read(path, changes), path


def sha256_of(path: Path) -> str:
    """Hash of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def content(inputs: Mapping[str, str]) -> dict[str, str]:
    """What inputs are: the hash of a file, whatever it is called; a folder's name with the sizes and times of its
    files, which hold gigabytes; the name of anything else."""
    return {name: _identity(Path(value)) if Path(value).exists() else value for name, value in inputs.items()}


def _identity(path: Path) -> str:
    if path.is_file():
        return sha256_of(path)
    files = ((file.name, file.stat()) for file in sorted(path.iterdir()) if file.is_file())
    return " ".join([str(path), *(f"{name} {facts.st_size} {facts.st_mtime_ns}" for name, facts in files)])


def _inputs_in(tree: Any) -> set[str]:
    if isinstance(tree, Mapping):
        return set().union(*(_inputs_in(value) for value in tree.values()))
    if isinstance(tree, list):
        return set().union(*(_inputs_in(value) for value in tree))
    match = INPUT.fullmatch(tree) if isinstance(tree, str) else None
    return set() if match is None else {match[1]}
