"""On-policy trajectories: asked for again every few optimiser steps, and saved with each checkpoint."""

import hashlib
import json
import random
from collections import defaultdict
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from distillzoo.core.errors import UserError
from distillzoo.core.trajectories import Completion, Sources, Trajectory, TrajectorySource


@dataclass(frozen=True)
class Share:
    """Which part of every optimiser step's sequences is this process's.

    Attributes:
        process: number of this process, from 0.
        processes: how many there are.
        passes: forward passes a step and process.
        sequences: sequences a forward pass.
        steps: optimiser steps of the run.
    """

    process: int
    processes: int
    passes: int
    sequences: int
    steps: int

    def places(self, step: int) -> list[int]:
        """The places of this process's sequences in the order of the whole run, pass by pass."""
        first = step * self.passes * self.processes
        blocks = [first + p * self.processes + self.process for p in range(self.passes)]
        return [block * self.sequences + i for block in blocks for i in range(self.sequences)]


class Shuffled:
    """Row numbers without end: all of them in a random order, again and again in another one."""

    def __init__(self, count: int, seed: int, purpose: str) -> None:
        self._count, self._seed, self._purpose = count, seed, purpose
        self._number, self._order = -1, list(range(count))

    def __getitem__(self, place: int) -> int:
        number, rest = divmod(place, self._count)
        if number != self._number:
            self._number, self._order = number, list(range(self._count))
            random.Random(derived(self._seed, self._purpose, number)).shuffle(self._order)
        return self._order[rest]


class Rounds:
    """The trajectories of a source with a ``period``, step by step.

    Prompts come in a new random order in each pass over them. A round is collected when its first step begins, from
    the student as it is then.

    Args:
        source: with a ``period``.
        sources: what it may draw on; seed, step and what is due are filled in here.
        share: this process's part of a step.
        seed: of the run.
    """

    def __init__(self, source: TrajectorySource, sources: Sources, share: Share, seed: int) -> None:
        assert source.period is not None, "an offline source is collected once"
        self._source, self._period, self._share, self._seed = source, source.period, share, seed
        self._sources = replace(sources, steps=share.steps, once=Once(sources))
        self._left: list[Trajectory] = []
        self._order = Shuffled(len(sources.rows), seed, "order")

    def take(self, step: int) -> list[list[Trajectory]]:
        """The trajectories of a step, forward pass by forward pass."""
        count = self._share.passes * self._share.sequences
        if not self._left:
            self._left = self._collect(step)
        now, self._left = self._left[:count], self._left[count:]
        size = self._share.sequences
        return [now[i : i + size] for i in range(0, count, size)]

    def _collect(self, step: int) -> list[Trajectory]:
        until = min(step + self._period, self._share.steps)
        due = [self._order[place] for s in range(step, until) for place in self._share.places(s)]
        seed = derived(self._seed, "round", step, self._share.process)
        found = self._source.collect(replace(self._sources, due=due, step=step, seed=seed))
        if len(found) != len(due):
            name = type(self._source).__name__
            raise ValueError(f"{name} gave {len(found)} trajectories where {len(due)} were due, one for each prompt.")
        return found

    def save(self, folder: Path) -> None:
        """Write what a resumed run needs: the rest of the round and the source's memory."""
        state = {"left": [packed(t) for t in self._left], "memory": self._sources.memory}
        folder.mkdir(parents=True, exist_ok=True)
        self._file(folder).write_text(json.dumps(state), encoding="utf-8")

    def load(self, folder: Path) -> None:
        """Go on from a checkpoint.

        Raises:
            UserError: it holds nothing for this process.
        """
        try:
            state = json.loads(self._file(folder).read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise UserError(
                f"The checkpoint '{folder}' has no trajectories for process {self._share.process}: go on with as many "
                f"processes as wrote it ({len(list(folder.glob('rounds-*.json')))})."
            ) from None
        self._left = [unpacked(t) for t in state["left"]]
        self._sources.memory.clear()
        self._sources.memory.update(state["memory"])

    def _file(self, folder: Path) -> Path:
        return folder / f"rounds-{self._share.process}.json"


class Once:
    """Offline trajectories beside on-policy ones, collected when first asked for and sorted by prompt."""

    def __init__(self, sources: Sources) -> None:
        self._sources = sources
        self._found: list[tuple[TrajectorySource, list[list[Trajectory]]]] = []

    def __call__(self, source: TrajectorySource) -> list[list[Trajectory]]:
        """The source's trajectories for each row.

        Raises:
            UserError: a row has none.
        """
        for known, rows in self._found:
            if known == source:
                return rows
        by_prompt: dict[tuple[int, ...], list[Trajectory]] = defaultdict(list)
        for trajectory in source.collect(self._sources):
            if trajectory.response.tokens:
                by_prompt[tuple(trajectory.prompt)].append(trajectory)
        rows = [by_prompt[tuple(row.prompt)] for row in self._sources.rows]
        if not all(rows):
            raise UserError(
                f"The offline source {type(source).__name__} has no response to {sum(not r for r in rows)} of "
                f"{len(rows)} prompts, and each may be asked for one."
            )
        self._found.append((source, rows))
        return rows


def derived(*parts: int | str) -> int:
    """A seed made of others, the same everywhere."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:4], "big") >> 1


def packed(trajectory: Trajectory) -> dict[str, Any]:
    """A trajectory as JSON values."""
    return asdict(trajectory)


def unpacked(values: dict[str, Any]) -> Trajectory:
    """A trajectory from its JSON values."""
    return Trajectory(**{**values, "response": Completion(**values["response"])})
