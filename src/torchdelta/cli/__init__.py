"""The command `torchdelta`."""


def main() -> None:
    """Run the command line; exits with 0, 1 (an error), 2 (usage), 130 or 143 (interrupted)."""
    from torchdelta.cli.app import app

    app()
