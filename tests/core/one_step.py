"""One optimiser step of plain gradient descent on a fixed batch; also a script, to be started on several processes."""

import sys
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, TrainingArguments

from distillzoo.core.batch import Collator, TrajectoryData
from distillzoo.core.extraction import PolicyExtraction
from distillzoo.core.models import Backbone, Vocabulary, backbone
from distillzoo.core.objective import Objective
from distillzoo.core.registry import installed
from distillzoo.core.spent import Spent
from distillzoo.core.step import Distillation
from distillzoo.core.subset import ActionSubset
from distillzoo.core.trainer import Corpus, DistillTrainer
from distillzoo.core.trajectories import Completion, Trajectory
from tests.tiny import VOCABULARY, tiny_model

EOS = 2
COUNT = 8


def trajectories() -> list[Trajectory]:
    """Eight sequences of very different lengths, so that a mean of means is not the mean.

    Every other one is the student's, and of those it is known with what probability they were sampled.
    """
    generator = torch.Generator().manual_seed(5)
    draw = lambda n: torch.randint(3, VOCABULARY, (n,), generator=generator).tolist()  # noqa: E731
    made = []
    for i in range(COUNT):
        ended, expert = i % 3 != 1, i % 2 == 0
        tokens = draw(1 + 3 * (i % 4)) + ([EOS] if ended else [])
        logprobs = None if expert else [-2.0 - 0.1 * t for t in range(len(tokens))]
        made.append(Trajectory(draw(1 + i % 5), Completion(tokens, ended, logprobs), "test", expert))
    return made


def corpus(weight: float = 0.7, teacher_share: float = 0.3) -> Corpus:
    """As many texts as a step has sequences, of other lengths."""
    generator = torch.Generator().manual_seed(6)
    draw = lambda n: torch.randint(3, VOCABULARY, (n,), generator=generator).tolist()  # noqa: E731
    texts = [Trajectory(draw(1), Completion(draw(2 + 2 * i), False), "text") for i in range(COUNT)]
    return Corpus(texts, weight, teacher_share)


def parts(objective: str | Objective, subset: str) -> tuple[ActionSubset, Objective, PolicyExtraction]:
    registry = installed()
    if isinstance(objective, str):
        objective = registry.get("objective", objective)(**({"support_weight": 0.5} if subset != "full" else {}))
    return registry.get("subset", subset)(), objective, registry.get("extraction", "projected-softmax")()


def trainer_of(
    folder: Path,
    objective: str | Objective = "iql",
    subset: str = "top-p",
    device_batch: int = COUNT,
    accumulate: int = 1,
    rows: int = VOCABULARY,
    order: list[int] | None = None,
    student: PreTrainedModel | None = None,
    collator: Collator | None = None,
    corpus: Corpus | None = None,
    **arguments: Any,
) -> tuple[DistillTrainer, PreTrainedModel]:
    """A trainer that takes a step of plain gradient descent, and its student."""
    which, loss, extraction = parts(objective, subset)
    vocabulary = Vocabulary(VOCABULARY, None)
    teacher: Backbone = backbone(widened(tiny_model("llama", 3), rows), vocabulary, "teacher")
    model = widened(student or tiny_model("llama", 2), rows)
    found = trajectories()
    defaults: dict[str, Any] = {"max_steps": 1, "save_strategy": "no"}
    trainer = DistillTrainer(
        teacher=teacher,
        subset=which,
        objective=loss,
        student=Distillation(backbone(model, vocabulary, "student"), which, loss, extraction),
        args=TrainingArguments(
            output_dir=str(folder),
            per_device_train_batch_size=device_batch,
            gradient_accumulation_steps=accumulate,
            optim="sgd",
            learning_rate=0.5,
            lr_scheduler_type="constant",
            max_grad_norm=0.0,
            use_cpu=True,
            logging_steps=1,
            report_to="none",
            remove_unused_columns=False,
            label_names=["labels"],
            disable_tqdm=True,
            **{**defaults, **arguments},
        ),
        train_dataset=TrajectoryData([found[i] for i in order] if order else found),
        collator=collator or Collator(EOS),
        corpus=corpus,
        spent=Spent(),
    )
    return trainer, model


def weights(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def step(folder: Path, *args: Any, **kwargs: Any) -> dict[str, torch.Tensor]:
    """The student's weights after the step."""
    trainer, model = trainer_of(folder, *args, **kwargs)
    trainer.train()
    return weights(model)


def widened(model: PreTrainedModel, rows: int) -> PreTrainedModel:
    """The model with further vocabulary rows that no token has, filled with large numbers."""
    before = model.get_input_embeddings().weight.shape[0]
    if rows > before:
        model.resize_token_embeddings(rows, mean_resizing=False)
        with torch.no_grad():
            for part in (model.get_input_embeddings(), model.get_output_embeddings()):
                part.weight[before:] = 7.0
    return model


if __name__ == "__main__":
    out = Path(sys.argv[1])
    texts = corpus() if sys.argv[4:] == ["corpus"] else None
    after = step(out, sys.argv[2], sys.argv[3], device_batch=COUNT // 2, corpus=texts)
    torch.save(after, out / f"{torch.distributed.get_rank()}.pt")
