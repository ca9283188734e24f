"""Sampling in batches with a key-value cache."""

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from filelock import FileLock
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    TemperatureLogitsWarper,
)

from distillzoo.core.errors import cannot
from distillzoo.core.extraction import Decoding
from distillzoo.core.mixture import Mixing, Mixture, Nucleus, Recording
from distillzoo.core.models import products_in
from distillzoo.core.rounds import derived
from distillzoo.core.trajectories import Completion, Sampler

BLOCK: Final = 4096
"""Samples that are kept together."""

SECONDS: Final = "seconds"
"""Key of what drawing a block took, in the metadata of its file."""

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
        with_logprobs: whether completions carry the log-probabilities, in nats, of exactly the distributions that the
            tokens are drawn from: after mixture, temperature and nucleus; 0 where the likeliest token is picked.
        mixture: a teacher to be mixed in, token by token.
        dtype: of the matrix products; the weights' where it is None.
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
    dtype: torch.dtype | None = None

    @torch.no_grad()
    def __call__(
        self, prompts: Sequence[list[int]], decoding: Decoding, seed: int, limits: Sequence[int] | None = None
    ) -> list[Completion]:
        """One completion a prompt, of at most ``limits[i]`` tokens. The global random state is left as it was.

        A sample depends on the whole call and on ``batch_size``; greedy ones (temperature 0) depend on neither.
        """
        most = [self.max_new_tokens] * len(prompts) if limits is None else limits
        completions = {i: Completion([], False, [] if self.with_logprobs else None) for i in range(len(prompts))}
        by_length = sorted((i for i in completions if most[i] > 0), key=lambda i: len(prompts[i]))
        devices = [self.model.device] if self.model.device.type == "cuda" else []
        # one autocast around all steps: each weight is cast once, not once a token
        with torch.random.fork_rng(devices), _for_sampling(self.model), products_in(self.dtype, self.model):
            torch.manual_seed(seed)
            for start in range(0, len(by_length), self.batch_size):
                part = by_length[start : start + self.batch_size]
                found = self._batch([prompts[i] for i in part], decoding, [most[i] for i in part])
                completions.update(zip(part, found, strict=True))
                self.progress(len(part))
        return [completions[i] for i in range(len(prompts))]

    def _batch(self, prompts: list[list[int]], decoding: Decoding, limits: list[int]) -> list[Completion]:
        width = max(map(len, prompts))
        ids = torch.tensor([[self.pad] * (width - len(p)) + p for p in prompts], device=self.model.device)
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=self.model.device)
        recording = Recording()
        processors = [] if self.mixture is None else [Mixing(self.mixture, mask)]
        records = self.with_logprobs and decoding.temperature > 0
        processors = [*processors, *_warpers(decoding), *([recording] if records else [])]
        sampled: Any = self.model.generate(
            input_ids=ids,
            attention_mask=mask,
            generation_config=self._settings(decoding, max(limits)),
            logits_processor=LogitsProcessorList(processors),
        )
        answers = sampled[:, width:]
        cut = [self._cut(row[:limit]) for row, limit in zip(answers.tolist(), limits, strict=True)]
        if not self.with_logprobs:
            return cut
        if not records:
            return [replace(c, logprobs=[0.0] * len(c.tokens)) for c in cut]
        recording.note(answers[:, -1])
        logprobs = torch.stack(recording.picked, 1).tolist()
        return [replace(c, logprobs=row[: len(c.tokens)]) for c, row in zip(cut, logprobs, strict=True)]

    def _settings(self, decoding: Decoding, limit: int) -> GenerationConfig:
        # the warpers are ours, so that what is recorded is what the tokens are drawn from
        sampling: dict[str, Any] = {"do_sample": False}
        if decoding.temperature > 0:
            sampling = {"do_sample": True, "temperature": 1.0, "top_p": 1.0, "top_k": 0}
        return GenerationConfig(
            max_new_tokens=limit,
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
        found.append(Nucleus(decoding.top_p))
    return found


@contextmanager
def _for_sampling(model: PreTrainedModel) -> Iterator[None]:
    """Without dropout, and with empty settings: transformers fills what ours leave open from the model's own."""
    kept, model.generation_config = model.generation_config, GenerationConfig()
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.generation_config = kept
        model.train(training)


@dataclass(frozen=True)
class KeptSamples:
    """A sampler whose results are kept on disk under a key made of everything that they depend on.

    They are sampled and kept in blocks, so that a kill loses one of them.

    Attributes:
        sampler: samples what is not there yet.
        identity: what the samples depend on besides the arguments: model and tokenizer hashes, lengths, stops.
        folder: where the files lie.
        notice: says where samples were read from.
        note: told of each block's key, its tokens and the seconds that they took when they were drawn.
    """

    sampler: Sampler
    identity: dict[str, Any]
    folder: Path
    notice: Callable[[str], None] = lambda text: None
    note: Callable[[str, int, float], None] = lambda key, tokens, seconds: None

    def __call__(self, prompts: Sequence[list[int]], decoding: Decoding, seed: int) -> list[Completion]:
        found: list[Completion] = []
        for start in range(0, len(prompts), BLOCK):
            own = seed if start == 0 else derived(seed, "samples", start)
            found += self._block(prompts[start : start + BLOCK], decoding, own)
        return found

    def _block(self, prompts: Sequence[list[int]], decoding: Decoding, seed: int) -> list[Completion]:
        key = self.key(prompts, decoding, seed)
        path = self.folder / f"{key[:32]}.parquet"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with FileLock(path.with_suffix(".lock")):  # another run that wants the same waits for it
                return self._read_or_drawn(path, key, prompts, decoding, seed)
        except OSError as error:
            raise cannot("write", path, error) from None

    def _read_or_drawn(
        self, path: Path, key: str, prompts: Sequence[list[int]], decoding: Decoding, seed: int
    ) -> list[Completion]:
        kept = _read(path)
        if kept is not None:
            self.notice(f"{len(prompts):,} samples read from {path}")
            self.note(key, *kept.cost)
            return kept.completions
        start = time.perf_counter()
        completions = self.sampler(prompts, decoding, seed)
        drawn = _Kept(completions, time.perf_counter() - start)
        self.note(key, *drawn.cost)
        table = pa.table(
            {
                "tokens": pa.array([c.tokens for c in completions], pa.list_(pa.int32())),
                "ended": [c.ended for c in completions],
            }
        ).replace_schema_metadata({SECONDS: str(drawn.seconds)})
        half = path.with_suffix(f".{os.getpid()}.part")
        pq.write_table(table, half)
        half.replace(path)
        return completions

    def key(self, prompts: Sequence[list[int]], decoding: Decoding, seed: int) -> str:
        """sha256 of identity, decoding, seed and prompts."""
        facts = {**self.identity, "decoding": asdict(decoding), "seed": seed, "prompts": [list(p) for p in prompts]}
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class _Kept:
    """A block of samples and the seconds that drawing them took."""

    completions: list[Completion]
    seconds: float

    @property
    def cost(self) -> tuple[int, float]:
        return sum(len(c.tokens) for c in self.completions), self.seconds


def _read(path: Path) -> _Kept | None:
    """Samples of an earlier run; None if there are none, or the file is damaged, which makes them anew."""
    try:
        table = pq.read_table(path)
        seconds = float(table.schema.metadata[SECONDS.encode()])
    except (FileNotFoundError, pa.ArrowInvalid, KeyError, TypeError):
        return None
    rows = zip(table["tokens"].to_pylist(), table["ended"].to_pylist(), strict=True)
    return _Kept([Completion(tokens, ended) for tokens, ended in rows], seconds)
