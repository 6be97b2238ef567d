"""The command `torchdelta`."""


def main() -> None:
    """Run the command line.

    Exits with 0, 1 (an error), 2 (usage), 130 (Ctrl-C), 141 (nobody reads the output any more) or
    143 (SIGTERM).
    """
    import sys

    from torchdelta.cli import streams

    streams.prepare()
    try:
        try:
            from torchdelta.cli.app import app

            app()
        finally:
            streams.finish()
    except streams.OutputGone as gone:
        sys.exit(streams.plain_exit(gone))
