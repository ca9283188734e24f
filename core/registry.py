"""The registry: every part by kind and name, with the plugin it came from."""

import importlib
import inspect
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any, Final, Literal

import pluggy

from distillzoo.core import hookspecs
from distillzoo.core.errors import UnknownName, UserError, suggest

GROUP: Final = "distillzoo"
"""Entry-point group of the plugins."""

Kind = Literal["subset", "objective", "extraction", "trajectories", "metric", "suite", "recipe", "command"]

PART_KINDS: Final[tuple[Kind, ...]] = ("subset", "objective", "extraction", "trajectories")
"""The four kinds that compose an algorithm, in the order of the design."""

HOOKS: Final[dict[Kind, str]] = {
    "subset": "register_subsets",
    "objective": "register_objectives",
    "extraction": "register_extractions",
    "trajectories": "register_trajectories",
    "metric": "register_metrics",
    "suite": "register_suites",
    "recipe": "register_recipes",
    "command": "register_commands",
}

BASES: Final[dict[Kind, str]] = {
    "subset": "distillzoo.core.subset:ActionSubset",
    "objective": "distillzoo.core.objective:Objective",
    "extraction": "distillzoo.core.extraction:PolicyExtraction",
    "trajectories": "distillzoo.core.trajectories:TrajectorySource",
    "metric": "distillzoo.core.metric:Metric",
    "suite": "distillzoo.core.suite:Suite",
    "command": "click:Command",
}

NAME: Final = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")


class PluginError(UserError):
    """A plugin breaks the contract; the message names its distribution."""


@dataclass(frozen=True)
class Entry:
    """One registered part."""

    kind: Kind
    name: str
    target: Any
    distribution: str
    version: str

    @property
    def origin(self) -> str:
        """Distribution and version, as in ``distillzoo 0.1.0``."""
        return f"{self.distribution} {self.version}"


@dataclass(frozen=True)
class Failure:
    """A plugin that could not be imported. It is reported and the others work on."""

    plugin: str
    distribution: str
    cause: str


class Registry:
    """Parts by kind and name. ``Registry.installed()`` holds what is installed; tests build their own."""

    def __init__(self) -> None:
        self._entries: dict[Kind, dict[str, Entry]] = {kind: {} for kind in HOOKS}
        self.failures: list[Failure] = []

    @classmethod
    def installed(cls) -> "Registry":
        """All parts of the installed plugins.

        ``DISTILLZOO_PLUGINS``, a comma-separated list of distributions, restricts which third-party plugins load; an
        empty value loads none. The built-in parts always load.
        """
        allowed = os.environ.get("DISTILLZOO_PLUGINS")
        names = None if allowed is None else {_normal(part) for part in allowed.split(",") if part.strip()}
        registry = cls()
        for point in sorted(metadata.entry_points(group=GROUP), key=lambda p: (p.dist is None, p.name)):
            distribution = point.dist.name if point.dist else point.value
            version = point.dist.version if point.dist else "?"
            if names is not None and _normal(distribution) not in names | {"distillzoo"}:
                continue
            try:
                plugin = point.load()
            except Exception as error:  # a stranger's import may raise anything, and must not take the program down
                registry.failures.append(Failure(point.name, distribution, f"{type(error).__name__}: {error}"))
                continue
            try:
                registry.add(plugin, distribution, version)
            except PluginError:
                raise
            except Exception as error:  # the same for what its hooks do
                registry.failures.append(Failure(point.name, distribution, f"{type(error).__name__}: {error}"))
        return registry

    def add(self, plugin: object, distribution: str, version: str) -> None:
        """Enter all parts of one plugin, a module or an object with hook implementations.

        Raises:
            PluginError: a hook is misspelt, or a name is taken, malformed or given twice.
        """
        manager = pluggy.PluginManager("distillzoo")
        manager.add_hookspecs(hookspecs)
        try:
            manager.register(plugin)
            manager.check_pending()
        except pluggy.PluginValidationError as error:
            unknown = re.search(r"unknown hook '(\w+)'", str(error))
            hint = suggest(unknown[1], HOOKS.values()) if unknown else ""
            raise PluginError(f"Plugin '{distribution}': {str(error).splitlines()[0]}.{hint}") from None
        for kind, hook in HOOKS.items():
            getattr(manager.hook, hook)(register=self._registrar(kind, distribution, version))

    def _registrar(self, kind: Kind, distribution: str, version: str) -> hookspecs.Register:
        def register(name: str, target: "type | str | Path") -> None:
            if not NAME.fullmatch(name):
                raise PluginError(
                    f"Plugin '{distribution}' registers the {kind} '{name}': a name is lower-case words and hyphens."
                )
            taken = self._entries[kind].get(name)
            if taken is not None:
                raise PluginError(
                    f"The {kind} '{name}' is registered twice, by '{taken.distribution}' and by '{distribution}'. "
                    f"Rename one, or leave one out with DISTILLZOO_PLUGINS."
                )
            self._entries[kind][name] = Entry(kind, name, target, distribution, version)

        return register

    def names(self, kind: Kind) -> list[str]:
        """Names of a kind, sorted."""
        return sorted(self._entries[kind])

    def entries(self, kind: Kind) -> Iterable[Entry]:
        """Entries of a kind, sorted by name."""
        return (self._entries[kind][name] for name in self.names(kind))

    def entry(self, kind: Kind, name: str) -> Entry:
        """The entry of a name.

        Raises:
            UnknownName: nothing of that kind has the name; the message holds the nearest valid ones.
        """
        try:
            return self._entries[kind][name]
        except KeyError:
            raise UnknownName(kind, name, self.names(kind)) from None

    def get(self, kind: Kind, name: str) -> Any:
        """The registered class (or path, for a recipe), imported if need be.

        Raises:
            UnknownName: nothing of that kind has the name.
            PluginError: the target cannot be imported or is not a subclass of the kind's base.
        """
        entry = self.entry(kind, name)
        if kind == "recipe":
            return entry.target
        try:
            target = _imported(entry.target)
        except (ImportError, AttributeError) as error:
            raise PluginError(f"The {kind} '{name}' of {entry.origin} cannot be imported: {error}.") from error
        base = _imported(BASES[kind])
        fits = issubclass(target, base) if inspect.isclass(target) else isinstance(target, base)
        if not fits:
            raise PluginError(f"The {kind} '{name}' of {entry.origin} is no {base.__name__}: {target!r}.")
        return target


def _imported(target: Any) -> Any:
    if not isinstance(target, str):
        return target
    module, _, attribute = target.partition(":")
    return getattr(importlib.import_module(module), attribute)


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).strip().lower()


@cache
def installed() -> Registry:
    """The registry of this process, built once."""
    return Registry.installed()
