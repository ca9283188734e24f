"""The job of ``distillzoo run``: train a student in a run directory and write its result."""

import hashlib
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import torch
from accelerate.utils import release_memory
from safetensors import SafetensorError
from transformers import TrainerCallback, TrainingArguments, set_seed

from distillzoo.core.batch import Collator, TrajectoryData
from distillzoo.core.cache.build import asks_more, must_fit, opened
from distillzoo.core.config import RunConfig, dump
from distillzoo.core.curve import CurveFile
from distillzoo.core.errors import UserError
from distillzoo.core.evaluation import Scores
from distillzoo.core.models import fingerprint
from distillzoo.core.progress import Reporter, StepProgress
from distillzoo.core.registry import PART_KINDS, Registry
from distillzoo.core.report import write_report
from distillzoo.core.rounds import Rounds
from distillzoo.core.rundir import RunDirectory, checkpoint_step
from distillzoo.core.spent import Spent
from distillzoo.core.step import Distillation
from distillzoo.core.subset import Subset
from distillzoo.core.taught import pays, states_fit, taught, with_sets
from distillzoo.core.trainer import Corpus, DistillTrainer, Places, share_of
from distillzoo.core.trajectories import Trajectory
from distillzoo.core.world import LOAD_TIMEOUT, World

RESULT_SCHEMA: Final = 1

LIBRARIES: Final = ("torch", "transformers", "accelerate", "tokenizers", "safetensors", "numpy")


def distil(
    config: RunConfig, registry: Registry, directory: RunDirectory, reporter: Reporter, *, score: bool = True
) -> dict[str, Any] | None:
    """Train, evaluate and write the run directory; returns the content of ``result.json``.

    A directory with checkpoints is continued from its last whole one. Of several processes the first evaluates and
    writes; the others return None after the training.

    Args:
        config: of the run.
        registry: of the parts.
        directory: of the run.
        reporter: of the progress.
        score: False where the caller scores the student itself: it is not evaluated here, and there is no report.

    Raises:
        UserError: something in the configuration, data or models is wrong, or a file can't be written.
    """
    start = time.perf_counter()
    release_memory()  # accelerate leaves the student of an earlier training in a cycle of references
    set_seed(config.seed)
    world = World(config, registry, reporter)
    if config.teacher_cache is not None:
        must_fit(world)
    world.load()
    if config.train.compile:
        world.compile()
    cached = None if config.teacher_cache is None else opened(world, config.teacher_cache)
    if not directory.config.exists():
        directory.write_text(directory.config, dump(config))
    inputs = world.inputs
    _same_inputs(inputs, directory)
    online = world.parts[3].period is not None
    cut: Callable[[Subset], Subset] | None = None
    if cached is not None:
        trajectories, cut = cached
        world.spent.teacher_read += sum(len(t.response.tokens) for t in trajectories)  # when the cache was built
    else:
        trajectories = [] if online else world.collect()
    _say_what_was_cut(world, reporter)
    scores: dict[str, Scores] = {}
    if config.evaluate.before and directory.writes:
        scores["teacher"] = _kept(directory, "teacher", lambda: world.evaluate(world.teacher, "the teacher", False))
        scores["before"] = _kept(directory, "before", lambda: world.evaluate(world.student, "the student before"))
    if cached is not None:
        world.release_teacher()
    set_seed(config.seed)
    spent = _train(world, trajectories, cut, directory, reporter)
    if not directory.writes:
        return None
    if score:
        scores["after"] = world.evaluate(world.student, "the student after")
    _write_model(world, directory)
    result = {
        "schema": RESULT_SCHEMA,
        "algo": config.algo,
        "parts": {kind: getattr(config, kind).name for kind in PART_KINDS},
        "origins": {kind: registry.entry(kind, getattr(config, kind).name).origin for kind in PART_KINDS},
        "config_sha256": hashlib.sha256(dump(config).encode()).hexdigest(),
        "seed": config.seed,
        "evaluated_rows": len(world.valid_rows),
        "decoding": asdict(world.decoding),
        "scores": {name: found.metrics for name, found in scores.items()},
        "positions": {name: found.positions for name, found in scores.items()},
        "answer_length": {name: found.answer_length for name, found in scores.items()},
        "sampled_tokens_per_second": {name: found.tokens_per_second for name, found in scores.items()},
        "directions": {name: metric.direction for name, metric in world.metrics.items()},
        "training": {
            "steps": config.train.max_steps,
            "trajectories": _sequences(config) if online else len(trajectories),
            **spent.to_json(),
            "tokens_per_second": spent.student_tokens / max(spent.seconds, 1e-9),
        },
        "seconds": time.perf_counter() - start,
        "peak_memory_bytes": spent.peak_bytes,
        "parameters": {
            "teacher": world.teacher_parameters,
            "student": world.student.model.num_parameters(),
        },
        "hashes": {**inputs, "student_after": fingerprint(world.student.model)},
        "truncated": {
            "prompts": world.truncation.prompts,
            "answers": world.truncation.answers,
            "rows": world.truncation.rows,
        },
        "device": device_name(world.device),
        "versions": versions(),
        "git": git_revision(),
    }
    directory.write_json(directory.result, result)
    if score:
        with reporter.stage("writing the report"):
            right = None if world.suite is None else world.suite.checker
            digits = {name: metric.digits for name, metric in world.metrics.items()}
            write_report(directory, result, scores, world.valid_rows, right, digits)
    return result


