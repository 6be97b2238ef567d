"""How help looks: what typer's lacks, and the panels that options stand in."""

from __future__ import annotations

from typing import Any

from typer.core import TyperCommand, TyperGroup

# a flag takes no value, and help should not name the type of one
FLAG = " "

# the panels of help, in the order in which they are met in a command's options
NETWORK, SPEED, OUTPUT = "Network", "Speed and precision", "Output"
MATERIAL, MEASURED = "What it is measured on", "What is measured"
CAMERA, FINE, SOURCES = "Moving cameras", "Fine tuning", "Sources that are unusual or damaged"
HELP = "Help"


class _Help:
    """What typer's help lacks.

    Without a default of `--help` typer imports pydantic, which takes as long as all else.
    """

    def get_help_option(self, ctx: Any) -> Any:
        """Give the option that every command has."""
        # typer's class stands behind this one (misc)
        option = super().get_help_option(ctx)  # type: ignore[misc]
        if option is not None and option.default is None:
            option.default = False
        return option

    def get_params(self, ctx: Any) -> list[Any]:
        """Give the parameters; flags without the name of a type."""
        # as above (misc)
        parameters: list[Any] = super().get_params(ctx)  # type: ignore[misc]
        for parameter in parameters:
            if getattr(parameter, "is_flag", False) and parameter.metavar is None:
                parameter.metavar = FLAG
            if parameter.param_type_name == "argument":
                # its name says what it is; Python's type of it is for programmers
                parameter.display_type_rich = _no_type
            if parameter.name == "help":
                # else it makes a panel of its own, before all others
                parameter.rich_help_panel = HELP
        return parameters


def _no_type(ctx: Any) -> None:
    return None


class Group(_Help, TyperGroup):
    """The command that has commands."""


class Command(_Help, TyperCommand):
    """One command."""
