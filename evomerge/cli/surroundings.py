"""What a command finds around it: standard streams that are closed, and signals that end it."""

from __future__ import annotations

import os
import signal
import sys
import threading


def open_closed_streams() -> None:
    """Let standard streams that are closed (`>&-`) lead nowhere.

    Otherwise Python has no objects for them, and the next files that are opened get their numbers: what a library
    prints would be written into these files.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115


def end_like_ctrl_c() -> None:
    """Let SIGTERM, and SIGHUP when a terminal is lost, end the command as Ctrl-C does: unfinished files are removed.

    A signal that is ignored, as by `nohup`, stays ignored.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)  # Windows has no SIGHUP
        if number is not None and signal.getsignal(number) == signal.SIG_DFL:
            signal.signal(number, signal.default_int_handler)
