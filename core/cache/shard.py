"""A part of a teacher cache: one Arrow file, memory-mapped.

Columns, one row a trajectory:

| column | type | content |
|---|---|---|
| prompt, response | list of uint32 (uint16 where V <= 65,536) | ids |
| source | text | as in a trajectory |
| ended, expert | bool | as in a trajectory |
| given | uint32 | as in a trajectory |
| logprobs | list of float32, may be null | as in a trajectory |
| counts | list of uint32 (uint8, uint16 where it fits) | size of the set at each action after the ``given`` ones |
| mass | list of uint16 | teacher probability of each set, in units of 1 / 65,535, rounded up |
| least | list of uint8 | code of the least log-probability of each set, the largest code; ``coding.LEVELS`` has them |
| unary, remainders | binary | gaps of the rising ids of all sets, then the codes below ``least``; see ``coding`` |
| gap_order, code_order | uint8 | orders of their codes |
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from distillzoo.core.cache.coding import LEVELS, Bytes, Ints, gaps, ids_of, order, packed, quantised, unpacked
from distillzoo.core.trajectories import Completion, Trajectory

UNITS: Final = (1 << 16) - 1
"""A mass of 1."""


@dataclass(frozen=True)
class Sets:
    """The sets of a trajectory's n actions, in falling order of log-probability: E tokens in all."""

    counts: Tensor
    """``[n]``, the size of each set."""
    actions: Tensor
    """``[E]`` ids."""
    logprobs: Tensor
    """``[E]`` nats."""
    mass: Tensor
    """``[n]``, the teacher's probability of each set."""


def write_shard(path: Path, trajectories: Sequence[Trajectory], sets: Sequence[Sets], size: int) -> int:
    """Write a shard and say how many tokens its sets hold."""
    ids = pa.uint16() if size <= 1 << 16 else pa.uint32()
    widest = max((int(s.counts.max()) for s in sets if len(s.counts)), default=0)
    count = pa.uint8() if widest < 1 << 8 else pa.uint16() if widest < 1 << 16 else pa.uint32()
    coded = [_coded(s) for s in sets]
    table = pa.table(
        {
            "prompt": pa.array([t.prompt for t in trajectories], pa.list_(ids)),
            "response": pa.array([t.response.tokens for t in trajectories], pa.list_(ids)),
            "ended": [t.response.ended for t in trajectories],
            "expert": [t.expert for t in trajectories],
            "given": pa.array([t.given for t in trajectories], pa.uint32()),
            "source": pa.array([t.source for t in trajectories]).dictionary_encode(),
            "logprobs": pa.array([t.response.logprobs for t in trajectories], pa.list_(pa.float32())),
            "mass": pa.array([_masses(s) for s in sets], pa.list_(pa.uint16())),
            "counts": pa.array([s.counts.numpy() for s in sets], pa.list_(count)),
            "least": pa.array([c.least for c in coded], pa.list_(pa.uint8())),
            "unary": pa.array([c.unary.tobytes() for c in coded], pa.binary()),
            "remainders": pa.array([c.remainders.tobytes() for c in coded], pa.binary()),
            "gap_order": pa.array([c.gap_order for c in coded], pa.uint8()),
            "code_order": pa.array([c.code_order for c in coded], pa.uint8()),
        }
    ).combine_chunks()
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)
    return sum(len(s.actions) for s in sets)


def _masses(sets: Sets) -> NDArray[np.uint16]:
    # rounded up, so that a set that reached p still does; the tolerance is for a product that is whole but for rounding
    units = np.ceil(sets.mass.numpy().astype(np.float64) * UNITS - 1e-3)
    return np.clip(units, 1, UNITS).astype(np.uint16)


@dataclass(frozen=True)
class _Coded:
    """The columns of a row that hold its sets' tokens."""

    least: Bytes
    unary: Bytes
    remainders: Bytes
    gap_order: int
    code_order: int


def _coded(sets: Sets) -> _Coded:
    counts, actions = sets.counts.numpy().astype(np.int64), sets.actions.numpy().astype(np.int64)
    rising = np.lexsort((actions, np.repeat(np.arange(len(counts)), counts)))
    codes = quantised(sets.logprobs.numpy()[rising])
    least = np.maximum.reduceat(codes, np.cumsum(counts) - counts) if len(counts) else codes
    gap, below = gaps(actions[rising], counts), (np.repeat(least, counts) - codes).astype(np.int64)
    orders = order(gap), order(below)
    return _Coded(least, *packed(np.concatenate([gap, below]), np.repeat(orders, len(codes))), *orders)


@dataclass(frozen=True, eq=False, kw_only=True)
class Cached(Trajectory):
    """A trajectory with the teacher's sets at its actions on disk."""

    shard: "Shard"
    row: int

    @property
    def sets(self) -> Sets:
        return self.shard.sets(self.row)


class Shard:
    """The trajectories of one file, decoded one by one when asked."""

    def __init__(self, path: Path) -> None:
        table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
        column = {name: table[name].chunk(0) for name in table.column_names}  # written in one piece
        self._counts, self._mass, self._least = (_lists(column[name]) for name in ("counts", "mass", "least"))
        self._unary, self._remainders = _binaries(column["unary"]), _binaries(column["remainders"])
        self._orders = np.stack([column["gap_order"].to_numpy(), column["code_order"].to_numpy()], 1).astype(np.int64)
        self._facts = column

    def __len__(self) -> int:
        return len(self._facts["ended"])

    def trajectories(self) -> list[Trajectory]:
        """All of them, with what they need to be decoded."""
        prompt, response, ended, logprobs, expert, given, source = (
            self._facts[name].to_pylist()
            for name in ("prompt", "response", "ended", "logprobs", "expert", "given", "source")
        )
        return [
            Cached(
                prompt=prompt[i],
                response=Completion(response[i], ended[i], logprobs[i]),
                source=source[i],
                expert=expert[i],
                given=given[i],
                shard=self,
                row=i,
            )
            for i in range(len(self))
        ]

    def sets(self, row: int) -> Sets:
        """The sets of a trajectory, a token of lower id first among those of equal code."""
        counts: Ints = self._counts(row).astype(np.int64)
        state = np.repeat(np.arange(len(counts)), counts)
        values = unpacked(self._unary(row), self._remainders(row), np.repeat(self._orders[row], len(state)))
        ids, codes = ids_of(values[: len(state)], counts), self._least(row)[state] - values[len(state) :]
        order = np.lexsort((codes, state))
        logprobs, mass = LEVELS[codes[order]], self._mass(row).astype(np.float32) / UNITS
        if len(counts):  # what is listed must sum to the mass, also after rounding
            total = np.add.reduceat(np.exp(logprobs), np.cumsum(counts) - counts)
            logprobs = logprobs + np.log(mass / total)[state]
        return Sets(*map(torch.from_numpy, (counts, ids[order], logprobs.astype(np.float32), mass)))


def _lists(column: pa.ListArray) -> Callable[[int], NDArray[Any]]:
    """The numbers of a row, without a copy."""
    start, values = column.offsets.to_numpy(), column.values.to_numpy()
    return lambda row: values[start[row] : start[row + 1]]


def _binaries(column: pa.BinaryArray) -> Callable[[int], Bytes]:
    """The bytes of a row, without a copy."""
    _, offsets, data = column.buffers()
    start = np.frombuffer(offsets, dtype=np.int32)[column.offset : column.offset + len(column) + 1]
    values = np.frombuffer(data if data is not None else b"", dtype=np.uint8)
    return lambda row: values[start[row] : start[row + 1]]
