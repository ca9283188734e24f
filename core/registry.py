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

from distillzoo.core import API_VERSION, hookspecs
from distillzoo.core.errors import UnknownName, UserError, suggest

GROUP: Final = "distillzoo"
"""Entry-point group of the plugins."""

Kind = Literal["subset", "objective", "extraction", "trajectories", "metric", "suite", "recipe", "benchmark", "command"]

FILES: Final[tuple[Kind, ...]] = ("recipe", "benchmark")
"""Kinds that are files and no classes."""

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
    "benchmark": "register_benchmarks",
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


class OtherAPI(PluginError):
    """A plugin is built for another version of the plugin API."""


@dataclass(frozen=True)
class Plugin:
    """A loaded plugin: its distribution, and the entry point's module."""

    distribution: str
    version: str
    api: str
    module: str


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
        self.plugins: list[Plugin] = []

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
            except (Exception, SystemExit) as error:  # a stranger's import may raise anything
                hint = "" if not isinstance(error, ImportError) else f" Perhaps it isn't built for API {API_VERSION}."
                registry.failures.append(Failure(point.name, distribution, f"{type(error).__name__}: {error}.{hint}"))
                continue
            try:
                registry.add(plugin, distribution, version)
            except OtherAPI as error:
                registry.failures.append(Failure(point.name, distribution, str(error)))
            except PluginError:
                raise
            except (Exception, SystemExit) as error:  # the same for what its hooks do
                registry.failures.append(Failure(point.name, distribution, f"{type(error).__name__}: {error}"))
        for name in sorted((names or set()) - {_normal(p.distribution) for p in registry.plugins}):
            if name not in {_normal(failure.distribution) for failure in registry.failures}:
                registry.failures.append(Failure(name, name, "DISTILLZOO_PLUGINS names it, and it is not installed"))
        return registry

    def add(self, plugin: object, distribution: str, version: str) -> None:
        """Enter all parts of one plugin, a module or an object with hook implementations.

        Raises:
            OtherAPI: the plugin is built for another version of the plugin API.
            PluginError: a hook is misspelt, or a name is taken, malformed or given twice.
        """
        api = _api_of(plugin, distribution)
        manager = pluggy.PluginManager("distillzoo")
        manager.add_hookspecs(hookspecs)
        try:
            manager.register(plugin)
            manager.check_pending()
        except pluggy.PluginValidationError as error:
            unknown = re.search(r"unknown hook '(\w+)'", str(error))
            hint = suggest(unknown[1], HOOKS.values()) if unknown else ""
            words = " ".join(str(error).split())
            raise PluginError(f"Plugin '{distribution}': {words}.{hint}") from None
        for hook in HOOKS.values():
            if callable(getattr(plugin, hook, None)) and not hasattr(getattr(plugin, hook), "distillzoo_impl"):
                raise PluginError(f"Plugin '{distribution}': {hook} is not marked with @hookimpl, so nothing calls it.")
        before = {kind: dict(entries) for kind, entries in self._entries.items()}
        try:
            for kind, hook in HOOKS.items():
                getattr(manager.hook, hook)(register=self._registrar(kind, distribution, version))
        except BaseException:  # all of a plugin's parts or none
            self._entries = before
            raise
        self.plugins.append(Plugin(distribution, version, api, getattr(plugin, "__name__", repr(plugin))))

    def with_recipe(self, name: str, path: Path) -> "Registry":
        """A copy that holds one more recipe, read from a file."""
        copy = Registry()
        copy._entries = {kind: dict(entries) for kind, entries in self._entries.items()}
        copy._entries["recipe"][name] = Entry("recipe", name, path, str(path), "")
        return copy

    def _registrar(self, kind: Kind, distribution: str, version: str) -> hookspecs.Register:
        def register(name: str, target: "type | str | Path") -> None:
            if not NAME.fullmatch(name):
                raise PluginError(
                    f"Plugin '{distribution}' registers the {kind} '{name}': a name is lower-case words and hyphens."
                )
            taken = self._entries[kind].get(name)
            if taken is not None and taken.distribution == distribution:
                raise PluginError(
                    f"Plugin '{distribution}' registers the {kind} '{name}' twice: do two of its entry points name the "
                    f"same module?"
                )
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
            error = UnknownName(kind, name, self.names(kind))
            if "DISTILLZOO_PLUGINS" in os.environ:
                error.args = (f"{error.args[0]} DISTILLZOO_PLUGINS restricts which plugins load.",)
            raise error from None

    def all_entries(self) -> list[Entry]:
        """The entries of all kinds, sorted by name within each."""
        return [entry for kind in HOOKS for entry in self.entries(kind)]

    def belonging_to(self, name: str) -> list[Entry]:
        """The entries of a distribution, or those of a part's name.

        Raises:
            UnknownName: neither a distribution with parts nor a part has the name.
        """
        every = self.all_entries()
        found = [entry for entry in every if _normal(entry.distribution) == _normal(name)]
        found = found or [entry for entry in every if entry.name == name]
        if not found:
            known = {entry.distribution for entry in every} | {entry.name for entry in every}
            raise UnknownName("plugin or part", name, known)
        return found

    def kind_of(self, annotation: Any) -> Kind | None:
        """The kind of part that a field with this annotation holds; none if it holds no part."""
        if not inspect.isclass(annotation):
            return None
        return next((kind for kind in PART_KINDS if issubclass(annotation, _imported(BASES[kind]))), None)

    def get(self, kind: Kind, name: str) -> Any:
        """The registered class (or path, for a recipe or a benchmark), imported if need be.

        Raises:
            UnknownName: nothing of that kind has the name.
            PluginError: the target cannot be imported or is not a subclass of the kind's base.
        """
        entry = self.entry(kind, name)
        if kind in FILES:
            return entry.target
        try:
            target = _imported(entry.target)
        except Exception as error:  # a stranger's module may raise anything
            cause = f"{type(error).__name__}: {error}".rstrip(".")
            raise PluginError(f"The {kind} '{name}' of {entry.origin} cannot be imported: {cause}.") from error
        base = _imported(BASES[kind])
        fits = issubclass(target, base) if inspect.isclass(target) else isinstance(target, base)
        if not fits:
            raise PluginError(f"The {kind} '{name}' of {entry.origin} is no {base.__name__}: {target!r}.")
        return target


def _api_of(plugin: object, distribution: str) -> str:
    """The API version that the plugin says it is built for; without a word 1.0, the first one, is meant."""
    built = str(getattr(plugin, "DISTILLZOO_API", "1.0"))
    if not re.fullmatch(r"\d+\.\d+", built):
        raise OtherAPI(f"DISTILLZOO_API is {built!r} and should be a version such as {API_VERSION!r}.")
    major, minor = map(int, built.split("."))
    ours = [int(part) for part in API_VERSION.split(".")]
    if major != ours[0]:
        raise OtherAPI(
            f"it is built for the plugin API {built}, and this distillzoo has {API_VERSION}. Install a release of "
            f"{distribution} for API {ours[0]}, or a distillzoo with API {major}."
        )
    if minor > ours[1]:
        raise OtherAPI(f"it needs the plugin API {built}, and this distillzoo has {API_VERSION}: upgrade distillzoo.")
    return built


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
