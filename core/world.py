"""What a configuration names, loaded: models, tokenizers, data, parts, trajectories and scores."""

import hashlib
import json
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Final

import platformdirs
import torch
from accelerate import PartialState

from distillzoo.core.cache.store import TeacherCache
from distillzoo.core.config import RunConfig, build_part
from distillzoo.core.data import Encoder, Row, Truncation, end_token, hold_out, load_rows, load_texts
from distillzoo.core.errors import UserError
from distillzoo.core.evaluation import Scores, evaluate, mean_nll
from distillzoo.core.extraction import Decoding, PolicyExtraction
from distillzoo.core.generation import Generator, KeptSamples
from distillzoo.core.metric import Metric
from distillzoo.core.mixture import Mixture
from distillzoo.core.models import (
    Backbone,
    Vocabulary,
    backbone,
    fingerprint,
    load_model,
    load_student,
    load_tokenizer,
    products_in,
    shared_vocabulary,
    stop_tokens,
    tokenizer_hash,
)
from distillzoo.core.objective import Objective
from distillzoo.core.progress import Reporter
from distillzoo.core.prune import pruned_layers
from distillzoo.core.registry import PART_KINDS, Registry
from distillzoo.core.spent import Spent
from distillzoo.core.subset import ActionSubset
from distillzoo.core.suite import Suite
from distillzoo.core.trajectories import Completion, PromptRow, Sources, Trajectory, TrajectorySource
from distillzoo.core.vllm import VllmSampler, check_vllm

HOLD_OUT_SEED: Final = 0
"""The held-out rows don't depend on the run's seed: another seed must not evaluate on rows that were trained on."""

HELD_OUT_ROWS: Final = 64
"""Rows on which a trajectory source's held-out loss is taken."""

LOAD_TIMEOUT: Final = timedelta(hours=12)
"""How long the other processes wait while the first samples and evaluates."""


def pick_device(name: str) -> torch.device:
    """The device of a run; ``auto`` takes a GPU where there is one.

    Raises:
        UserError: the name is unknown or this machine has no such device.
    """
    asked, number = name, re.fullmatch(r"cuda:(\d+)", name)
    try:
        if number is not None and "LOCAL_RANK" not in os.environ:
            seen = _given_gpus()
            # one process drives one GPU and the Trainer takes cuda:0, so the others are hidden before CUDA starts
            os.environ["CUDA_VISIBLE_DEVICES"] = seen[int(number[1])] if seen else number[1]
            name = "cuda"
        if name == "auto":
            name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
        if name == "cuda":
            name = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
        device = torch.device(name)
        torch.zeros(1, device=device)
    except IndexError:
        raise UserError(f"device '{name}': CUDA_VISIBLE_DEVICES shows {len(seen)} devices.") from None
    except (RuntimeError, AssertionError, ValueError) as error:
        raise UserError(
            f"device '{asked}' cannot be used here: {str(error).splitlines()[0].rstrip('.')}. Try auto or cpu."
        ) from None
    return device


@cache
def _given_gpus() -> tuple[str, ...]:
    """What ``CUDA_VISIBLE_DEVICES`` said before this process hid any."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return tuple(named.split(",")) if named else ()


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """The data type of the matrix products; ``auto`` is bfloat16 on a GPU that has it, else float32.

    Raises:
        UserError: float16 is asked for without a GPU.
    """
    if name == "float16" and device.type != "cuda":
        raise UserError(f"dtype 'float16' needs a CUDA device, and this run is on {device.type}. Use auto or bfloat16.")
    if name == "auto":
        name = "bfloat16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "float32"
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def cache_folder() -> Path:
    """Where samples are kept between runs: ``DISTILLZOO_CACHE``, else the user's cache folder."""
    return Path(os.environ.get("DISTILLZOO_CACHE") or platformdirs.user_cache_dir("distillzoo"))


