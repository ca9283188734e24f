"""A benchmark in miniature, for ``--dry-run``: tiny random models of its architectures and rows of the micro world, so
that every cell of a matrix can be tried without a download and in seconds."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, Literal

import torch
import yaml
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.utils.logging import disable_progress_bar

from distillzoo.benchmarks.harness.benchmark import INPUT, Benchmark
from distillzoo.core.config import Tree, merge, model_family
from distillzoo.core.errors import UserError
from distillzoo.core.prune import pruned_layers
from distillzoo.core.registry import installed
from distillzoo.zoo.micro import TEACHER, examples

Role = Literal["teacher", "student"]

WIDTH: Final[dict[Role, int]] = {"teacher": 48, "student": 32}
LAYERS: Final[dict[Role, int]] = {"teacher": 4, "student": 2}

ROWS: Final = 12
"""Rows of every data set; an instruction of the micro world fits into ``SHORT`` with any template."""

PROMPTS: Final = 4
"""Prompts of every task."""

SHORT: Final[Tree] = {
    "data": {"limit": 8, "max_length": 112, "max_prompt_length": 80},
    "train": {"max_steps": 2, "batch_size": 4, "device_batch_size": None},
    "sampler": "transformers",
}
"""Over the configuration of every cell and every start."""


def _of_llama(width: int) -> Tree:
    return {"intermediate_size": 2 * width, "num_key_value_heads": 1}


OWN_SIZES: Final = {
    "gpt2": lambda width: {},
    "opt": lambda width: {"ffn_dim": 2 * width, "word_embed_proj_dim": width},
    "llama": _of_llama,
    "qwen2": _of_llama,
}
"""The architectures that a tiny model can be made of, and the names of their further sizes."""


def miniature(benchmark: Benchmark, folder: Path, given: Mapping[str, str]) -> tuple[Benchmark, dict[str, str]]:
    """A copy with two steps and a few prompts, and the values of its inputs.

    Models and data are replaced but for those of suites, which are on this machine already; algorithms, decodings,
    metrics and the recipes' settings stay.

    Args:
        benchmark: the benchmark.
        folder: where the models and data are written.
        given: inputs that the user gave; a model's folder among them says its architecture. None is needed.

    Raises:
        UserError: the architecture of a model is unknown, or no tiny model can be made of it.
    """
    return _Miniature(benchmark, folder, given).made()


def write(benchmark: Benchmark, path: Path) -> Path:
    """Write a benchmark's file."""
    path.write_text(yaml.safe_dump(benchmark.model_dump(mode="json"), sort_keys=False), encoding="utf-8")
    return path


class _Miniature:
    def __init__(self, benchmark: Benchmark, folder: Path, given: Mapping[str, str]) -> None:
        self._benchmark, self._folder, self._given = benchmark, folder, given
        rows = _rows(benchmark)
        self._data = _written(rows, folder / "rows.jsonl")
        self._values = {name: _written(rows, folder / "inputs" / f"{name}.jsonl") for name in benchmark.inputs}

    def made(self) -> tuple[Benchmark, dict[str, str]]:
        tree = self._benchmark.model_dump()
        tree["hashes"] = {}
        for one in tree["inputs"].values():
            one["sha256"] = None
        for name, pair in tree["pairs"].items():
            pair |= {"teacher": self._model(name, "teacher"), "student": self._model(name, "student")}
            pair["run"] = self._short(pair["run"])
        # recipes name a corpus on the hub, which stays away too
        tree["run"] = self._short(merge({"lm": {"data": self._data}}, tree["run"]))
        for start in (tree["teacher_start"], tree["student_start"]):
            if start is not None:
                start["run"] = self._short(start["run"])
        for task in tree["tasks"].values():
            task |= {"data": self._source(task["data"]), "limit": PROMPTS}
        if tree["curve"] is not None:
            tree["curve"] |= {"every": 1, "limit": 2}
        return Benchmark.model_validate(tree), self._values

    def _short(self, run: Tree) -> Tree:
        """A configuration cut to two steps, on data that are here."""
        small = merge(run, SHORT)
        for section, field in (("data", "train"), ("data", "valid"), ("lm", "data")):
            source = small.get(section, {}).get(field)
            if source is not None:
                small[section][field] = self._source(source)
        return small

    def _source(self, data: str) -> str:
        """What stands for a data source: inputs get their values apart, so that rows name them as ever."""
        kept = INPUT.fullmatch(data) is not None or data.partition(":")[0] in installed().names("suite")
        return data if kept else self._data

    def _model(self, name: str, role: Role) -> str:
        """What stands for a model of a pair."""
        model: str = getattr(self._benchmark.pairs[name], role)
        if pruned_layers(model) is not None:
            return f"prune:layers={LAYERS['student']}"
        if model.partition(":")[0] in installed().names("suite"):
            return model
        match = INPUT.fullmatch(model)
        if match is None:
            return str(_tiny(self._architecture(name, role, model), role, self._folder))
        value = self._given.get(match[1], self._benchmark.inputs[match[1]].default)
        self._values[match[1]] = str(_tiny(self._architecture(name, role, value), role, self._folder))
        return model

    def _architecture(self, name: str, role: Role, model: str | None) -> str:
        """A folder's own, what the pair says, or what the hub says."""
        found = None
        if model is not None and Path(model).expanduser().is_dir():
            found = model_family(installed(), str(Path(model).expanduser()))
        found = found or self._benchmark.pairs[name].architecture
        if found is None and model is not None:
            found = model_family(installed(), model)
        if found not in OWN_SIZES:
            problem = "is not known" if found is None else f"'{found}' has no tiny model"
            raise UserError(
                f"The architecture of the {role} of pair '{name}' {problem}: for --dry-run the pair needs an "
                f"architecture of {', '.join(OWN_SIZES)}."
            )
        return found


def _tiny(architecture: str, role: Role, folder: Path) -> Path:
    """The folder of a random model with the micro world's tokenizer."""
    path = folder / f"{architecture}-{role}"
    if path.exists():
        return path
    tokenizer: Any = AutoTokenizer.from_pretrained(TEACHER)
    config = AutoConfig.for_model(
        architecture,
        vocab_size=len(tokenizer),
        hidden_size=WIDTH[role],
        num_hidden_layers=LAYERS[role],
        num_attention_heads=4,
        max_position_embeddings=2 * SHORT["data"]["max_length"],
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **OWN_SIZES[architecture](WIDTH[role]),
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config)
    disable_progress_bar()
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def _rows(benchmark: Benchmark) -> str:
    """JSON lines that serve as any of the benchmark's data: the usual columns, those that it names, a plain text."""
    lines = []
    for row in examples("train")[:ROWS]:
        user, assistant = {"role": "user", "content": row["instruction"]}, row["output"][0]
        text = f"{row['instruction']} {assistant}"
        fields = {"instruction": row["instruction"], "input": row["input"], "output": row["output"]}
        known = {**fields, "messages": [user, {"role": "assistant", "content": assistant}]}
        lines.append({**fields, "text": text, **{name: known[field] for field, name in _columns(benchmark)}})
    return "".join(json.dumps(line) + "\n" for line in lines)


def _written(text: str, path: Path) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return str(path)


def _columns(benchmark: Benchmark) -> Iterator[tuple[str, str]]:
    """Field and column of all mappings."""
    starts = [start.run for start in (benchmark.teacher_start, benchmark.student_start) if start is not None]
    for run in (benchmark.run, *(pair.run for pair in benchmark.pairs.values()), *starts):
        yield from run.get("data", {}).get("columns", {}).items()
    for task in benchmark.tasks.values():
        yield from task.columns.items()
