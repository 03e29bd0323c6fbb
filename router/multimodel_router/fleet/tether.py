"""Run as a script, `tether.py PARENT COMMAND…` becomes COMMAND, which dies with the process PARENT.

A kill -9 of the router must not leave model servers behind. The kernel ends a tethered process when its parent ends;
the tie is made in a program of its own because code between fork and exec is unsafe in a process with threads.
It imports nothing of ours, so that it takes no time.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Tie this process to its parent, lead a process group, and become the command."""
    parent, command = int(sys.argv[1]), sys.argv[2:]
    os.setpgid(0, 0)
    if sys.platform == "linux" and ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent:
        sys.exit("the parent ended before its child had started")
    os.execv(command[0], command)  # noqa: S606  (an argument list; no shell)


if __name__ == "__main__":
    main()
