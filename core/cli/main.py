"""The group of commands, and how errors reach people."""

import importlib
import os
import sys
from importlib import metadata
from typing import Any, Final

import click

from distillzoo.core.errors import UserError
from distillzoo.core.registry import installed

COMMANDS: Final = {
    "run": ("distillzoo.core.cli.run:run", "Distil a student from a teacher."),
    "evaluate": ("distillzoo.core.cli.evaluate:evaluate", "Evaluate a run's student, or any model."),
    "generate": ("distillzoo.core.cli.generate:generate", "Answer a prompt with a run's student."),
    "cache": ("distillzoo.core.cli.cache:cache", "Build and check caches of a teacher's subsets."),
    "show": ("distillzoo.core.cli.show:show", "Show a part, a recipe or a resolved configuration."),
    "plugins": ("distillzoo.core.cli.plugins:plugins", "List, check and begin plugins."),
    "list": ("distillzoo.core.cli.show:list_parts", "List parts by kind, with the plugin each comes from."),
}
"""Built-in commands: where they are, and their line in the help."""


class Commands(click.Group):
    """Built-in commands by a lazy table, and those that plugins register."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*COMMANDS, *(n for n in installed().names("command") if n not in COMMANDS)]

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name in COMMANDS:
            module, _, attribute = COMMANDS[name][0].partition(":")
            command: click.Command = getattr(importlib.import_module(module), attribute)
            return command
        if name in installed().names("command"):
            return installed().get("command", name)  # type: ignore[no-any-return]
        return None

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            if args and self.get_command(ctx, args[0]) is None:
                from distillzoo.core.errors import suggest

                known = self.list_commands(ctx)
                raise click.UsageError(f"There is no command '{args[0]}'.{suggest(args[0], known)}", ctx) from error
            raise

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        rows = [(name, text) for name, (_, text) in COMMANDS.items()]
        for name in self.list_commands(ctx)[len(COMMANDS) :]:
            try:
                command = self.get_command(ctx, name)
            except UserError as error:  # one broken command must not hide the others
                rows.append((name, f"unusable. {error}"))
                continue
            rows.append((name, command.get_short_help_str() if command else ""))
        with formatter.section("Commands"):
            formatter.write_dl(rows)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(metadata.version("distillzoo"), prog_name="distillzoo")
def cli() -> None:
    """Distil language models: a zoo of algorithms composed from subsets, objectives, extractions and trajectories."""


def main() -> None:
    """Entry point: what the user can mend is one paragraph on standard error and exit code 2."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        for entry in installed().entries("command"):
            if entry.name in COMMANDS:
                raise UserError(
                    f"The command '{entry.name}' of {entry.origin} has the name of a built-in one. Rename it, or leave "
                    f"the plugin out with DISTILLZOO_PLUGINS."
                )
        for failure in installed().failures:
            click.echo(f"Plugin '{failure.plugin}' of {failure.distribution} was not loaded: {failure.cause}", err=True)
        cli(standalone_mode=False)
    except UserError as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(2)
    except click.ClickException as error:
        error.show()
        sys.exit(2)
    except (KeyboardInterrupt, click.Abort):
        click.echo("Interrupted.", err=True)
        sys.exit(130)
    except RuntimeError as error:
        if "out of memory" not in str(error):
            raise
        click.echo(
            f"Error: {str(error).splitlines()[0]} Lower train.device_batch_size, data.max_length or "
            f"evaluate.batch_size.",
            err=True,
        )
        sys.exit(2)
    except BrokenPipeError:
        sys.exit(141)
    except OSError as error:
        click.echo(f"Error: {error.strerror or error}{f': {error.filename}' if error.filename else ''}.", err=True)
        sys.exit(2)


if __name__ == "__main__":
    main()
