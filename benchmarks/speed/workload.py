"""What a step works on: models with random weights, a batch, and the teacher's sets."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from distillzoo.benchmarks.speed.shapes import Shape
from distillzoo.core.batch import Batch, Collator
from distillzoo.core.cache.store import TeacherCache
from distillzoo.core.models import Backbone, Vocabulary, backbone
from distillzoo.core.registry import installed
from distillzoo.core.subset import ActionSubset
from distillzoo.core.taught import with_sets
from distillzoo.core.trajectories import Completion, Trajectory

P: Final = 0.8
K_MAX: Final = 64
PROBES: Final = 256


@dataclass(frozen=True)
class Workload:
    """Everything that the contenders share."""

    shape: Shape
    student: Backbone
    teacher: Backbone
    trajectories: list[Trajectory]
    cached: list[Trajectory]
    subset: ActionSubset
    collator: Collator
    device: torch.device
    dtype: torch.dtype

    def batch(self, trajectories: list[Trajectory]) -> Batch:
        """The sequences, padded and on the device."""
        return self.collator.batch(trajectories, self.device)


def workload(shape: Shape, device: torch.device, dtype: torch.dtype, folder: Path, seed: int = 0) -> Workload:
    """Models, sequences and a teacher cache in ``folder``."""
    torch.manual_seed(seed)
    vocabulary = Vocabulary(shape.vocabulary, None)
    student = backbone(_model(shape, shape.student, torch.float32).to(device), vocabulary, "student")
    teacher = backbone(_model(shape, shape.teacher, dtype).to(device).eval(), vocabulary, "teacher")
    teacher.model.requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    draw = lambda n: torch.randint(shape.vocabulary, (n,), generator=generator).tolist()  # noqa: E731
    answer = shape.tokens - shape.prompt
    rows = [Trajectory(draw(shape.prompt), Completion(draw(answer), True), "random") for _ in range(shape.sequences)]
    subset = installed().get("subset", "top-p")(p=P, k_max=K_MAX)
    collator = Collator(0)
    scaled = _scaled(teacher, subset, collator, rows, shape.mean_set)
    held = with_sets(scaled, subset, rows, collator, shape.sequences, lambda count: None)
    assert held is not None, "sets are cut at K_MAX"
    cache = TeacherCache.begin(folder, {"teacher": "random", "subset": {}}, shape.vocabulary)
    cached = cache.add(held, [row.sets for row in held]).finish().trajectories()
    return Workload(shape, student, scaled, rows, cached, subset, collator, device, dtype)


def _model(shape: Shape, sizes: dict[str, Any], dtype: torch.dtype) -> PreTrainedModel:
    settings = AutoConfig.for_model(
        shape.model_type, vocab_size=shape.vocabulary, max_position_embeddings=2 * shape.tokens, **sizes
    )
    model: PreTrainedModel = AutoModelForCausalLM.from_config(settings, dtype=dtype)
    return model


@torch.no_grad()
def _scaled(
    teacher: Backbone, subset: ActionSubset, collator: Collator, rows: list[Trajectory], mean: float
) -> Backbone:
    """The teacher with its final norm enlarged until the sets have the asked mean size."""
    batch = collator.batch(rows, teacher.model.device)
    table = batch.transitions()
    states = teacher.states(batch.input_ids, batch.attention_mask, table.sequence, table.position)[:PROBES]
    low, high = 1.0, 1e3
    for _ in range(20):
        middle = (low * high) ** 0.5
        size = float(subset.select(teacher.view(states * middle)).size.float().mean())
        low, high = (middle, high) if size > mean else (low, middle)
    teacher.model.base_model.norm.weight.mul_(high)
    return teacher
