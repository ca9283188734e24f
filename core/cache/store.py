"""A teacher cache: a folder with a manifest and shards, each whole or absent."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Self

import pyarrow as pa
from pydantic import TypeAdapter, ValidationError

from distillzoo.core.cache.coding import FINEST, RELATIVE
from distillzoo.core.cache.shard import Sets, Shard, write_shard
from distillzoo.core.errors import UserError, cannot, explain
from distillzoo.core.files import write_whole
from distillzoo.core.trajectories import Trajectory

FORMAT: Final = 2

MANIFEST: Final = "manifest.json"


@dataclass(frozen=True)
class ShardFacts:
    """What the manifest says of a shard."""

    file: str
    sequences: int
    actions: int
    entries: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class TeacherCache:
    """The teacher's subset a state along trajectories, on disk.

    ``manifest.json`` holds all of the fields below; the shards, ``shard-00000.arrow`` and so on, are documented in
    ``shard``. A file appears by write-then-rename and the manifest names it after that, so what a killed build leaves
    is a cache with fewer shards, and building goes on from there.

    Attributes:
        folder: where it lies.
        key: what the content depends on: hashes of teacher, tokenizer and data, lengths, trajectory source, subset.
        size: V, the number of columns of the shared vocabulary.
        shards: in the order of the trajectories.
        complete: whether all trajectories are in.
    """

    folder: Path
    key: Mapping[str, Any]
    size: int
    shards: tuple[ShardFacts, ...] = ()
    complete: bool = False
    format: int = field(default=FORMAT, kw_only=True)
    error_relative: float = field(default=RELATIVE, kw_only=True)
    """A log-probability l above -24 nats is off by at most this times (2 error_offset - l - l'), l' the set's least."""
    error_offset: float = field(default=FINEST, kw_only=True)

    @classmethod
    def open(cls, folder: Path) -> Self:
        """An existing cache.

        Raises:
            UserError: there is none, or of another format.
        """
        path = folder / MANIFEST
        try:
            facts = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise UserError(
                f"There is no teacher cache in '{folder}': no {MANIFEST}. Build one with distillzoo cache build "
                f"{folder} and the arguments of the run."
            ) from None
        except OSError as error:
            raise cannot("read", path, error) from None
        except ValueError as error:
            raise UserError(f"'{path}' is no JSON file: {error}.") from None
        written = facts.get("format") if isinstance(facts, dict) else None
        if written != FORMAT:
            raise UserError(
                f"The teacher cache in '{folder}' has the format {written}, and this distillzoo reads {FORMAT}. Build "
                f"it anew."
            )
        try:
            return TypeAdapter(cls).validate_python({**facts, "folder": folder})
        except ValidationError as error:
            raise explain(error, str(path)) from None

    @classmethod
    def begin(cls, folder: Path, key: Mapping[str, Any], size: int) -> Self:
        """A new cache, or one whose building was cut off.

        Raises:
            UserError: another cache lies there, or something else does.
        """
        try:
            if (folder / MANIFEST).exists():
                found = cls.open(folder)
                found.must_belong(key)
                return found
            if folder.exists() and (not folder.is_dir() or any(not p.name.startswith(".") for p in folder.iterdir())):
                raise UserError(f"'{folder}' exists already and is no teacher cache. Choose another folder.")
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise cannot("make the teacher cache", folder, error) from None
        return cls(folder, json.loads(json.dumps(key)), size)._written()

    def must_belong(self, key: Mapping[str, Any], but: Sequence[str] = ()) -> None:
        """Refuse a cache of something else.

        Raises:
            UserError: fields differ; ``but`` names those that may.
        """
        asked = json.loads(json.dumps(key))
        differing = [n for n in {**self.key, **asked} if n not in but and self.key.get(n) != asked.get(n)]
        if differing:
            pairs = (
                f"{name.replace('_', ' ')} ({_shown(self.key.get(name))}, and the run has {_shown(asked.get(name))})"
                for name in differing
            )
            raise UserError(f"The teacher cache in '{self.folder}' belongs to another {'; another '.join(pairs)}.")

    def add(self, trajectories: Sequence[Trajectory], sets: Sequence[Sets]) -> Self:
        """The cache with one shard more."""
        name = f"shard-{len(self.shards):05}.arrow"
        half = self.folder / f".{name}.part"
        try:
            entries = write_shard(half, trajectories, sets, self.size)
            facts = ShardFacts(
                name, len(sets), sum(len(s.counts) for s in sets), entries, half.stat().st_size, _sha256(half)
            )
            half.replace(self.folder / name)
        except OSError as error:
            raise cannot("write", half, error) from None
        return replace(self, shards=(*self.shards, facts))._written()

    def finish(self) -> Self:
        """The cache, marked as whole."""
        return replace(self, complete=True)._written()

    def _written(self) -> Self:
        facts = asdict(self)
        del facts["folder"]
        write_whole(self.folder / MANIFEST, json.dumps(facts, indent=1))
        return self

    @property
    def digest(self) -> str:
        """sha256 over what the cache belongs to and the hashes of its shards."""
        facts = [self.key, [shard.sha256 for shard in self.shards]]
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()

    @property
    def sequences(self) -> int:
        return sum(shard.sequences for shard in self.shards)

    @property
    def actions(self) -> int:
        return sum(shard.actions for shard in self.shards)

    @property
    def entries(self) -> int:
        return sum(shard.entries for shard in self.shards)

    @property
    def bytes(self) -> int:
        return sum(shard.bytes for shard in self.shards)

    def trajectories(self) -> list[Trajectory]:
        """All trajectories; their sets are decoded when asked.

        Raises:
            UserError: the cache is not complete, or a shard is missing or can't be read.
        """
        if not self.complete:
            raise UserError(
                f"The teacher cache in '{self.folder}' is not complete ({self.sequences:,} trajectories so far): go on "
                f"with distillzoo cache build."
            )
        return [trajectory for facts in self.shards for trajectory in self._shard(facts).trajectories()]

    def verify(self) -> list[str]:
        """What is wrong with the files, a sentence each: missing, or other bytes than written."""
        found = []
        for facts in self.shards:
            path = self.folder / facts.file
            if not path.exists():
                found.append(f"{facts.file} is missing.")
            elif _sha256(path) != facts.sha256:
                found.append(f"{facts.file} is not what was written: its sha256 differs.")
        return found

    def _shard(self, facts: ShardFacts) -> Shard:
        path = self.folder / facts.file
        try:
            return Shard(path)
        except OSError as error:
            raise cannot("read", path, error) from None
        except (pa.ArrowInvalid, KeyError) as error:
            raise UserError(f"'{path}' is damaged: {error}. distillzoo cache verify checks the others.") from None


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _shown(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
