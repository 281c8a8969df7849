"""`gradnorm reproduce` in a process of its own, which Ctrl-C stops even where the tests run in the background."""

import sys

CODE = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
from gradnorm_studies.cli import main
main()
"""


def command(*arguments: str) -> list[str]:
    """The command that runs a study; any warning is an error."""
    return [sys.executable, "-W", "error", "-c", CODE, "reproduce", *arguments]