@contextmanager
def _one_first(device: torch.device) -> Iterator[None]:
    """Of several processes the first goes ahead and samples; the others then read what it kept."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    with PartialState(cpu=device.type == "cpu", timeout=LOAD_TIMEOUT).main_process_first():
        yield


@dataclass
class World:
    """What the configuration names, loaded: models, tokenizer, data and parts."""

    config: RunConfig
    registry: Registry
    reporter: Reporter = field(default_factory=Reporter)
    spent: Spent = field(default_factory=Spent)

    def __post_init__(self) -> None:
        self.device = pick_device(self.config.device)
        self.dtype = pick_dtype(self.config.dtype, self.device)
        assert self.config.student is not None, "resolve() fills the student in"
        self._student_source = self.config.student
        self.parts  # noqa: B018 a composition that cannot work is refused before anything loads

    @cached_property
    def parts(self) -> tuple[ActionSubset, Objective, PolicyExtraction, TrajectorySource]:
        subset, objective, extraction, trajectories = (
            build_part(self.registry, self.config, kind) for kind in PART_KINDS
        )
        objective.check(subset, extraction)
        for needed, given, whose in (
            (objective.needs_student_rows, trajectories.student_rows, "the student's own"),
            (objective.needs_expert_rows, trajectories.expert_rows, "the expert's"),
        ):
            if needed and not given:
                raise UserError(
                    f"The objective {self.config.objective.name} needs {whose} trajectories, and the source "
                    f"{self.config.trajectories.name}, as it is set, gives none. Use student for the student's own, "
                    f"dataset or teacher for the expert's, or mixture for both."
                )
        if self.config.sampler == "vllm":
            self._check_vllm(trajectories)
        return subset, objective, extraction, trajectories

    def _check_vllm(self, trajectories: TrajectorySource) -> None:
        check_vllm()
        if trajectories.period is not None:
            raise UserError(
                f"sampler 'vllm' samples from a teacher once, before training, and the source "
                f"{self.config.trajectories.name} samples from the student as it learns. Use transformers."
            )
        if self.device.type != "cuda":
            raise UserError(f"sampler 'vllm' needs a CUDA device, and this run is on {self.device.type}.")
        if self.config.teacher.model.endswith(".gguf"):
            raise UserError("sampler 'vllm' is not for a teacher in a GGUF file. Use transformers.")

    def load(self) -> None:
        """Read the data, then load both models; what is wrong shows before anything slow begins."""
        self._training, self._evaluation, self.texts  # noqa: B018
        self.vocabulary  # noqa: B018
        size = min(self.teacher.vocabulary.size, self.student.vocabulary.size)
        self.vocabulary = self.vocabulary.narrowed(size)
        self.teacher, self.student = self.teacher.narrowed(size), self.student.narrowed(size)
        self.teacher_hash, self.student_hash_before, self.data_hash  # noqa: B018
        self.teacher_parameters  # noqa: B018

    def release_teacher(self) -> None:
        """Free the teacher's memory until it is asked for again."""
        del self.teacher

    @cached_property
    def metrics(self) -> dict[str, Metric]:
        return {name: self.registry.get("metric", name)() for name in self.config.evaluate.metrics}

    @cached_property
    def tokenizers(self) -> tuple[Any, Any]:
        """The teacher's and the student's. A pruned student has the teacher's."""
        teacher = load_tokenizer(self.config.teacher, self.registry)
        if pruned_layers(self._student_source.model) is not None:
            return teacher, teacher
        return teacher, load_tokenizer(self._student_source, self.registry)

    @property
    def tokenizer(self) -> Any:
        return self.tokenizers[1]

    @cached_property
    def vocabulary(self) -> Vocabulary:
        return shared_vocabulary(*self.tokenizers)

    @cached_property
    def teacher(self) -> Backbone:
        with self.reporter.stage("loading the teacher"):
            model = load_model(self.config.teacher, self.registry, self.dtype, self.device)
        model.requires_grad_(False).eval()
        return backbone(model, self.vocabulary, "teacher")

    @cached_property
    def student(self) -> Backbone:
        with self.reporter.stage("loading the student"):
            model = load_student(self._student_source, self.registry, self.config.teacher, self.device)
        return backbone(model, self.vocabulary, "student")

    def compile(self) -> None:
        """Have both bodies compiled at their first passes."""
        self.teacher, self.student = self.teacher.compile(), self.student.compile()

    @cached_property
    def teacher_parameters(self) -> int:
        return int(self.teacher.model.num_parameters())

    @cached_property
    def teacher_hash(self) -> str:
        return fingerprint(self.teacher.model)

    @cached_property
    def student_hash_before(self) -> str:
        return fingerprint(self.student.model)

    @cached_property
    def data_hash(self) -> str:
        """sha256 over the training and evaluation rows; training rows that a source keeps out are among them."""
        rows = self._training[0][: self.config.data.limit]
        text = json.dumps([rows, self.valid_rows], sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def inputs(self) -> dict[str, str]:
        """Hashes of all that a run starts from."""
        found = {
            "teacher": self.teacher_hash,
            "student_before": self.student_hash_before,
            "tokenizer": tokenizer_hash(self.tokenizer),
            "data": self.data_hash,
        }
        if self.texts:
            tokens = [[*text.prompt, *text.response.tokens] for text in self.texts]
            found["corpus"] = hashlib.sha256(json.dumps(tokens).encode()).hexdigest()
        if self.config.teacher_cache is not None:
            found["teacher_cache"] = TeacherCache.open(self.config.teacher_cache).digest
        return found

    @cached_property
    def encoder(self) -> Encoder:
        return Encoder(self.tokenizer, end_token(self.tokenizer), self.config.data)

    @cached_property
    def _training(self) -> tuple[list[Row], list[Row], Suite | None]:
        """Training rows, the rows held out of them where no evaluation data are given, and their suite."""
        data = self.config.data
        assert data.train is not None, "resolve() fills the data in"
        rows, suite = load_rows(data.train, data, self.registry, "train")
        if data.valid is not None:
            return rows, [], suite
        train, held = hold_out(rows, HOLD_OUT_SEED)
        self.reporter.notice(f"{len(held):,} of {len(rows):,} rows are held out for evaluation")
        return train, held, suite

    @cached_property
    def _evaluation(self) -> tuple[list[Row], Suite | None]:
        """Evaluation rows and their suite; training data are not read where others are given."""
        data = self.config.data
        if data.valid is None:
            return self._training[1], self._training[2]
        return load_rows(data.valid, data, self.registry, "valid")

    @cached_property
    def _limited(self) -> tuple[list[Row], list[Row]]:
        """Training rows, and those among them that a source wants to be kept out."""
        rows = self._training[0][: self.config.data.limit]
        if not self.parts[3].holds_out:
            return rows, []
        train, held = hold_out(rows, HOLD_OUT_SEED)
        self.reporter.notice(
            f"{len(held):,} of {len(rows):,} training rows are held out to measure the loss that the trajectory source "
            f"looks at"
        )
        return train, held

    @property
    def train_rows(self) -> list[Row]:
        return self._limited[0]

    @property
    def valid_rows(self) -> list[Row]:
        return self._evaluation[0][: self.config.evaluate.limit]

    @property
    def suite(self) -> Suite | None:
        return self._evaluation[1]

    @cached_property
    def truncation(self) -> Truncation:
        return Truncation()

    @cached_property
    def train_prompts(self) -> list[PromptRow]:
        return self.encoder.encode(self.train_rows, self.truncation)

    @cached_property
    def valid_prompts(self) -> list[PromptRow]:
        return self.encoder.encode(self.valid_rows, Truncation())

    @property
    def decoding(self) -> Decoding:
        """The evaluation's decoding: the extraction's, unless the configuration says another."""
        own, asked = self.parts[2].decoding(), self.config.evaluate
        return Decoding(
            own.temperature if asked.temperature is None else asked.temperature,
            own.top_p if asked.top_p is None else asked.top_p,
        )

    def generator(self, model: Backbone, batch_size: int) -> Generator:
        room = self.config.data.max_length - self.config.data.max_prompt_length
        return Generator(
            model=model.model,
            stops=sorted({*stop_tokens(model.model, self.tokenizer), self.encoder.end}),
            pad=self.tokenizer.pad_token_id,
            suppressed=model.columns_without_token(),
            max_new_tokens=self.config.evaluate.max_new_tokens or room,
            batch_size=batch_size,
            progress=self.reporter.advance,
            dtype=self.dtype,
        )

    @cached_property
    def texts(self) -> list[Trajectory]:
        """The second corpus: every token of a text but the first is an action."""
        source = self.config.lm.data
        if source is None or self.config.lm.weight == 0:
            if source is not None:
                self.reporter.notice("lm.weight is 0: the corpus in lm.data is not used")
            return []
        limit = self.config.lm.limit
        return load_texts(source, self.encoder, self.registry, limit)

    def collect(self) -> list[Trajectory]:
        """The trajectories of the configured source."""
        sources = self.sources()
        with self.reporter.stage(f"collecting trajectories ({self.config.trajectories.name})"):
            trajectories = self.parts[3].collect(sources)
        usable = [t for t in trajectories if t.response.tokens]
        if not usable:
            raise UserError("The trajectory source gave no response with a token in it: there is nothing to train on.")
        return usable

    def _vllm(self, like: Generator) -> VllmSampler:
        """vLLM with the settings of the ordinary sampler, in nine tenths of the memory that is free."""
        free, total = torch.cuda.mem_get_info(self.device)
        return VllmSampler(
            model=like.model.name_or_path,
            revision=self.config.teacher.revision,
            trust_remote_code=self.config.teacher.trust_remote_code,
            dtype=str(self.dtype).removeprefix("torch."),
            memory=0.9 * free / total,
            stops=like.stops,
            suppressed=like.suppressed,
            max_new_tokens=like.max_new_tokens,
        )

    def _kept_samples(self, like: Generator, sampler: str) -> KeptSamples:
        """The teacher's samples, read from the cache where it has them; ``sampler`` names what draws the others."""
        return KeptSamples(
            self._vllm(like) if sampler == "vllm" else like,
            {
                "sampler": sampler,
                "teacher": self.teacher_hash,
                "teacher_config": self.teacher.model.config.to_json_string(),
                "tokenizer": tokenizer_hash(self.tokenizer),
                "max_new_tokens": like.max_new_tokens,
                "stops": list(like.stops),
                "suppressed": list(like.suppressed),
                "dtype": str(self.dtype),
                "device": self.device.type,
                "batch_size": like.batch_size,
            },
            cache_folder() / "samples",
            self.reporter.notice,
        )

    def sources(self) -> Sources:
        """What a trajectory source may draw on, with the student as it is when it is asked."""
        size = self.config.evaluate.batch_size
        sampler = self.generator(self.teacher, size)
        kept = replace(self._kept_samples(sampler, self.config.sampler), note=self.spent.note_offline)
        own = replace(self.generator(self.student, size), with_logprobs=True)
        spent = self.spent

        def sampled(completions: list[Completion]) -> list[Completion]:
            spent.sampled_tokens += sum(len(c.tokens) for c in completions)
            return completions

        def student(prompts: Sequence[list[int]], decoding: Decoding, seed: int) -> list[Completion]:
            return sampled(own(prompts, decoding, seed))

        def teacher(prompts: Sequence[list[int]], decoding: Decoding, seed: int) -> list[Completion]:
            with spent.paused(), _one_first(self.device):  # its own seconds are noted beside the samples
                return kept(prompts, decoding, seed)

        def mixed(prompts: Sequence[list[int]], decoding: Decoding, seed: int, share: float) -> list[Completion]:
            found = sampled(replace(own, mixture=Mixture(self.teacher, share))(prompts, decoding, seed))
            spent.teacher_read += sum(len(c.tokens) for c in found)
            return found

        def beginnings(
            prompts: Sequence[list[int]], decoding: Decoding, seed: int, lengths: Sequence[int]
        ) -> list[Completion]:
            return sampled(own(prompts, decoding, seed, [min(n, own.max_new_tokens - 1) for n in lengths]))

        def endings(
            prompts: Sequence[list[int]], beginnings: Sequence[list[int]], decoding: Decoding, seed: int
        ) -> list[Completion]:
            begun = [[*prompt, *tokens] for prompt, tokens in zip(prompts, beginnings, strict=True)]
            limits = [sampler.max_new_tokens - len(tokens) for tokens in beginnings]
            found = replace(sampler, with_logprobs=True)(begun, decoding, seed, limits)
            spent.teacher_read += sum(len(c.tokens) for c in found)
            return found

        return Sources(
            rows=self.train_prompts,
            teacher=teacher,
            student=student,
            mixed=mixed,
            beginnings=beginnings,
            endings=endings,
            seed=self.config.seed,
            held_out_loss=self._held_out_loss,
        )

    def _held_out_loss(self) -> float:
        rows = self.encoder.encode(self._limited[1][:HELD_OUT_ROWS], Truncation())
        with products_in(self.dtype, self.student.model):
            return mean_nll(self.student, rows, self.tokenizer.pad_token_id, self.config.evaluate.batch_size)

    def evaluate(
        self,
        model: Backbone,
        what: str,
        against_teacher: bool = True,
        metrics: Sequence[str] | None = None,
        limit: int | None = None,
    ) -> Scores:
        """Scores of one model on the evaluation rows, or on the first ``limit`` of them.

        Args:
            model: the model.
            what: the model in words, for the progress.
            against_teacher: whether the metrics may compare with the teacher; else those that do are None.
            metrics: names, of ``metrics`` if not given.
            limit: None for all rows.
        """
        chosen = self.metrics if metrics is None else {name: self.registry.get("metric", name)() for name in metrics}
        rows, prompts = self.valid_rows[:limit], self.valid_prompts[:limit]
        size = self.config.evaluate.batch_size

        def teacher_samples(prompts: Sequence[list[int]], decoding: Decoding, seed: int) -> list[Completion]:
            # drawn as the student's are, not by vLLM; and only one process evaluates, so none waits for it here
            drawing = replace(self.generator(self.teacher, size), progress=lambda count: None)
            return self._kept_samples(drawing, "transformers")(prompts, decoding, seed)

        with self.reporter.stage(f"evaluating {what}", total=len(rows)), products_in(self.dtype, model.model):
            return evaluate(
                self.generator(model, size),
                model,
                self.teacher if against_teacher else None,
                teacher_samples,
                rows,
                self.encoder,
                prompts,
                self.suite,
                chosen,
                self.decoding,
                self.config.seed,
            )
