"""Ties a program's life to its parent's, then becomes that program.

Run as `python -I -S guard.py PARENT_PID PROGRAM ARG...`. On Linux the kernel is asked to kill this
process when the thread that started it ends (PR_SET_PDEATHSIG survives exec); elsewhere the
launcher's own exit handler is all there is. This is a program of its own because code between
fork and exec (`preexec_fn`) is not safe in a process that has threads.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1
_ORPHANED = 75  # EX_TEMPFAIL: the parent was gone before we could ask to die with it


def main(argv: list[str]) -> int:
    """Ask to die with the parent, then exec the program; returns only if that failed."""
    parent, program = int(argv[1]), argv[2:]
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
            sys.stderr.write(f"prctl(PR_SET_PDEATHSIG) failed: {os.strerror(ctypes.get_errno())}\n")
            return 1
    if os.getppid() != parent:
        return _ORPHANED
    try:
        os.execvp(program[0], program)  # noqa: S606 - this is the purpose of this file
    except OSError as error:
        sys.stderr.write(f"cannot start {program[0]}: {error.strerror}\n")
        return 127


if __name__ == "__main__":
    sys.exit(main(sys.argv))
