"""One optimiser step of plain gradient descent on a fixed batch; also a script, to be started on several processes."""

import sys
from pathlib import Path

import torch
from transformers import PreTrainedModel, TrainingArguments

from distillzoo.core.batch import Collator, TrajectoryData
from distillzoo.core.config import PartChoice, RunConfig
from distillzoo.core.models import Backbone, Vocabulary, backbone
from distillzoo.core.objective import Objective
from distillzoo.core.registry import installed
from distillzoo.core.step import Distillation
from distillzoo.core.subset import ActionSubset
from distillzoo.core.trainer import DistillTrainer
from distillzoo.core.trajectories import Completion, Trajectory
from tests.tiny import VOCABULARY, tiny_model

EOS = 2
COUNT = 8


def trajectories() -> list[Trajectory]:
    """Eight sequences of very different lengths, so that a mean of means is not the mean."""
    generator = torch.Generator().manual_seed(5)
    draw = lambda n: torch.randint(3, VOCABULARY, (n,), generator=generator).tolist()  # noqa: E731
    made = []
    for i in range(COUNT):
        ended = i % 3 != 1
        response = draw(1 + 3 * (i % 4)) + ([EOS] if ended else [])
        made.append(Trajectory(draw(1 + i % 5), Completion(response, ended), "test"))
    return made


def parts(objective: str, subset: str) -> tuple[ActionSubset, Objective, object]:
    registry = installed()
    params = {"support_weight": 0.5} if subset != "full" else {}
    config = RunConfig(
        subset=PartChoice(name=subset),
        objective=PartChoice(name=objective),
        extraction=PartChoice(name="projected-softmax"),
    )
    return (
        registry.get("subset", config.subset.name)(),
        registry.get("objective", config.objective.name)(**params),
        registry.get("extraction", config.extraction.name)(),
    )


def step(
    folder: Path,
    objective: str = "iql",
    subset: str = "top-p",
    device_batch: int = COUNT,
    accumulate: int = 1,
    rows: int = VOCABULARY,
    order: list[int] | None = None,
    student: PreTrainedModel | None = None,
    collator: Collator | None = None,
) -> dict[str, torch.Tensor]:
    """The student's weights after the step."""
    which, loss, extraction = parts(objective, subset)
    vocabulary = Vocabulary(VOCABULARY, None)
    teacher: Backbone = backbone(widened(tiny_model("llama", 3), rows), vocabulary, "teacher")
    model = widened(student or tiny_model("llama", 2), rows)
    found = trajectories()
    trainer = DistillTrainer(
        teacher=teacher,
        subset=which,
        objective=loss,
        student=Distillation(backbone(model, vocabulary, "student"), which, loss, extraction),
        args=TrainingArguments(
            output_dir=str(folder),
            max_steps=1,
            per_device_train_batch_size=device_batch,
            gradient_accumulation_steps=accumulate,
            optim="sgd",
            learning_rate=0.5,
            lr_scheduler_type="constant",
            max_grad_norm=0.0,
            use_cpu=True,
            save_strategy="no",
            report_to="none",
            remove_unused_columns=False,
            label_names=["labels"],
            disable_tqdm=True,
        ),
        train_dataset=TrajectoryData([found[i] for i in order] if order else found),
        collator=collator or Collator(EOS),
    )
    trainer.train()
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


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
    weights = step(out, sys.argv[2], sys.argv[3], device_batch=COUNT // 2)
    torch.save(weights, out / f"{torch.distributed.get_rank()}.pt")