def _same_inputs(inputs: dict[str, str], directory: RunDirectory) -> None:
    """Note what a run starts from, or refuse to continue it from something else.

    Raises:
        UserError: a model or the data changed since the run began.
    """
    path = directory.path / "inputs.json"
    if not path.exists():
        directory.write_json(path, inputs)
        return
    before = json.loads(path.read_text(encoding="utf-8"))
    changed = [name for name in {**before, **inputs} if before.get(name) != inputs.get(name)]
    if changed:
        raise UserError(
            f"The run in '{directory.path}' began with another {' and '.join(changed)}, so it can't go on: its result "
            f"would belong to neither. Bring it back, or start a new run."
        )


def _say_what_was_cut(world: World, reporter: Reporter) -> None:
    cut = world.truncation
    if cut.prompts or cut.answers:
        data = world.config.data
        reporter.notice(
            f"{cut.prompts:,} of {cut.rows:,} prompts were cut to their last {data.max_prompt_length} tokens and "
            f"{cut.answers:,} answers to {data.max_length} tokens with the prompt"
        )


def _kept(directory: RunDirectory, name: str, compute: Any) -> Scores:
    """Scores that a resumed run need not compute again."""
    path = directory.path / "evaluations" / f"{name}.json"
    if path.exists():
        return Scores(**json.loads(path.read_text(encoding="utf-8")))
    scores: Scores = compute()
    directory.write_json(path, scores.to_json())
    return scores


class _MetricsFile(TrainerCallback):
    """Writes each log row of the training into ``metrics.jsonl``."""

    def __init__(self, directory: RunDirectory) -> None:
        self._directory = directory

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        if state.is_world_process_zero and logs and "loss" in logs:
            self._directory.append(self._directory.metrics, {"step": state.global_step, **logs})


def _train(
    world: World,
    trajectories: list[Trajectory],
    cut: Callable[[Subset], Subset] | None,
    directory: RunDirectory,
    reporter: Reporter,
) -> Spent:
    """Train the student; returns the account of all processes."""
    subset, objective, extraction, source = world.parts
    arguments = training_arguments(world, directory)
    lm = world.config.lm
    collator = Collator(world.tokenizer.pad_token_id)
    asked = world.config.teacher_cache is None and (subset.needs_teacher or objective.needs_teacher_view(subset))
    if asked:
        alone = asks_more(world) is None
        trajectories = _taught(world, trajectories, collator, arguments, "the trajectories", sets=alone)
    texts = _taught(world, world.texts, collator, arguments, "the second corpus") if lm.teacher_share else world.texts
    corpus = Corpus(texts, lm.weight, lm.teacher_share) if texts else None
    asked = asked or (corpus is not None and corpus.teacher_share > 0)
    rounds = None
    if source.period is not None:
        process, processes = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
        rounds = Rounds(source, world.sources(), share_of(arguments, process, processes), world.config.seed)
    callbacks: list[TrainerCallback] = [_MetricsFile(directory), StepProgress(reporter)]
    if world.config.curve.every is not None:
        callbacks.append(CurveFile(world, directory))
    trainer = DistillTrainer(
        student=Distillation(world.student, subset, objective, extraction),
        teacher=world.teacher if asked else None,
        subset=subset,
        objective=objective,
        collator=collator,
        rounds=rounds,
        corpus=corpus,
        cut=cut,
        args=arguments,
        train_dataset=Places(_sequences(world.config)) if rounds else TrajectoryData(trajectories),
        processing_class=world.tokenizer,
        spent=world.spent,
        callbacks=callbacks,
    )
    checkpoint = directory.last_checkpoint()
    if checkpoint is not None:
        reporter.notice(f"continuing from {checkpoint}")
    elif directory.metrics.exists():
        reporter.notice("no whole checkpoint yet: training begins again")
    done = checkpoint_step(checkpoint) if checkpoint is not None else 0
    directory.rewind(done if checkpoint is not None else -1)  # step 0 of the curve comes again too
    if world.config.wandb and directory.writes:
        _start_wandb(world.config, directory)
    with reporter.stage("training", total=world.config.train.max_steps), world.spent.running(world.device):
        if checkpoint is not None and done >= world.config.train.max_steps:
            trainer.restore(checkpoint)  # train() would take one step more
        else:
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    return world.spent.over_all_processes()


def _taught(
    world: World,
    trajectories: list[Trajectory],
    collator: Collator,
    arguments: TrainingArguments,
    what: str,
    sets: bool = False,
) -> list[Trajectory]:
    """The trajectories with the teacher's states, or its sets, where once costs less than in each step."""
    size, advance = arguments.per_device_train_batch_size, world.reporter.advance
    if not pays(trajectories, arguments.max_steps * arguments.gradient_accumulation_steps * size):
        return trajectories
    if not sets and not states_fit(world.teacher, trajectories):
        return trajectories
    with world.reporter.stage(f"the teacher reads {what}", total=len(trajectories)), world.spent.running(world.device):
        world.spent.teacher_read += sum(len(t.response.tokens) - t.given for t in trajectories)
        if not sets:
            return taught(world.teacher, trajectories, collator, size, advance)
        found = with_sets(world.teacher, world.parts[0], trajectories, collator, size, advance)
        return trajectories if found is None else list(found)


