"""The command as a process of its own, and how that ends."""

from __future__ import annotations

import atexit
import os
import sys
import threading
from contextlib import suppress

from evomerge.cli.main import main


def process() -> None:
    """Run the command line as a process, which ends with its work.

    Python would first free one by one the objects that importing torch has made, for a tenth of a second. Functions
    that are to be called at the end are called; a failure, and threads that still run, get Python's own end.
    """
    try:
        main()
    except SystemExit as end:
        if not end.code and threading.active_count() == 1:
            atexit._run_exitfuncs()
            with suppress(OSError, ValueError):  # standard output is closed: Python says so
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(0)
        raise
