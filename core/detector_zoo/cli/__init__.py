"""The command `zoo`: one module a command, imported when the command runs."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import click

from detector_zoo import __version__
from detector_zoo.errors import ZooError
from detector_zoo.plain import one_line, plain

COMMANDS = (
    "list",
    "info",
    "score",
    "app",
    "weights",
    "plugins",
    "new",
    "check",
    "doctor",
    "train",
    "calibrate",
    "push",
    "lock",
    "audit",
    "data",
    "eval",
    "compare",
    "leaderboard",
)


class _Zoo(click.Group):
    """Loads a command's module when the command is asked for, and reports `ZooError`s in one line."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*COMMANDS]  # "list" is a module of this package once that command was loaded

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            from difflib import get_close_matches

            near = get_close_matches(cmd_name, COMMANDS, n=1)
            if near:
                ctx.fail(f"No such command {cmd_name!r}. Did you mean {near[0]!r}?")
            return None
        command: click.Command = import_module(f"{__name__}.{cmd_name}").command
        return command

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except ZooError as error:
            self.tell(ctx, str(error), error.hint)
            ctx.exit(error.exit_code)
        # click's own ways to end, which its main() turns into a message and a status.
        except (click.ClickException, click.Abort, click.exceptions.Exit, BrokenPipeError):
            raise
        # A mistake of ours, or of a plugin where nobody thought that it could be made.
        except Exception as error:  # noqa: BLE001
            hint = "zoo --debug shows where; please report it"
            self.tell(ctx, f"unexpected {type(error).__name__}: {one_line(error)}", hint)
            ctx.exit(1)

    @staticmethod
    def tell(ctx: click.Context, message: str, hint: str | None) -> None:
        if ctx.params.get("debug"):
            import traceback

            traceback.print_exc()
        click.echo(f"Error: {plain(message)}", err=True)
        if hint:
            click.echo(f"Hint: {plain(hint)}", err=True)


@click.group(cls=_Zoo, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="zoo")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.option("-v", "--verbose", is_flag=True, help="Say on stderr which plugins failed to load.")
def main(debug: bool, verbose: bool) -> None:
    """Is this picture generated, and how far can the answer be believed?

    \b
    zoo list                          the detectors at hand
    zoo score -d mdmf photo.jpg       score an image
    zoo score photos/ -o scores.csv   score a folder with every detector that has its weights
    """  # noqa: D301 (click reads the character, not the two letters)
    if verbose:
        from detector_zoo.plugins import catalogue

        for plugin in catalogue().broken():
            click.echo(f"Warning: plugin {plugin.name} ({plugin.distribution}): {plugin.status}", err=True)
