"""The command line; each command has a file in `commands/`."""

from __future__ import annotations

import importlib.metadata
from typing import Annotated

import typer

from torchdelta.cli.commands import bench, demo, env, explain, run
from torchdelta.cli.help import Command, Group

app = typer.Typer(
    cls=Group,
    name="torchdelta",
    rich_markup_mode="rich",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"torchdelta {importlib.metadata.version('torchdelta')}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            callback=_print_version,
            is_eager=True,
            help="Print it and exit.",
        ),
    ] = False,
) -> None:
    """Run a CNN on video and compute only what changed from frame to frame.

    The first frame is computed whole. After it, only what has changed is computed again.

    Begin with [bold]torchdelta demo[/bold], then [bold]torchdelta run --help[/bold].
    """


# in the order in which help lists them
for command, epilog in (
    (run.run, run.EPILOG),
    (bench.bench, bench.EPILOG),
    (explain.explain, explain.EPILOG),
    (demo.demo, demo.EPILOG),
    (env.env, None),
):
    app.command(cls=Command, epilog=epilog)(command)
