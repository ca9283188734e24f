"""``distillzoo plugins``: what is installed, whether it conforms, and how to begin one."""

import keyword
import os
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click
from rich.console import Console
from rich.table import Table

from distillzoo.core import API_VERSION
from distillzoo.core.errors import UserError, cannot, suggest
from distillzoo.core.registry import HOOKS, NAME, Entry, Kind, Registry, installed

if TYPE_CHECKING:
    from distillzoo.core.checks import Outcome

KINDS: Final[tuple[Kind, ...]] = ("subset", "objective", "extraction", "trajectories", "metric", "recipe", "benchmark")
"""Kinds that ``plugins new`` has a template for."""

FILES: Final[tuple[Kind, ...]] = ("recipe", "benchmark")
"""Kinds whose part is a YAML file."""

SHADOWED: Final = {
    "ActionSubset", "ClassVar", "Completion", "Decoding", "DenseLogits", "Evaluated", "Field", "Literal", "LogitView",
    "LossTerms", "Metric", "Objective", "PolicyExtraction", "PromptRow", "Sampler", "Sequence", "SimpleNamespace",
    "Sources", "Subset", "TDBatch", "Tensor", "Trajectory",
}  # fmt: skip
"""Names that the templates import; a part's class has another."""


@click.group()
def plugins() -> None:
    """List plugins, check that they conform, and begin a new one."""


@plugins.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
def list_plugins(as_json: bool) -> None:
    """List the plugins with their version, parts and origin, and those that could not be loaded."""
    registry = installed()
    rows = []
    for distribution in sorted({plugin.distribution for plugin in registry.plugins}):
        modules = [p for p in registry.plugins if p.distribution == distribution]
        parts = [e for e in registry.all_entries() if e.distribution == distribution]
        rows.append((modules[0], sorted({p.module for p in modules}), parts))
    if as_json:
        from distillzoo.core.cli.output import print_json

        print_json(
            {
                "plugins": [
                    {
                        "name": plugin.distribution,
                        "version": plugin.version,
                        "api": plugin.api,
                        "modules": modules,
                        "parts": [{"kind": e.kind, "name": e.name} for e in parts],
                    }
                    for plugin, modules, parts in rows
                ],
                "not_loaded": [vars(failure) for failure in registry.failures],
            }
        )
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("plugin", "version", "API", "parts", "origin"):
        table.add_column(column, no_wrap=column in {"plugin", "version", "API"}, overflow="fold")
    for plugin, names, parts in rows:
        table.add_row(plugin.distribution, plugin.version, plugin.api, _kinds(parts), _origin(names))
    Console().print(table, highlight=False)
    for failure in registry.failures:
        click.echo(f"\nnot loaded: {failure.plugin} of {failure.distribution}: {failure.cause}")


def _kinds(parts: list[Entry]) -> str:
    """``subset top-h``, or a count of each kind where there are many."""
    if len(parts) <= 3:
        return ", ".join(f"{e.kind} {e.name}" for e in parts) or "none"
    counts = Counter(e.kind for e in parts)
    return ", ".join(f"{n} {kind}{'s' if n > 1 and kind != 'trajectories' else ''}" for kind, n in counts.items())


def _origin(modules: list[str]) -> str:
    """The file of a plugin's module, or the folder that all of them share."""
    files = [str(getattr(sys.modules.get(m), "__file__", None) or m) for m in modules]
    if len(files) == 1 or not all(map(os.path.isabs, files)):
        return ", ".join(files)
    try:
        return os.path.commonpath(files)
    except ValueError:  # on different drives
        return ", ".join(files)


