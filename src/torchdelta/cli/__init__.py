"""The command `torchdelta`."""


def main() -> None:
    """Run the command line.

    Exits with 0, 1 (an error), 2 (usage), 130 (Ctrl-C), 141 (nobody reads the output any more) or
    143 (SIGTERM).
    """
    import gc
    import sys

    from torchdelta.cli import streams

    # nearly all that is made while starting lives to the end: the collector looks through it less
    # often, and not at all while Python ends, which together takes a second and a half
    gc.set_threshold(200_000, 50, 100)
    streams.prepare()
    try:
        try:
            from torchdelta.cli.app import app

            app()
        finally:
            gc.freeze()
            streams.finish()
    except streams.OutputGone as gone:
        sys.exit(streams.plain_exit(gone))
