"""More of the student's responses as the held-out loss rises, each used several times."""

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar, Final, Self

from pydantic import Field, model_validator

from distillzoo.core.registry import installed
from distillzoo.core.rounds import packed, unpacked
from distillzoo.core.trajectories import OnPolicySource, Sources, Trajectory, TrajectorySource

RISE: Final = 0.1
"""What is added to the threshold."""


class AdaptiveReplay(OnPolicySource):
    """Offline responses, and with a growing probability phi the student's own, new or replayed.

    With u ~ U(0, 1) for each response, at step t of T:

        u < phi (1 - t / T), or u < phi while the buffer has room:  y ~ pi(. | x), which enters the buffer
        else u < phi:                                               (x, y) ~ buffer
        else:                                                       y ~ Y(x), the offline source's

    The buffer holds the newest ``capacity`` responses of the student; a replayed one comes with its own prompt. Every
    ``check_every`` steps the student's loss on held-out references is taken. If it is at least ``epsilon`` above the
    last one that was remembered, phi = min(phi + 0.1, 1) and this loss is remembered instead. The first loss is that of
    the student before training.

    References:
        arXiv:2402.03898, section 3.2 (DistiLLM: adaptive scheduler, replay buffer).

    Differs from the paper:
        1. The draw u is one for each response and not one for each batch.
        2. With several processes each has a buffer of its own.
    """

    paper: ClassVar[str] = "arXiv:2402.03898"

    offline: TrajectorySource = Field(description="source that is collected once, such as dataset or teacher")
    initial: float = Field(0.0, ge=0, le=1, description="phi in the beginning")
    epsilon: float = Field(0.1, ge=0, description="rise of the held-out loss, nats a token, that raises phi")
    check_every: int = Field(100, ge=1, description="optimiser steps between two looks at the held-out loss")
    capacity: int = Field(1000, ge=1, description="responses in the buffer")

    @model_validator(mode="after")
    def _collected_once(self) -> Self:
        if self.offline.period is not None:
            raise ValueError("offline should be a source that is collected once, such as dataset or teacher")
        return self

    @classmethod
    def examples(cls) -> Sequence["AdaptiveReplay"]:
        dataset = installed().get("trajectories", "dataset")()
        return [cls(offline=dataset, check_every=1), cls(offline=dataset, initial=0.7, capacity=4)]

    @property
    def expert_rows(self) -> bool:
        return True

    @property
    def holds_out(self) -> bool:
        return True

    def collect(self, sources: Sources) -> list[Trajectory]:
        draw = random.Random(f"adaptive-replay {sources.seed}")
        phi = self._threshold(sources)
        buffer: list[Any] = sources.memory.setdefault("buffer", [])
        offline = sources.once(self.offline)
        draws = [draw.random() for _ in sources.due]
        fresh, own = phi * (1 - sources.step / sources.steps), list[int]()
        for place, u in enumerate(draws):
            if u < fresh or (u < phi and len(buffer) + len(own) < self.capacity):
                own.append(place)
        prompts = [sources.rows[sources.due[place]].prompt for place in own]
        new = dict(zip(own, self.sampled(prompts, sources) if own else [], strict=True))
        found = []
        for place, (row, u) in enumerate(zip(sources.due, draws, strict=True)):
            if place in new:
                found.append(new[place])
                buffer.append(packed(replace(new[place], source="replay")))
                del buffer[: -self.capacity]
            elif u < phi:
                found.append(unpacked(draw.choice(buffer)))
            else:
                found.append(draw.choice(offline[row]))
        return found

    def _threshold(self, sources: Sources) -> float:
        """phi at this step; ``memory`` holds it with the remembered loss and the step of the last look."""
        memory = sources.memory
        if "phi" not in memory:
            memory.update(phi=self.initial, loss=sources.held_out_loss(), looked=sources.step)
        elif sources.step - memory["looked"] >= self.check_every:
            loss = sources.held_out_loss()
            memory["looked"] = sources.step
            if loss >= memory["loss"] + self.epsilon:
                memory.update(phi=min(memory["phi"] + RISE, 1.0), loss=loss)
        return float(memory["phi"])