@plugins.command()
@click.argument("name", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
def check(name: str | None, as_json: bool) -> None:
    """Run the conformance kit on NAME, a plugin or a part; on all that is installed if not given.

    Exits with 1 if a check fails.
    """
    registry = installed()
    entries = registry.belonging_to(name) if name is not None else registry.all_entries()

    from distillzoo.core.checks import Outcome, Subject, label, outcomes, parts_of
    from distillzoo.core.checks.run import CHECKED_KINDS
    from distillzoo.core.progress import Reporter

    reporter = Reporter(quiet=as_json)
    found: list[tuple[Entry, Outcome]] = []
    subjects: list[tuple[Entry, Subject]] = []
    unusable = [f"plugin {f.plugin} of {f.distribution}: {f.cause}" for f in registry.failures if name is None]
    for entry in entries:
        try:
            subjects += [(entry, part) for part in parts_of(registry, entry)]
        except UserError as error:
            unusable.append(f"{entry.kind} {entry.name}: {error}")
    if not subjects and not unusable:
        tried = "".join(
            f" 'distillzoo bench run {e.name} --dry-run' tries it." for e in entries if e.kind == "benchmark"
        )
        raise UserError(f"'{name}' registers no part that the kit has checks for: {', '.join(CHECKED_KINDS)}.{tried}")
    with reporter.stage("checking", total=len(subjects)):
        for entry, part in subjects:
            try:
                found += [(entry, outcome) for outcome in outcomes([part])]
            except Exception as error:  # what a part declares of itself may raise anything
                unusable.append(f"{entry.kind} {entry.name}: {error}")
            reporter.advance(1)
    failed = [(entry, o) for entry, o in found if o.status == "failed"]
    if as_json:
        from distillzoo.core.cli.output import print_json

        checks = [
            {
                "kind": e.kind, "name": e.name, "origin": e.origin, "part": label(o.part), "check": o.check.name,
                "status": o.status, "message": o.message,
            }
            for e, o in found
        ]  # fmt: skip
        print_json({"checks": checks, "unusable": unusable})
    else:
        if found:
            _print_outcomes(found, failed, bool(unusable))
        for text in unusable:
            click.echo(f"unusable: {text}", err=True)
    if failed or unusable:
        sys.exit(1)


def _print_outcomes(
    found: "list[tuple[Entry, Outcome]]", failed: "list[tuple[Entry, Outcome]]", unusable: bool
) -> None:
    from distillzoo.core.checks import label

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("kind", "name", "from", "variants", "passed", "known", "failed"):
        table.add_column(column, justify="right" if column in {"variants", "passed", "known", "failed"} else "left")
    for entry in dict.fromkeys(e for e, _ in found):
        mine = [o for e, o in found if e == entry]
        counts = Counter(o.status for o in mine)
        numbers = [len({label(o.part) for o in mine}), counts["passed"], counts["known"], counts["failed"]]
        style = "red" if counts["failed"] else ""
        table.add_row(entry.kind, entry.name, entry.origin, *map(str, numbers), style=style)
    console = Console()
    console.print(table, highlight=False)
    for entry, o in failed:
        console.print(f"\n[bold]{entry.kind} {entry.name}, {o.check.name}[/bold]: {o.check.rule}")
        console.print(f"{label(o.part)}: {o.message}", markup=False, highlight=False)
    for entry, o in found:
        if o.status == "known":
            console.print(f"\nknown: {entry.kind} {entry.name}, {o.check.name}: {o.message}", markup=False)
    parts = len({(e.kind, e.name) for e, _ in found})
    sound = "all hold, but not every part is usable" if unusable else "all hold"
    verdict = f"{len(failed)} failed" if failed else sound
    console.print(f"\n{len(found)} checks on {parts} part{'s' if parts != 1 else ''}: {verdict}.")


@plugins.command()
@click.argument("name")
@click.option("--kind", required=True, metavar="KIND", help=f"One of {', '.join(KINDS)}.")
@click.option("--into", type=click.Path(path_type=Path), default=".", show_default=True, help="Folder to write into.")
def new(name: str, kind: str, into: Path) -> None:
    """Write a small plugin package NAME that installs and passes its tests at once; then change it."""
    name = name.removeprefix("distillzoo-")
    if kind not in KINDS:
        raise UserError(f"There is no template for the kind '{kind}'.{suggest(kind, KINDS)}")
    if not NAME.fullmatch(name) or not name[0].isalpha():
        raise UserError(
            f"'{name}' is no name for a part: lower-case words and hyphens, a letter first, as in my-subset."
        )
    registry = installed()
    if name in registry.names(_kind(kind)):
        taken = registry.entry(_kind(kind), name)
        raise UserError(f"The {kind} '{name}' exists, in {taken.origin}: choose another name.")
    folder = into / name
    if folder.exists():
        raise UserError(f"'{folder}' exists: choose another name or --into another folder.")
    files = _written(name, kind, registry)
    try:
        for path, text in files.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_text(text, encoding="utf-8")
    except OSError as error:
        raise cannot("write", folder, error) from None
    click.echo("\n".join(str(folder / path) for path in files))
    command = {
        "recipe": f"run --algo {name}",
        "metric": f"run --algo bd-iql --set 'evaluate.metrics=[{name},forward-kl]'",
        "benchmark": f"bench run {name} --algos kd,bd-iql --seeds 1",
    }.get(kind, f"run --algo bd-iql --{kind} {name}")
    place = folder if folder.is_absolute() else f"./{folder}"
    click.echo(f"\nNext:\n  pip install -e '{place}[test]'\n  pytest {folder}\n  distillzoo {command}")


def _written(name: str, kind: str, registry: Registry) -> dict[str, str]:
    """The files of a new package by their paths."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("distillzoo.core", "templates/plugin"),
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
        autoescape=False,  # the output is Python, TOML and Markdown
    )
    module = f"distillzoo_{name.replace('-', '_')}"
    class_name = "".join(word.capitalize() for word in name.split("-"))
    if class_name in SHADOWED or keyword.iskeyword(class_name):
        class_name = f"{class_name}Part"
    version = next(p.version for p in registry.plugins if p.distribution == "distillzoo")
    values = {
        "name": name, "kind": kind, "module": module, "class_name": class_name, "hook": HOOKS[_kind(kind)],
        "api": API_VERSION, "distillzoo_version": ".".join(version.split(".")[:2]),
    }  # fmt: skip
    a_file = kind in FILES
    part = {f"{module}/{name}.yaml": f"{kind}.yaml"} if a_file else {f"{module}/{kind}.py": f"{kind}.py"}
    files = {
        "pyproject.toml": "pyproject.toml",
        f"{module}/__init__.py": "file.py" if a_file else "hook.py",
        **part,
        f"tests/test_{module}.py": f"test_{kind}.py",
        "README.md": "README.md",
    }
    return {path: environment.get_template(f"{template}.j2").render(values) for path, template in files.items()}


def _kind(text: str) -> Kind:
    return next(k for k in HOOKS if k == text)
