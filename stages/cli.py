"""`codeseg`: the list of commands and the exit codes.

In: sys.argv. Out: exit code 0 (ok), 1 (the work or a check failed), 2 (wrong use).
A command is the function of its own name in `stages/<name>.py`. Only the command that is called is
imported, so `codeseg --help` loads neither torch nor Ray.
"""

import importlib
import os
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from codeseg.stages.terminal import expand_home, guard_streams, visible

COMMANDS = {
    "download": "Download the images of a URL list: manifest -> pairs.",
    "nouns": "Find the nouns of each caption and their CLIP tokens: pairs -> nouns.",
    "features": "Precompute the frozen CLIP's features: nouns -> features.",
    "regions": "Group each picture's patches into part-like regions (SCG): features -> regions.",
    "select": "Select the pairs to train on by SQL: features -> selection.",
    "train": "Train the segmenters: features -> RUN (an existing RUN is resumed).",
    "evaluate": "Predict the label maps of a benchmark and score them.",
    "score": "Score label maps from any program against a benchmark.",
    "report": "Collect scores, pictures, losses and data on one offline page.",
    "segment": "Segment pictures by any words.",
    "app": "Serve a page on this machine that segments pictures in the browser.",
    "export": "Export a segmenter as ONNX, for programs without codeseg.",
    "audit": "Query and check the data (SQL), without changing it.",
    "status": "Show each stage's progress, shard by shard.",
    "doctor": "Check this machine for missing requirements and print fixes.",
    "demo": "Run the whole pipeline on generated pictures.",
}

USER_MISTAKES = (ValueError, FileNotFoundError, NotADirectoryError, IsADirectoryError)


def load_command(name: str) -> TyperCommand:
    """Import `stages/<name>.py` and turn its function of the same name into a command."""
    function = getattr(importlib.import_module(f"codeseg.stages.{name}"), name)
    single = typer.Typer(add_completion=False)
    single.command(name)(function)
    command = typer.main.get_command(single)
    assert isinstance(command, TyperCommand)
    return command


class LazyCommands(TyperGroup):
    """Commands that are listed from `COMMANDS` and imported only to be run."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the names in the order of the data flow."""
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Return the line that `--help` shows; `resolve_command` returns the command itself."""
        if cmd_name in COMMANDS:
            return TyperCommand(cmd_name, help=COMMANDS[cmd_name])
        return None

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Import and return the command to run."""
        if args and args[0] in COMMANDS:
            return args[0], load_command(args[0]), args[1:]
        if args and not args[0].startswith("-"):
            from codeseg.model.override import closest

            ctx.fail(f"There is no command {args[0]!r}; {closest(args[0], COMMANDS)}")
        return super().resolve_command(ctx, args)


app = typer.Typer(cls=LazyCommands, no_args_is_help=True, add_completion=False)


def show_version(wanted: bool) -> None:
    """Print the version and exit."""
    if wanted:
        from importlib.metadata import version

        typer.echo(f"codeseg {version('codeseg')}")
        raise typer.Exit


@app.callback()
def codeseg(
    version: Annotated[
        bool,
        typer.Option("--version", help="Print the version.", callback=show_version, is_eager=True),
    ] = False,
) -> None:
    """Segment pictures by any words, with models trained on image-caption pairs alone.

    Data flows one way: download -> nouns -> features -> train -> evaluate / segment.
    Run audit and status at any time to inspect it. `codeseg demo` shows all of it in minutes.
    """


def main() -> None:
    """Run the command line; print a user's mistake as one line, not a traceback."""
    guard_streams()
    command = typer.main.get_command(app)
    try:
        command.main(expand_home(sys.argv[1:]), prog_name="codeseg")
    except Exception as error:
        if os.environ.get("CODESEG_TRACEBACK"):
            raise
        mistake = isinstance(error, USER_MISTAKES)
        if not mistake and not isinstance(
            error, OSError | FloatingPointError | ModuleNotFoundError
        ):
            raise  # our own bug: a report needs the traceback
        line = visible(" ".join(str(error).split())) or type(error).__name__
        if isinstance(error, ModuleNotFoundError):
            from codeseg.pipeline.engine.requirements import extra_of

            extra = extra_of(error.name or "")
            line += f": install it with `pip install 'codeseg[{extra}]'`" if extra else ""
        print(f"error: {line}", file=sys.stderr)
        sys.exit(2 if mistake else 1)


if __name__ == "__main__":
    main()
