"""From files and data sets to encoded prompts with their reference answers."""

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from jinja2 import TemplateError

from distillzoo.core.config import Column, DataSource
from distillzoo.core.errors import UserError, cannot, suggest
from distillzoo.core.registry import Registry
from distillzoo.core.suite import Suite
from distillzoo.core.trajectories import Completion, PromptRow, Trajectory

Row = dict[str, Any]
"""An example: ``instruction``, ``input`` and ``output`` (a list), or ``messages`` and ``output``."""

HELD_OUT: Final = 0.05
"""Share of the training rows that is held out for evaluation where no validation data are given."""

ALPACA: Final = (
    "Below is an instruction that describes a task{with_input}. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n{input_part}### Response:\n"
)


def load_rows(source: str, data: DataSource, registry: Registry, default_split: str) -> tuple[list[Row], Suite | None]:
    """The rows of a JSON lines file, a suite (``name`` or ``name:split``) or a datasets id (``id`` or ``id:split``).

    Raises:
        UserError: the source does not exist, is empty, or a row is malformed; the message names file and line.
    """
    name, _, split = source.partition(":")
    if name in registry.names("suite"):
        suite: Suite = registry.get("suite", name)()
        wanted = split or default_split
        if wanted not in suite.splits:
            raise UserError(f"The suite '{name}' has no split '{wanted}'.{suggest(wanted, suite.splits)}")
        return list(suite.examples(wanted)), suite
    path = Path(source).expanduser()
    if path.suffix in {".jsonl", ".json"} or path.exists():
        rows = [_row(raw, data.columns, f"{path}, line {number}") for number, raw in _json_lines(path)]
    else:
        wanted = split or default_split
        found = enumerate(_dataset_rows(name, wanted))
        rows = [_row(raw, data.columns, f"{name}:{wanted}, row {i}") for i, raw in found]
    if not rows:
        raise UserError(f"'{source}' holds no rows.")
    return rows, None


def _json_lines(path: Path, limit: int | None = None) -> list[tuple[int, Row]]:
    """Line numbers and objects of a JSON lines file, the first ``limit`` of them."""
    rows: list[tuple[int, Row]] = []
    try:
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                if limit is not None and len(rows) == limit:
                    break
                if line.strip():
                    rows.append((number, _parse(line, f"{path}, line {number}")))
    except OSError as error:
        raise cannot("read", path, error) from None
    except UnicodeDecodeError as error:
        raise UserError(f"'{path}' is no UTF-8 text: {error.reason} at byte {error.start}.") from None
    return rows


def _parse(line: str, where: str) -> Row:
    try:
        value = json.loads(line)
    except ValueError as error:
        raise UserError(f"{where}: no valid JSON ({error}). Each line should hold one JSON object.") from None
    if not isinstance(value, dict):
        raise UserError(
            f"{where}: should be a JSON object with 'instruction' and 'output', not {type(value).__name__}."
        )
    return value


def _dataset_rows(name: str, split: str, limit: int | None = None) -> list[Row]:
    import datasets

    try:
        if limit is None:
            return [dict(row) for row in datasets.load_dataset(name, split=split)]
        return [dict(row) for row in datasets.load_dataset(name, split=split, streaming=True).take(limit)]
    except Exception as error:  # datasets raises a dozen kinds for "not found" and "no network"
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"'{name}' is neither a file nor a data set that can be loaded: {first}") from None


def _row(raw: Row, columns: dict[Column, str], where: str) -> Row:
    """Check one row and bring it into the one form that the program uses."""

    def column(field_name: Column) -> Any:
        if field_name in columns and columns[field_name] not in raw:
            raise UserError(
                f"{where}: data.columns.{field_name} is '{columns[field_name]}', which is no column."
                f"{suggest(columns[field_name], raw)}"
            )
        return raw.get(columns.get(field_name, field_name))

    messages = column("messages")
    if messages is not None:
        return _from_messages(messages, where)
    instruction, context, output = column("instruction"), column("input"), column("output")
    if not isinstance(instruction, str) or not instruction.strip():
        fields = ", ".join(map(repr, raw)) or "none"
        raise UserError(
            f"{where}: 'instruction' should be a text that is not empty, or 'messages' a list. Fields: {fields}; "
            f"other names can be given with --set data.columns.instruction=NAME."
        )
    if not (context is None or isinstance(context, str)):
        raise UserError(f"{where}: 'input' should be a text, and is {context!r}.")
    answers = [output] if isinstance(output, str) else output
    if not isinstance(answers, list) or not answers or not all(isinstance(a, str) and a.strip() for a in answers):
        raise UserError(
            f"{where}: 'output' should be a text or a list of texts, none of them empty, and is {output!r}."
        )
    return {**raw, "instruction": instruction, "input": context or "", "output": answers}