def _sequences(config: RunConfig) -> int:
    return config.train.max_steps * config.train.batch_size


def training_arguments(world: World, directory: RunDirectory) -> TrainingArguments:
    """The Trainer's arguments that a configuration stands for.

    Raises:
        UserError: the batch doesn't divide into forward passes.
    """
    train, processes = world.config.train, int(os.environ.get("WORLD_SIZE", "1"))
    per_device = train.device_batch_size or max(1, train.batch_size // processes)
    if train.batch_size % (per_device * processes):
        raise UserError(
            f"train.batch_size ({train.batch_size}) should be a multiple of train.device_batch_size times the "
            f"number of processes ({per_device} x {processes})."
        )
    arguments = TrainingArguments(
        output_dir=str(directory.checkpoints),
        max_steps=train.max_steps,
        per_device_train_batch_size=per_device,
        gradient_accumulation_steps=train.batch_size // (per_device * processes),
        learning_rate=train.lr,
        adam_beta1=train.betas[0],
        adam_beta2=train.betas[1],
        weight_decay=train.weight_decay,
        lr_scheduler_type=train.schedule,
        warmup_steps=train.warmup_steps,
        max_grad_norm=train.max_grad_norm,
        logging_steps=train.log_every,
        logging_first_step=True,
        save_steps=train.save_every,
        save_total_limit=2,
        seed=world.config.seed,
        data_seed=world.config.seed,
        bf16=world.dtype == torch.bfloat16,
        fp16=world.dtype == torch.float16,
        use_cpu=world.device.type == "cpu",
        report_to="wandb" if world.config.wandb else "none",
        run_name=directory.path.name,
        remove_unused_columns=False,
        label_names=["labels"],
        disable_tqdm=True,
        dataloader_pin_memory=world.device.type == "cuda",
        logging_nan_inf_filter=False,  # compute_loss refuses such a loss
        ddp_find_unused_parameters=False,
        ddp_timeout=int(LOAD_TIMEOUT.total_seconds()),
    )
    if arguments.n_gpu > 1:  # one process drives one GPU; nn.DataParallel would split a batch of transitions
        arguments._n_gpu = 1
    return arguments


def _start_wandb(config: RunConfig, directory: RunDirectory) -> None:
    import wandb

    try:
        wandb.init(
            project=os.environ.get("WANDB_PROJECT", "distillzoo"),
            name=directory.path.name,
            dir=str(directory.path),
            config=config.model_dump(mode="json"),
        )
    except wandb.errors.Error as error:
        raise UserError(f"Weights & Biases: {error} (WANDB_MODE=offline logs without an account.)") from None


def _write_model(world: World, directory: RunDirectory) -> None:
    """The trained student with its tokenizer and a model card, written aside and renamed."""
    half = directory.path / ".model.part"
    shutil.rmtree(half, ignore_errors=True)
    try:
        model = world.student.model
        model.save_pretrained(half)
        world.tokenizer.save_pretrained(half)
        (half / "README.md").write_text(model_card(world.config), encoding="utf-8")
        shutil.rmtree(directory.model, ignore_errors=True)
        half.rename(directory.model)
    except (OSError, SafetensorError) as error:
        raise UserError(f"The model could not be written into '{directory.model}': {error}.") from None


def model_card(config: RunConfig) -> str:
    """A short model card: what was distilled from what, and the configuration."""
    assert config.student is not None
    return (
        "---\nlibrary_name: transformers\ntags: [distillation, distillzoo]\n---\n"
        f"# {config.student.model} distilled from {config.teacher.model}\n\n"
        f"Trained with distillzoo: algorithm `{config.algo or 'custom'}`, objective `{config.objective.name}`, subset "
        f"`{config.subset.name}`, {config.train.max_steps} steps.\n\n```yaml\n{dump(config)}```\n"
    )


def device_name(device: torch.device) -> str:
    """The device in words."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} ({platform.machine()}, {torch.get_num_threads()} thread(s))"


def versions() -> dict[str, str]:
    """Versions of Python, distillzoo and the libraries that a result depends on."""
    found = {"python": platform.python_version(), "distillzoo": importlib.metadata.version("distillzoo")}
    return found | {name: importlib.metadata.version(name) for name in LIBRARIES}


def git_revision() -> str | None:
    """Commit of the checkout that the code runs from, with ``-dirty`` if it was changed; none outside a checkout."""
    root = Path(__file__).parent.parent
    if not (root / ".git").exists():  # installed: a repository around it would be another project's
        return None
    try:
        out = subprocess.run(
            ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40"], capture_output=True, text=True
        )
    except OSError:
        return None
    return out.stdout.strip() or None
