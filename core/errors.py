"""Errors that are meant for people."""

import difflib
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError


class UserError(Exception):
    """Something the user can mend: bad input, a missing file, an impossible combination.

    The command line prints the message as one paragraph and exits with code 2, without a traceback. The message says
    what was wrong, where (file, field, value) and what would be right.
    """


class UnknownName(UserError):
    """A name that no plugin registered; the message holds the nearest valid names."""

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        self.kind, self.name, self.known = kind, name, sorted(known)
        super().__init__(f"There is no {kind} named '{name}'.{suggest(name, self.known)}")


def suggest(name: str, known: Iterable[str]) -> str:
    """A sentence that names the nearest valid names, or all of them where none is near."""
    names = sorted(set(known))
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.6)
    if near:
        return f" Did you mean {' or '.join(repr(n) for n in near)}?"
    quoted = [repr(known) if "," in known else known for known in names]
    return f" Valid names: {', '.join(quoted)}." if names else " None is registered."


def explain(error: ValidationError, where: str, model: type[BaseModel] | None = None) -> UserError:
    """Turn pydantic's list of errors into one paragraph that names each field, its value and what would be right.

    Args:
        error: what pydantic found.
        where: stands before the fields' names.
        model: what was to be built; the valid names of an unknown field are those of its section there.
    """
    problems = []
    for item in error.errors(include_url=False):
        field = ".".join(str(part) for part in (where, *item["loc"]) if str(part))
        if item["type"] == "extra_forbidden":
            name = str(item["loc"][-1])
            problems.append(f"'{field}' is not a known field.{suggest(name, _fields(model, item['loc'][:-1]))}")
        elif item["type"] == "missing":
            problems.append(f"'{field}' is required")
        else:
            message = item["msg"].removeprefix("Value error, ")
            if not field:  # of the whole, which the reader has in front of them
                problems.append(message)
                continue
            problems.append(f"'{field}' is {item['input']!r}: {message[:1].lower()}{message[1:]}")
    text = "; ".join(problem.rstrip(".") for problem in problems)
    return UserError(text if text.endswith("?") else f"{text}.")


def _fields(kind: Any, path: Sequence[str | int]) -> Iterable[str]:
    """Names of the fields of the section at ``path`` in a type; none where it is no model."""
    for part in path:
        kind = next((inner for one in _members(kind) if (inner := _inner(one, part)) is not None), None)
    return next((one.model_fields for one in _members(kind) if _is_model(one)), ())


def _inner(kind: Any, part: str | int) -> Any:
    """The type of a model's field, or of the members of a mapping or a list."""
    if _is_model(kind):
        return kind.model_fields[part].annotation if part in kind.model_fields else None
    return next(reversed(get_args(kind)), None)


def _members(kind: Any) -> Sequence[Any]:
    return get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)


def _is_model(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def cannot(action: str, path: Path, error: OSError) -> UserError:
    """The message for a file operation that the system refused."""
    return UserError(f"Cannot {action} '{path}': {error.strerror or error}.")