def _from_messages(messages: Any, where: str) -> Row:
    fine = isinstance(messages, list) and all(
        isinstance(m, dict) and isinstance(m.get("role"), str) and isinstance(m.get("content"), str) for m in messages
    )
    if not fine or len(messages) < 2 or messages[-1]["role"] != "assistant":
        raise UserError(
            f"{where}: 'messages' should be a list of objects with 'role' and 'content' that ends with the assistant's."
        )
    return {"messages": messages[:-1], "instruction": messages[-2]["content"], "output": [messages[-1]["content"]]}


def hold_out(rows: list[Row], seed: int) -> tuple[list[Row], list[Row]]:
    """Split off ``HELD_OUT`` of the rows, at least one, for evaluation.

    Raises:
        UserError: there is a single row.
    """
    if len(rows) < 2:
        raise UserError("One training row cannot be split into two parts: pass evaluation data with --valid.")
    order = list(range(len(rows)))
    random.Random(seed).shuffle(order)
    count = max(1, round(HELD_OUT * len(rows)))
    held = set(order[:count])
    return [r for i, r in enumerate(rows) if i not in held], [rows[i] for i in sorted(held)]


@dataclass
class Truncation:
    """What the length limits cut."""

    prompts: int = 0
    answers: int = 0
    rows: int = 0


def load_texts(source: str, encoder: "Encoder", registry: Registry, limit: int | None) -> list[Trajectory]:
    """Plain texts as trajectories whose prompt is the first token; a suite's rows are read as prompt and answer.

    Raises:
        UserError: the source does not exist, is empty or malformed.
    """
    name = source.partition(":")[0]
    if name in registry.names("suite"):
        rows, _ = load_rows(source, encoder.data, registry, "train")
        encoded = [(row.prompt, row.references[0]) for row in encoder.encode(rows[:limit], Truncation())]
        texts = [Completion([*prompt, *answer.tokens], answer.ended) for prompt, answer in encoded]
    else:
        texts = [encoder.plain(text) for text in _read_texts(source, limit)]
    usable = [Trajectory(t.tokens[:1], Completion(t.tokens[1:], t.ended), "text") for t in texts if len(t.tokens) > 1]
    if not usable:
        raise UserError(f"lm.data: '{source}' holds no text of two tokens or more.")
    return usable


def _read_texts(source: str, limit: int | None) -> list[str]:
    path = Path(source).expanduser()
    name, _, split = source.partition(":")
    if path.suffix in {".jsonl", ".json"} or path.exists():
        raw = [(row, f"{path}, line {number}") for number, row in _json_lines(path, limit)]
    else:
        raw = [(row, f"{name}, row {i}") for i, row in enumerate(_dataset_rows(name, split or "train", limit))]
    for row, where in raw:
        if not isinstance(row.get("text"), str):
            raise UserError(f"{where}: a plain corpus has a 'text' in each row. Fields: {', '.join(map(repr, row))}.")
    return [row["text"] for row, _ in raw]


