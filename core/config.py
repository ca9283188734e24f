"""The configuration of a run: one tree, filled by defaults, recipe, file and command line."""

import json
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any, Final, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from distillzoo.core.errors import UserError, explain
from distillzoo.core.part import Part
from distillzoo.core.recipe import Recipe, read_yaml
from distillzoo.core.registry import PART_KINDS, Kind, Registry

Dtype = Literal["auto", "float32", "bfloat16", "float16"]
Column = Literal["instruction", "input", "output", "messages"]
Tree = dict[str, Any]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class PartChoice(BaseModel):
    """A part by name; its parameters stand beside the name and are validated by the part itself."""

    model_config = ConfigDict(extra="allow")

    name: str

    @property
    def params(self) -> Tree:
        return dict(self.model_extra or {})


class ModelSource(_Section):
    """Where a model comes from."""

    model: str = Field(description="hub id, local folder, GGUF file or suite; for the student also prune:layers=N")
    revision: str | None = Field(None, description="branch, tag or commit on the hub")
    trust_remote_code: bool = Field(False, description="run model code from the repository; read it first")


class DataSource(_Section):
    """Where prompts and reference answers come from, and how they become tokens."""

    train: str | None = Field(None, description="JSON lines file, datasets id (id:split), or suite (suite:split)")
    valid: str | None = Field(None, description="the same, for evaluation; without it a share of train is held out")
    columns: dict[Column, str] = Field(
        default_factory=dict, description="column of the data for each of instruction, input, output or messages"
    )
    template: Literal["auto", "chat", "alpaca"] = Field(
        "auto", description="auto: the tokenizer's chat template if any"
    )
    max_length: int = Field(512, ge=2, description="tokens of prompt and response together")
    max_prompt_length: int = Field(256, ge=1, description="tokens of the prompt; the end is kept")
    limit: int | None = Field(None, ge=1, description="use only the first so many training rows")

    @model_validator(mode="after")
    def _leaves_room(self) -> "DataSource":
        if self.max_prompt_length >= self.max_length:
            raise ValueError(
                f"max_prompt_length ({self.max_prompt_length}) should be below max_length ({self.max_length}), "
                f"which counts prompt and response together"
            )
        return self


class Training(_Section):
    """The optimiser's settings."""

    max_steps: int = Field(1000, ge=1, description="optimiser steps")
    batch_size: int = Field(64, ge=1, description="sequences an optimiser step, over all processes")
    device_batch_size: int | None = Field(None, ge=1, description="sequences a forward pass; default: batch_size")
    lr: float = Field(5e-6, gt=0, description="peak learning rate of AdamW")
    betas: tuple[float, float] = Field((0.9, 0.95), description="AdamW's decay rates")
    weight_decay: float = Field(0.0, ge=0)
    schedule: Literal["cosine", "linear", "constant", "constant_with_warmup"] = "cosine"
    warmup_steps: int = Field(0, ge=0)
    max_grad_norm: float = Field(1.0, gt=0)
    log_every: int = Field(10, ge=1, description="optimiser steps between rows of metrics.jsonl")
    save_every: int = Field(500, ge=1, description="optimiser steps between checkpoints; the last two are kept")
    compile: bool = Field(False, description="compile the student's and the teacher's bodies with torch.compile")


class PlainCorpus(_Section):
    """A language-modelling term on a second corpus, which keeps general ability: weight ( (1 - share) * -log pi(a|s)
    + share * KL(pi_T || pi)(s) ), mean over the corpus's tokens."""

    data: str | None = Field(
        None, description="JSON lines with a 'text', datasets id (id:split), or suite (suite:split), read as plain text"
    )
    weight: float = Field(0.0, ge=0, description="of the term in the loss; 0 for none")
    teacher_share: float = Field(0.5, ge=0, le=1, description="share of the teacher's distribution in the term")
    limit: int | None = Field(None, ge=1, description="use only the first so many texts")

    @model_validator(mode="after")
    def _has_data(self) -> "PlainCorpus":
        if self.weight > 0 and self.data is None:
            raise ValueError("a weight needs a corpus: set lm.data, or lm.weight to 0")
        return self


class Evaluation(_Section):
    """What is measured at the end of a run, and how answers are decoded."""

    limit: int | None = Field(200, ge=1, description="evaluate on the first so many rows; null for all")
    metrics: list[str] = Field(default_factory=lambda: ["right", "rouge-l", "forward-kl", "reverse-kl"])
    temperature: float | None = Field(None, ge=0, description="sampling temperature; default: the extraction's")
    top_p: float | None = Field(None, gt=0, le=1, description="nucleus of the student; default: the extraction's")
    max_new_tokens: int | None = Field(None, ge=1, description="default: max_length - max_prompt_length")
    batch_size: int = Field(64, ge=1, description="sequences a forward pass")
    before: bool = Field(True, description="evaluate the teacher and the student before training too")


