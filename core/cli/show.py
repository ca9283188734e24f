"""``distillzoo show`` and ``distillzoo list``."""

import inspect
import re
from pathlib import Path
from typing import Any, Final, get_args

import click
import yaml
from pydantic.fields import FieldInfo
from rich.console import Console
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from distillzoo.core.config import build_part, dump, resolve
from distillzoo.core.errors import UnknownName, UserError, suggest
from distillzoo.core.part import Part
from distillzoo.core.recipe import Recipe, read_yaml
from distillzoo.core.registry import FILES, HOOKS, PART_KINDS, Entry, Kind, Registry, installed

PLURALS: Final[dict[str, Kind]] = {
    "subsets": "subset",
    "objectives": "objective",
    "extractions": "extraction",
    "trajectories": "trajectories",
    "metrics": "metric",
    "suites": "suite",
    "recipes": "recipe",
    "algorithms": "recipe",
    "benchmarks": "benchmark",
}

SHOWN: Final[tuple[Kind, ...]] = (
    *("recipe", "subset", "objective", "extraction", "trajectories", "metric", "suite", "benchmark"),
)


@click.command("list")
@click.argument("kind", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
def list_parts(kind: str | None, as_json: bool) -> None:
    """List what is installed, with the plugin each part comes from.

    KIND is one of subsets, objectives, extractions, trajectories, metrics, suites, recipes (or algorithms), benchmarks;
    all if not given. For algorithms alone it says on whose trajectories they train (on- or off-policy), on which
    actions, of what kind they are and how much of the teacher's distribution they ask for.
    """
    if kind is not None and kind not in PLURALS and kind not in HOOKS:
        raise UserError(f"There is no kind '{kind}'.{suggest(kind, PLURALS)}")
    kinds = SHOWN if kind is None else (PLURALS.get(kind) or _kind(kind),)
    registry = installed()
    rows = [(entry, _summary(registry, entry)) for k in kinds for entry in registry.entries(k)]
    axes = {e.name: _axes(registry, e) for e, _ in rows if e.kind == "recipe" and kinds == ("recipe",)}
    if as_json:
        from distillzoo.core.cli.output import print_json

        listed = [(e, {"kind": e.kind, "name": e.name, "origin": e.origin, "summary": text}) for e, text in rows]
        print_json([shown | axes.get(e.name, {}) for e, shown in listed])
        return
    if axes:
        _print_algorithms(rows, axes)
        return
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(ratio=1)
    table.add_column(no_wrap=True)
    for kind_shown in kinds:
        table.add_row(f"[bold]{kind_shown}[/bold]", "", "[bold]from[/bold]")
        for entry, text in rows:
            if entry.kind == kind_shown:
                table.add_row(f"  {entry.name}", escape(text), escape(entry.distribution))
    Console().print(table, highlight=False)


def _axes(registry: Registry, entry: Entry) -> dict[str, str]:
    """Where a recipe stands among the others."""
    from distillzoo.core.asks import of_the_teacher

    try:
        config = resolve(registry, algo=entry.name)
        subset, objective, _, source = (build_part(registry, config, kind) for kind in PART_KINDS)
    except UserError as error:
        return {"unusable": str(error)}
    teacher = of_the_teacher(subset, objective, config.lm)
    return {
        "policy": "on" if source.on_policy else "off",
        "trajectories": config.trajectories.name,
        "actions": config.subset.name,
        "family": objective.family,
        "teacher": teacher.removeprefix("the ").replace("nothing", "none"),
        "paper": Recipe.read(Path(entry.target)).paper,
    }


def _print_algorithms(rows: list[tuple[Entry, str]], axes: dict[str, dict[str, str]]) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for head in ("algorithm", "policy", "trajectories", "actions", "family", "asks of the teacher", "paper"):
        table.add_column(head, no_wrap=head in ("algorithm", "paper"), overflow="fold")
    for entry, _ in rows:
        found = axes[entry.name]
        if "unusable" in found:
            table.add_row(entry.name, "", "", "", "", escape(f"unusable. {found['unusable']}"), "")
        else:
            paper = found["paper"].split()[0].rstrip(",;")
            table.add_row(entry.name, *map(escape, [*list(found.values())[:-1], paper]))
    Console().print(table, highlight=False)


def _kind(text: str) -> Kind:
    return next(k for k in HOOKS if k == text)


def _summary(registry: Registry, entry: Entry) -> str:
    try:
        if entry.kind == "recipe":
            return Recipe.read(Path(entry.target)).title
        if entry.kind in FILES:
            return str(read_yaml(Path(entry.target)).get("title", ""))
        paragraph = (inspect.getdoc(registry.get(entry.kind, entry.name)) or "").partition("\n\n")[0]
    except UserError as error:  # one broken part must not hide the others
        return f"unusable. {error}"
    return re.split(r"(?<=[^.])[.:;](?:\s|$)", plain(" ".join(paragraph.split())), maxsplit=1)[0]


@click.command()
@click.argument("words", nargs=-1, required=True, metavar="[KIND] NAME")
@click.option("--set", "sets", multiple=True, metavar="FIELD=VALUE", help="With config: any field.")
@click.option("--config", "file", type=click.Path(path_type=Path), help="With config: a YAML file.")
def show(words: tuple[str, ...], sets: tuple[str, ...], file: Path | None) -> None:
    """Show a part or a recipe: formula, parameters, defaults, paper.

    'show config ALGO' prints the resolved configuration. Examples: show bd-iql; show subset top-p;
    show config bd-iql --set subset.p=0.9.
    """
    registry = installed()
    if words[0] == "config":
        click.echo(dump(resolve(registry, algo=words[1] if len(words) > 1 else None, file=file, sets=sets)), nl=False)
        return
    if len(words) > 2:
        raise UserError("show takes a name, or a kind and a name, as in: distillzoo show subset top-p.")
    entry = _find(registry, words[-1], words[0] if len(words) == 2 else None)
    if entry.kind == "recipe":
        _show_recipe(registry, entry)
    elif entry.kind in FILES:
        click.echo(Path(entry.target).read_text(encoding="utf-8"), nl=False)
    else:
        _show_part(registry.get(entry.kind, entry.name), entry)


def _find(registry: Registry, name: str, kind: str | None) -> Entry:
    if kind is not None:
        key = {"algo": "recipe"}.get(kind) or PLURALS.get(kind) or kind
        if key not in SHOWN:
            raise UserError(f"There is no kind '{kind}'.{suggest(kind, SHOWN)}")
        return registry.entry(_kind(key), name)
    found = [registry.entry(k, name) for k in SHOWN if name in registry.names(k)]
    if not found:
        raise UnknownName("part or recipe", name, [n for k in SHOWN for n in registry.names(k)])
    if len(found) > 1:
        raise UserError(f"'{name}' is more than one thing: {', '.join(f'show {e.kind} {name}' for e in found)}.")
    return found[0]


def _show_part(target: Any, entry: Entry) -> None:
    console = Console(highlight=False)
    console.print(f"[bold]{entry.name}[/bold]  {entry.kind}, from {entry.origin}")
    if getattr(target, "paper", ""):
        console.print(target.paper, markup=False)
    console.print()
    print_text(console, plain(inspect.getdoc(target) or ""))
    if inspect.isclass(target) and issubclass(target, Part) and target.model_fields:
        console.print()
        console.print(parameters(target))


def plain(doc: str) -> str:
    """A docstring for a screen: one line a paragraph, which the console wraps; formulas and lists as they are."""
    paragraphs = []
    for paragraph in doc.replace("``", "").split("\n\n"):
        lines = paragraph.splitlines()
        prose = not any(line.startswith((" ", "-", "*")) for line in lines)
        paragraphs.append(" ".join(lines) if prose else paragraph)
    return "\n\n".join(paragraphs)


def print_text(console: Console, text: str) -> None:
    """Lines that are too long for the screen go on at their own indentation."""
    for line in text.splitlines():
        words = line.lstrip() or " "
        console.print(Padding(Text(words), (0, 0, 0, max(0, len(line) - len(words))), expand=False))


def parameters(part: type[Part], chosen: dict[str, Any] | None = None) -> Table:
    """Names, types, defaults and meanings of a part's parameters, and what a recipe chose for them."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("parameter", "type", "default", *(["here"] if chosen is not None else []), "meaning"):
        table.add_column(column)
    for name, info in part.model_fields.items():
        default = "required" if info.is_required() else str(info.get_default(call_default_factory=True))
        here = [] if chosen is None else [str(chosen.get(name, default))]
        table.add_row(*map(escape, (name, _type(info), default, *here, info.description or "")))
    return table


def _type(info: FieldInfo) -> str:
    literal = get_args(info.annotation)
    if literal and all(isinstance(value, str) for value in literal):
        return " | ".join(literal)
    return getattr(info.annotation, "__name__", None) or str(info.annotation) if not literal else str(info.annotation)


def _print_asks(registry: Registry, entry: Entry, console: Console) -> None:
    from distillzoo.core.asks import asks

    console.print("\n[bold]asks in a step[/bold]")
    try:
        config = resolve(registry, algo=entry.name)
        subset, objective, extraction, _ = (build_part(registry, config, kind) for kind in PART_KINDS)
    except UserError as error:  # the rest of the recipe can be shown
        print_text(console, f"unusable. {error}")
        return
    found = asks(subset, objective, extraction, config.lm)
    print_text(console, f"of the student's head  {found.student}\nof the teacher         {found.teacher}")


def _show_recipe(registry: Registry, entry: Entry) -> None:
    recipe = Recipe.read(Path(entry.target))
    console = Console(highlight=False)
    console.print(f"[bold]{entry.name}[/bold]  recipe version {recipe.version}, from {entry.origin}")
    console.print(f"{recipe.title}\n{recipe.paper}\n", markup=False)
    print_text(console, recipe.formula)
    for number, text in enumerate(recipe.differs, 1):
        print_text(console, f"  differs {number}. {text}")
    _print_asks(registry, entry, console)
    for kind, choice in recipe.run.items():
        if kind in HOOKS:
            params = {k: v for k, v in choice.items() if k != "name"}
            console.print(f"\n[bold]{kind} {choice['name']}[/bold]")
            console.print(parameters(registry.get(_kind(kind), choice["name"]), params))
    rest = {k: v for k, v in recipe.run.items() if k not in HOOKS}
    for title, tree in {"other settings": rest, **{f"settings for {k}": v for k, v in recipe.settings.items()}}.items():
        if tree:
            console.print(f"\n[bold]{title}[/bold]")
            console.print(yaml.safe_dump(tree, sort_keys=False, default_flow_style=None).rstrip(), markup=False)
