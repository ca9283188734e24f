"""``distillzoo bench lm-eval``: tasks beyond ours, by the LM Evaluation Harness through its own API."""

import importlib.util
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from distillzoo.core.errors import UserError, cannot

if TYPE_CHECKING:
    from distillzoo.core.config import RunConfig

KEPT: Final = ("results", "versions", "n-shot", "n-samples", "higher_is_better", "lm_eval_version")
"""What is kept of a result; the rest repeats settings and the machine."""


def _names(context: Any, parameter: Any, value: str) -> list[str]:
    return [name.strip() for name in value.split(",") if name.strip()]


@click.command("lm-eval")
@click.argument("run")
@click.option("--tasks", required=True, callback=_names, metavar="A,B", help="Tasks of lm-eval, or your YAML files.")
@click.option("--limit", type=click.IntRange(1), metavar="N", help="Only the first N documents of each task.")
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
def lm_eval(run: str, tasks: list[str], limit: int | None, as_json: bool) -> None:
    """Score RUN, a run directory or any model, with the LM Evaluation Harness (extra lm-eval).

    Prompts are the tasks' own, without a chat template.
    """
    if importlib.util.find_spec("lm_eval") is None:
        raise UserError("This needs the package lm-eval: pip install 'distillzoo[lm-eval]'.")
    from distillzoo.core.cli.output import loading, print_json, silence_libraries

    with loading(as_json):
        silence_libraries()
        from distillzoo.core.cli.evaluate import config_of

        config = config_of(run, (), {})
        import lm_eval.models.huggingface  # noqa: F401 takes seconds
    result = evaluated(config, tasks, limit)
    if as_json:
        print_json(result)
    else:
        _print(result)


def evaluated(config: "RunConfig", tasks: list[str], limit: int | None) -> dict[str, Any]:
    """What lm-eval says of the student of a configuration.

    Raises:
        UserError: a task is unknown, or the model cannot be loaded.
    """
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    from distillzoo.core.models import load_model, load_tokenizer
    from distillzoo.core.registry import installed
    from distillzoo.core.world import pick_device, pick_dtype

    assert config.student is not None, "resolve() fills the student in"
    manager, names = _tasks(tasks)
    device = pick_device(config.device)
    model = load_model(config.student, installed(), pick_dtype(config.dtype, device), device).eval()
    tokenizer = load_tokenizer(config.student, installed())
    wrapped = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=config.evaluate.batch_size)
    found = simple_evaluate(model=wrapped, tasks=names, limit=limit, task_manager=manager, log_samples=False)
    return {name: found[name] for name in KEPT if name in found}


def _tasks(tasks: list[str]) -> tuple[Any, list[str]]:
    """lm-eval's task manager and the tasks' names; the folder of a YAML file is searched for what it includes."""
    from lm_eval.tasks import TaskManager

    files = {task: Path(task).expanduser().resolve() for task in tasks if task.endswith((".yaml", ".yml"))}
    manager = TaskManager(include_path=sorted({str(path.parent) for path in files.values()}) or None)
    names = [_name_in(files[task]) if task in files else task for task in tasks]
    for task, name in zip(tasks, names, strict=True):
        if not manager.match_tasks([name]):
            raise UserError(f"'{task}' is no task of lm-eval, nor a YAML file of one.")
    return manager, names


def _name_in(path: Path) -> str:
    """The name of the task in a file, which may hold more than plain YAML."""
    try:
        found = re.search(r"^task:\s*[\"']?([^\s\"']+)", path.read_text(encoding="utf-8"), re.MULTILINE)
    except OSError as error:
        raise cannot("read", path, error) from None
    return "" if found is None else found[1]


def _print(result: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("task", "metric"):
        table.add_column(title)
    for title in ("value", "standard error", "shots", "documents", "version"):
        table.add_column(title, justify="right")
    for task, scores in result["results"].items():
        facts = (
            str(result.get("n-shot", {}).get(task, "–")),
            str(result.get("n-samples", {}).get(task, {}).get("effective", "–")),
            str(result.get("versions", {}).get(task, "–")),
        )
        for key, value in scores.items():
            metric, comma, kind = key.partition(",")
            if comma and not metric.endswith("_stderr"):
                error = scores.get(f"{metric}_stderr,{kind}")
                shown = metric if kind == "none" else f"{metric} ({kind})"
                table.add_row(task, shown, _figure(value), _figure(error), *facts)
    Console().print(table)


def _figure(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, int | float) else "–"