class Curve(_Section):
    """What is measured during the training, with the decoding of ``evaluate``."""

    every: int | None = Field(None, ge=1, description="optimiser steps between evaluations; null for none")
    limit: int | None = Field(100, ge=1, description="evaluate on the first so many rows; null for all")
    metrics: list[str] = Field(default_factory=lambda: ["right", "rouge-l"])


class RunConfig(_Section):
    """Everything that makes a run. The resolved tree is written into the run directory and repeats the run."""

    algo: str | None = Field(None, description="recipe that filled this tree")
    teacher: ModelSource = Field(default_factory=lambda: ModelSource(model="micro"))
    student: ModelSource | None = Field(None, description="default: the suite's student, if the teacher is a suite's")
    data: DataSource = Field(default_factory=DataSource)
    subset: PartChoice
    objective: PartChoice
    extraction: PartChoice = Field(default_factory=lambda: PartChoice(name="softmax"))
    trajectories: PartChoice = Field(default_factory=lambda: PartChoice(name="dataset"))
    train: Training = Field(default_factory=Training)
    lm: PlainCorpus = Field(default_factory=PlainCorpus)
    evaluate: Evaluation = Field(default_factory=Evaluation)
    curve: Curve = Field(default_factory=Curve)
    teacher_cache: Path | None = Field(
        None, description="folder that distillzoo cache build wrote: trajectories and the teacher's sets come from it"
    )
    sampler: Literal["transformers", "vllm"] = Field(
        "transformers", description="what samples a teacher that is sampled once, before training; vllm is an extra"
    )
    seed: int = Field(0, ge=0)
    device: str = Field("auto", description="auto, cpu, cuda, cuda:1, mps")
    dtype: Dtype = Field(
        "auto",
        description="of the matrix products in training, sampling, evaluation; auto: bfloat16 on a GPU, else float32",
    )
    output: Path | None = Field(None, description="run directory; default: a new one below runs/")
    wandb: bool = Field(False, description="log to Weights & Biases too (WANDB_MODE=offline works)")


IDENTITY: Final = ("name", "model")
"""Fields that say what a section is: where one of them changes, the section's other fields belong to something else."""


def resolve(
    registry: Registry,
    *,
    algo: str | None = None,
    file: Path | None = None,
    flags: Tree | None = None,
    sets: tuple[str, ...] = (),
    settings: str | None = None,
) -> RunConfig:
    """One configuration from its sources; each overrides those before it.

    Defaults, the recipe, the recipe's settings for the suite or model type of the teacher (or under the key that
    ``settings`` names), the YAML file, the flags, the ``--set`` assignments. Every part's parameters are validated and
    filled with their defaults here, before any model loads.

    Raises:
        UserError: a name, field or value is wrong; the message says which and what would be right.
    """
    from_file = read_yaml(file) if file else {}
    upper = merge(merge(from_file, flags or {}), assignments(sets))
    name = algo or upper.get("algo")
    tree: Tree = {}
    if name is not None:
        recipe = Recipe.read(registry.get("recipe", str(name)))
        family = settings or model_family(registry, _model_of(upper) or _model_of(recipe.run) or "micro")
        tree = merge(recipe.run, recipe.settings.get(family or "", {}))
        tree["algo"] = str(name)
    tree = merge(tree, upper)
    try:
        config = RunConfig.model_validate(tree)
    except ValidationError as error:
        raise _explained(error) from None
    _fill_from_suite(config, registry)
    _make_paths_absolute(config, registry)
    for kind in PART_KINDS:
        choice: PartChoice = getattr(config, kind)
        filled = choice_of(build_part(registry, config, kind), choice.model_dump())
        setattr(config, kind, PartChoice.model_validate(filled))
    for metric in (*config.evaluate.metrics, *config.curve.metrics):
        registry.entry("metric", metric)
    return config


def build_part(registry: Registry, config: RunConfig, kind: Kind) -> Any:
    """The part that a resolved configuration names."""
    choice: PartChoice = getattr(config, kind)
    return _build(registry, kind, choice.name, choice.params, kind)


def _build(registry: Registry, kind: Kind, name: str, params: Tree, where: str) -> Any:
    """A part with the parts that are its parameters, each given as a mapping with a name."""
    cls = registry.get(kind, name)
    built = dict(params)
    for field, info in cls.model_fields.items():
        inner, value = registry.kind_of(info.annotation), params.get(field)
        if inner is None:
            continue
        place = f"{where}.{field}"
        if field not in params:
            names = ", ".join(registry.names(inner))
            raise UserError(f"{where} '{name}' needs {place}, a part: --set {place}.name=NAME, one of {names}.")
        if not (isinstance(value, Mapping) and isinstance(value.get("name"), str)):
            raise UserError(
                f"{place} is a part: give it as {{name: ...}}, as in --set {place}.name=NAME, not {value!r}."
            )
        built[field] = _build(registry, inner, value["name"], {k: v for k, v in value.items() if k != "name"}, place)
    return cls.configure(where, built)


