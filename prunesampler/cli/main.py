"""What runs when somebody types ``prunesampler``."""

import io
import sys


def main() -> None:
    """Run the command line, or say what to install for it; then exit.

    Raises:
        ModuleNotFoundError: If something else is missing than what the extra `cli` brings.
    """
    try:
        from prunesampler.cli.app import app
    except ModuleNotFoundError as error:
        if error.name not in ("typer", "rich"):
            raise
        sys.stderr.write('the command line needs typer: pip install "prunesampler[cli]"\n')
        sys.exit(2)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # names of files hold what a terminal may not have
            stream.reconfigure(errors="backslashreplace")
    app()