@dataclass(frozen=True)
class Encoder:
    """Turns rows into tokens, with the chat template where the tokenizer has one, else the Alpaca template.

    Prompt and answer are encoded apart and joined, so the state before the first answer token is the same when training
    as when the student answers. An answer ends with ``end``, the token that closes the assistant's turn.
    """

    tokenizer: Any
    end: int
    data: DataSource

    def prompt_text(self, row: Row) -> str:
        """The prompt as text, up to where the answer begins."""
        messages = row.get("messages") or [{"role": "user", "content": _user_text(row)}]
        if self.uses_chat_template:
            try:
                return str(self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
            except TemplateError as error:
                roles = ", ".join(m["role"] for m in messages)
                raise UserError(f"The chat template refuses a prompt with the roles {roles}: {error}") from None
        if "messages" in row:
            return "\n\n".join(f"{m['role']}: {m['content']}" for m in messages) + "\n\nassistant: "
        context = row.get("input", "")
        return ALPACA.format(
            with_input=", paired with an input that provides further context" if context else "",
            instruction=row["instruction"],
            input_part=f"### Input:\n{context}\n\n" if context else "",
        )

    @property
    def uses_chat_template(self) -> bool:
        """Whether prompts go through the tokenizer's own chat template."""
        if self.data.template == "chat" and not self.tokenizer.chat_template:
            raise UserError("data.template is 'chat', and the tokenizer has no chat template. Use 'auto' or 'alpaca'.")
        return bool(self.tokenizer.chat_template) and self.data.template != "alpaca"

    def encode(self, rows: Sequence[Row], truncation: Truncation) -> list[PromptRow]:
        """Encode rows; what the limits cut is counted in ``truncation``."""
        encoded = []
        for row in rows:
            # a chat template writes the special tokens itself; the plain one needs the tokenizer's begin token
            prompt = self.tokenizer(
                self.prompt_text(row), add_special_tokens=not self.uses_chat_template, return_attention_mask=False
            )["input_ids"]
            if not self.uses_chat_template and prompt and prompt[-1] == self.tokenizer.eos_token_id:
                prompt = prompt[:-1]  # some tokenizers close every text, and this one goes on
            if len(prompt) > self.data.max_prompt_length:
                truncation.prompts += 1
                prompt = prompt[-self.data.max_prompt_length :]
            if not prompt:
                raise UserError(f"A prompt has no tokens: {row['instruction']!r}.")
            references = [self._answer(text, len(prompt), truncation) for text in row["output"]]
            truncation.rows += 1
            encoded.append(PromptRow(prompt, references))
        return encoded

    def _answer(self, text: str, prompt_length: int, truncation: Truncation) -> Completion:
        tokens = self.tokenizer(text, add_special_tokens=False, return_attention_mask=False)["input_ids"]
        tokens = [*tokens, self.end]
        room = max(1, self.data.max_length - prompt_length)
        if len(tokens) > room:
            truncation.answers += 1
            return Completion(tokens[:room], ended=False)
        return Completion(tokens, ended=True)

    def plain(self, text: str) -> Completion:
        """A plain text, cut at ``max_length`` tokens."""
        tokens = self.tokenizer(text, return_attention_mask=False)["input_ids"]
        if tokens[-1:] != [self.end]:
            tokens = [*tokens, self.end]
        return Completion(tokens[: self.data.max_length], ended=len(tokens) <= self.data.max_length)

    def text(self, tokens: Sequence[int]) -> str:
        """An answer's text, without special tokens."""
        return str(self.tokenizer.decode(list(tokens), skip_special_tokens=True)).strip()


def _user_text(row: Row) -> str:
    context = row.get("input", "")
    return f"{row['instruction']}\n\n{context}" if context else str(row["instruction"])


def end_token(tokenizer: Any) -> int:
    """The token that ends an answer: what the chat template writes after it, else the end-of-sequence token.

    Raises:
        UserError: the tokenizer has neither.
    """
    special = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)
    if tokenizer.chat_template:
        marker = "answer"
        turns = [{"role": "user", "content": "question"}, {"role": "assistant", "content": marker}]
        text = str(tokenizer.apply_chat_template(turns, tokenize=False))
        after = tokenizer(text.rpartition(marker)[2], add_special_tokens=False)["input_ids"]
        if after and after[0] in special:
            return int(after[0])
    if tokenizer.eos_token_id is None:
        raise UserError("The tokenizer has no end-of-sequence token, so no answer could ever end. Set its eos_token.")
    return int(tokenizer.eos_token_id)