def choice_of(part: Any, chosen: Mapping[str, Any]) -> Tree:
    """All parameters of a part beside the name by which it was chosen, and so for the parts within it."""
    tree: Tree = {"name": chosen["name"]}
    for field, value in part.model_dump(mode="json").items():
        inner = getattr(part, field)
        tree[field] = choice_of(inner, chosen[field]) if isinstance(inner, Part) else value
    return tree


def merge(low: Tree, high: Mapping[str, Any]) -> Tree:
    """``high`` over ``low``, section by section.

    A part with another name drops the old part's parameters; another model drops the old one's revision and trust.
    """
    tree = deepcopy(low)
    for key, value in high.items():
        old = tree.get(key)
        if not (isinstance(old, dict) and isinstance(value, Mapping)):
            tree[key] = deepcopy(dict(value) if isinstance(value, Mapping) else value)
        elif any(value.get(name, old.get(name)) != old.get(name) for name in IDENTITY):
            tree[key] = deepcopy(dict(value))
        else:
            tree[key] = merge(old, value)
    return tree


def assignments(sets: tuple[str, ...]) -> Tree:
    """A tree from ``section.field=value`` strings; values are read as YAML.

    Raises:
        UserError: a string has no ``=`` or its value is no YAML.
    """
    tree: Tree = {}
    for text in sets:
        path, equals, value = text.partition("=")
        if not equals or not path.strip():
            raise UserError(f"--set {text!r} should read section.field=value, for example subset.p=0.9.")
        try:
            leaf: Any = _number(yaml.safe_load(value))
        except yaml.YAMLError as error:
            raise UserError(f"--set {text!r}: the value is no valid YAML: {' '.join(str(error).split())}.") from None
        tree = merge(tree, nested(path.strip(), leaf))
    return tree


def nested(path: str, leaf: Any) -> Tree:
    """``{"a": {"b": leaf}}`` for the path ``a.b``."""
    first, dot, rest = path.partition(".")
    return {first: nested(rest, leaf) if dot else leaf}


def _number(value: Any) -> Any:
    """YAML 1.1 reads 1e-3 as text, and nobody who types it means that."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def model_family(registry: Registry, model: str) -> str | None:
    """The key of a recipe's settings that fits a teacher: its suite's name or its model type, None if unknown."""
    if model in registry.names("suite"):
        return model
    path = Path(model) / "config.json"
    if not path.exists():
        return _hub_model_type(model)
    try:
        return str(json.loads(path.read_text(encoding="utf-8")).get("model_type"))
    except (OSError, ValueError):
        return None  # loading the model says what is wrong with it


def _hub_model_type(model: str) -> str | None:
    if Path(model).exists() or model.count("/") != 1 or model.startswith((".", "/")):
        return None
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        file = hf_hub_download(model, "config.json")
        return str(json.loads(Path(file).read_text(encoding="utf-8")).get("model_type"))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError):
        return None  # loading the model says what is wrong with it


def dump(config: RunConfig) -> str:
    """The resolved tree as YAML. The run directory is left out, so that the file starts a new run."""
    tree = config.model_dump(mode="json", exclude={"output"})
    return yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)


def _model_of(tree: Tree) -> str | None:
    teacher = tree.get("teacher")
    model = teacher.get("model") if isinstance(teacher, dict) else None
    return model if isinstance(model, str) else None


def _fill_from_suite(config: RunConfig, registry: Registry) -> None:
    """Student and data default to those of the teacher's suite; without a suite they must be given."""
    suite = config.teacher.model if config.teacher.model in registry.names("suite") else None
    if config.student is None:
        if suite is None:
            raise UserError(
                "A student is needed: pass --student with a hub id, a folder, a GGUF file, or prune:layers=N for a "
                "depth-pruned copy of the teacher."
            )
        config.student = ModelSource(model=suite)
    if config.student.model in registry.names("suite"):
        config.student.model += ":student"
    if config.data.train is None:
        if suite is None:
            raise UserError("Training data are needed: pass --data with a JSON lines file or a datasets id.")
        config.data.train = suite
        config.data.valid = config.data.valid or suite


def _make_paths_absolute(config: RunConfig, registry: Registry) -> None:
    """So that the resolved file works from any folder. A suite's name is no path, whatever lies in this folder."""
    for source in (config.teacher, config.student):
        if source is None or source.model.partition(":")[0] in registry.names("suite"):
            continue
        if Path(source.model).expanduser().exists():
            source.model = str(Path(source.model).expanduser().resolve())
    for section, name in ((config.data, "train"), (config.data, "valid"), (config.lm, "data")):
        where = getattr(section, name)
        if where is not None and Path(where).expanduser().is_file():
            setattr(section, name, str(Path(where).expanduser().resolve()))
    if config.teacher_cache is not None:
        config.teacher_cache = config.teacher_cache.expanduser().resolve()


def _explained(error: ValidationError) -> UserError:
    first = error.errors(include_url=False)[0]
    if first["type"] == "missing" and first["loc"] in {("subset",), ("objective",)}:
        return UserError(
            f"The run has no {first['loc'][0]}: name an algorithm with --algo, or the part with --{first['loc'][0]}."
        )
    return explain(error, "", RunConfig)
