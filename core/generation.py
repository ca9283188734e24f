"""Sampling in batches with a key-value cache."""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    TemperatureLogitsWarper,
    TopPLogitsWarper,
)

from distillzoo.core.errors import cannot
from distillzoo.core.extraction import Decoding
from distillzoo.core.mixture import Mixing, Mixture, Recording
from distillzoo.core.trajectories import Completion, Sampler

Progress = Callable[[int], None]
"""Called with the number of sequences that a batch finished."""


@dataclass(frozen=True)
class Generator:
    """Samples from a model with exactly the stated decoding: nothing of the model's own generation settings applies.

    Attributes:
        model: the model to sample from.
        stops: ids that end a response.
        pad: id for padding; positions are told apart by the attention mask, so it may be one of the stops.
        suppressed: columns of the model that hold no token; they are never sampled.
        max_new_tokens: length limit of a response.
        batch_size: sequences a batch.
        progress: called after each batch.
        with_logprobs: whether completions carry their log-probabilities.
        mixture: a teacher to be mixed in, token by token.
    """

    model: PreTrainedModel
    stops: Sequence[int]
    pad: int
    suppressed: Sequence[int]
    max_new_tokens: int
    batch_size: int
    progress: Progress = lambda count: None
    with_logprobs: bool = False
    mixture: Mixture | None = None

    @torch.no_grad()
    def __call__(self, prompts: Sequence[list[int]], decoding: Decoding, seed: int) -> list[Completion]:
        """One completion a prompt. The global random state is left as it was."""
        completions: dict[int, Completion] = {}
        by_length = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
        training = self.model.training
        self.model.eval()
        devices = [self.model.device] if self.model.device.type == "cuda" else []
        with torch.random.fork_rng(devices), _own_settings(self.model):
            torch.manual_seed(seed)
            for start in range(0, len(by_length), self.batch_size):
                part = by_length[start : start + self.batch_size]
                completions.update(zip(part, self._batch([prompts[i] for i in part], decoding), strict=True))
                self.progress(len(part))
        self.model.train(training)
        return [completions[i] for i in range(len(prompts))]

    def _batch(self, prompts: list[list[int]], decoding: Decoding) -> list[Completion]:
        width = max(map(len, prompts))
        ids = torch.tensor([[self.pad] * (width - len(p)) + p for p in prompts], device=self.model.device)
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=self.model.device)
        recording = Recording()
        processors = [] if self.mixture is None else [Mixing(self.mixture, mask)]
        processors = [*processors, *_warpers(decoding), *([recording] if self.with_logprobs else [])]
        sampled: Any = self.model.generate(
            input_ids=ids,
            attention_mask=mask,
            generation_config=self._settings(decoding),
            logits_processor=LogitsProcessorList(processors),
        )
        answers = sampled[:, width:]
        if not self.with_logprobs:
            return [self._cut(row) for row in answers.tolist()]
        recording.note(answers[:, -1])
        logprobs = torch.stack(recording.picked, 1).tolist()
        cut = [self._cut(row) for row in answers.tolist()]
        return [replace(c, logprobs=row[: len(c.tokens)]) for c, row in zip(cut, logprobs, strict=True)]

    def _settings(self, decoding: Decoding) -> GenerationConfig:
        # the warpers are ours, so that what is recorded is what the tokens are drawn from
        sampling: dict[str, Any] = {"do_sample": False}
        if decoding.temperature > 0:
            sampling = {"do_sample": True, "temperature": 1.0, "top_p": 1.0, "top_k": 0}
        return GenerationConfig(
            max_new_tokens=self.max_new_tokens,
            eos_token_id=list(self.stops),
            pad_token_id=self.pad,
            suppress_tokens=list(self.suppressed) or None,
            **sampling,
        )

    def _cut(self, tokens: list[int]) -> Completion:
        for i, token in enumerate(tokens):
            if token in self.stops:
                return Completion(tokens[: i + 1], ended=True)
        return Completion(tokens, ended=False)


def _warpers(decoding: Decoding) -> list[LogitsProcessor]:
    found: list[LogitsProcessor] = []
    if decoding.temperature not in (0.0, 1.0):
        found.append(TemperatureLogitsWarper(float(decoding.temperature)))
    if decoding.temperature > 0 and decoding.top_p < 1.0:
        found.append(TopPLogitsWarper(decoding.top_p))
    return found


@contextmanager
def _own_settings(model: PreTrainedModel) -> Iterator[None]:
    """transformers fills what a generation config leaves open from the model's own; an empty one keeps that out."""
    kept, model.generation_config = model.generation_config, GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = kept


@dataclass(frozen=True)
class KeptSamples:
    """A sampler whose results are kept on disk under a key made of everything that they depend on.

    Attributes:
        sampler: samples what is not there yet.
        identity: what the samples depend on besides the arguments: model and tokenizer hashes, lengths, stops.
        folder: where the files lie.
    """

    sampler: Sampler
    identity: dict[str, Any]
    folder: Path
    notice: Callable[[str], None] = lambda text: None

    def __call__(self, prompts: Sequence[list[int]], decoding: Decoding, seed: int) -> list[Completion]:
        key = self.key(prompts, decoding, seed)
        path = self.folder / f"{key[:32]}.parquet"
        kept = _read(path)
        if kept is not None:
            self.notice(f"{len(prompts):,} samples read from {path}")
            return kept
        completions = self.sampler(prompts, decoding, seed)
        table = pa.table(
            {
                "tokens": pa.array([c.tokens for c in completions], pa.list_(pa.int32())),
                "ended": [c.ended for c in completions],
            }
        )
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            half = path.with_suffix(f".{os.getpid()}.part")
            pq.write_table(table, half)
            half.replace(path)
        except OSError as error:
            raise cannot("write", path, error) from None
        return completions

    def key(self, prompts: Sequence[list[int]], decoding: Decoding, seed: int) -> str:
        """sha256 of identity, decoding, seed and prompts."""
        facts = {**self.identity, "decoding": asdict(decoding), "seed": seed, "prompts": [list(p) for p in prompts]}
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _read(path: Path) -> list[Completion] | None:
    """Samples of an earlier run; None if there are none, or the file is damaged, which makes them anew."""
    try:
        table = pq.read_table(path)
    except (FileNotFoundError, pa.ArrowInvalid):
        return None
    rows = zip(table["tokens"].to_pylist(), table["ended"].to_pylist(), strict=True)
    return [Completion(tokens, ended) for tokens, ended in rows]
